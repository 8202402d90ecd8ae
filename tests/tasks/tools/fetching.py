"""Runs of `fetch`, and checks of what it fetched."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from gdpo.model.naosd import NAOSD
from tasks import __main__ as cli

COMMIT = "0123456789abcdef0123456789abcdef01234567"
UNET, SCHEDULE = "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"


def run(*sources: str, more: tuple[str, ...] = ()) -> int:
    return cli.main(["fetch", "--set", f"fetch.base={json.dumps(sources)}", *more])


def failure(capsys: pytest.CaptureFixture[str], *sources: str, more: tuple[str, ...] = ()) -> str:
    """What a run that must fail says in its last line; nothing is at model.base then."""
    assert run(*sources, more=more) == 1
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("gdpo-sr: ") for line in lines)
    assert not Path("models/base").exists()
    return lines[-1]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_fetched(place: Path, source: str) -> None:
    got = {
        str(path.relative_to("models/base"))
        for path in Path("models/base").rglob("*")
        if path.is_file()
    }
    assert UNET in got and SCHEDULE in got
    assert not [
        name
        for name in got
        if name.endswith((".bin", ".md", ".part")) or "fp16" in name or ".hub" in name
    ]
    NAOSD.from_base(Path("models/base"))
    record = json.loads(Path("models/base.source.json").read_text())
    assert record["source"] == source and record["files"].keys() == got
    for name, file in record["files"].items():
        assert file == {
            "size": (place / "mirror" / name).stat().st_size,
            "sha256": sha256(place / "mirror" / name),
        }
    assert not list(Path("work/fetch").iterdir())


def edit(name: str, change: Callable[[Any], None]) -> Callable[[], None]:
    def apply() -> None:
        path = Path("mirror", name)
        content = load_file(path) if name.endswith("safetensors") else json.loads(path.read_text())
        change(content)
        if name.endswith("safetensors"):
            save_file(content, path, metadata={"format": "pt"})
        else:
            path.write_text(json.dumps(content))

    return apply
