"""`fetch` from a Hugging Face Hub: a server of the tests' own that can fail on request."""

import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gdpo.model.base import base_hashes
from gdpo.model.card import Card
from gdpo.model.naosd import NAOSD
from tasks import __main__ as cli
from tasks.tools import fetch
from tests import s3
from tests.tasks.tools.fetching import (
    COMMIT,
    SCHEDULE,
    UNET,
    check_fetched,
    edit,
    failure,
    run,
    sha256,
)


class Hub(ThreadingHTTPServer):
    """What the hub's library asks for: the list of files, a HEAD and a GET per file. Notes every
    GET of a file.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder, self.served, self.broken = folder, [], set()


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        start = f"/owner/name/resolve/{COMMIT}/"
        if path == f"/api/models/owner/name/tree/{COMMIT}":
            self.send(json.dumps(self.tree()).encode(), {"Content-Type": "application/json"}, body)
        elif path.startswith(start) and (self.server.folder / path.removeprefix(start)).is_file():
            name = path.removeprefix(start)
            content = (self.server.folder / name).read_bytes()
            if body:
                self.server.served.append(name)
                if name in self.server.broken:
                    self.send_error(503)
                    return
            etag = hashlib.sha256(content).hexdigest()
            self.send(content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, body)
        else:
            self.send_error(404)

    def tree(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = [{"type": "directory", "oid": "0", "path": "unet"}]
        for path in sorted(self.server.folder.rglob("*")):
            if path.is_file():
                size = path.stat().st_size
                row = {
                    "type": "file",
                    "oid": "0",
                    "size": size,
                    "path": str(path.relative_to(self.server.folder)),
                }
                if path.suffix == ".safetensors":
                    row["lfs"] = {"oid": sha256(path), "size": size, "pointerSize": 100}
                rows.append(row)
        return rows

    def send(self, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


@pytest.fixture
def hub(fetching_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub(fetching_root / "mirror") as server, s3.serving(server):
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield server


def test_a_hub_at_a_commit_although_everything_else_is_offline(
    fetching_root: Path, hub: Hub
) -> None:
    from huggingface_hub import constants

    assert constants.HF_HUB_OFFLINE, "as tests/conftest.py and the command line have it"
    source = f"hf://owner/name@{COMMIT}"
    assert run(source) == 0
    check_fetched(fetching_root, source)
    assert len(hub.served) == len(set(hub.served)) and not [
        name for name in hub.served if "fp16" in name or ".bin" in name
    ]
    assert constants.HF_HUB_OFFLINE


def test_the_base_that_a_model_names_by_its_place_on_the_hub(
    fetching_root: Path,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(fetching_root / "cache"))
    card = Card(
        kind="naosd",
        label="NAOSD",
        role="baseline",
        format=1,
        base=f"hf://owner/name@{COMMIT}",
        base_sha256=base_hashes(fetching_root / "mirror"),
        t_add=50,
        t_diff=100,
        prompt="sharp",
        adapters=[],
    )
    folder = fetching_root / "model"
    folder.mkdir()
    card.write(folder)
    missing = "is not in the hub's cache here; `gdpo-sr fetch --model .*` brings it"
    with pytest.raises(ValueError, match=missing):
        NAOSD.from_pretrained(folder)
    assert cli.main(["fetch", "--model", "model"]) == 0
    assert Path(capsys.readouterr().out.strip()).is_relative_to(fetching_root / "cache")
    assert not any("fp16" in name or ".bin" in name for name in hub.served)
    assert NAOSD.from_pretrained(folder).t_add == 50
    card.model_copy(update={"base_sha256": {}}).write(folder)
    with pytest.raises(
        ValueError, match=r"trained on another base model than .* \(SHA-256 differs"
    ):
        NAOSD.from_pretrained(folder)
    for base in ("hf://name@main", "hf://owner/name"):
        card.model_copy(update={"base": base}).write(folder)
        with pytest.raises(ValueError, match="which is not hf://owner/name@revision"):
            NAOSD.from_pretrained(folder)


def test_a_commit_that_is_not_there(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert "404" in failure(capsys, "hf://owner/name@" + "f" * 40)


def test_a_v_prediction_base_is_refused_before_its_weights_are_fetched(
    hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(SCHEDULE, lambda c: c.update(prediction_type="v_prediction"))()
    assert "prediction_type is 'v_prediction'" in failure(capsys, f"hf://owner/name@{COMMIT}")
    assert hub.served == [SCHEDULE]


def test_what_arrived_before_a_failure_is_not_fetched_again(
    fetching_root: Path,
    hub: Hub,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # the library waits between its attempts
    source = f"hf://owner/name@{COMMIT}"
    hub.broken.add("vae/diffusion_pytorch_model.safetensors")
    assert "503" in failure(capsys, source)
    assert UNET in hub.served
    hub.broken.clear()
    hub.served.clear()
    assert run(source) == 0
    assert hub.served == ["vae/diffusion_pytorch_model.safetensors"]
    check_fetched(fetching_root, source)


def test_a_file_that_is_not_what_the_hub_lists_is_refused(
    fetching_root: Path,
    hub: Hub,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = Answer.tree

    def other(self: Answer) -> list[dict[str, Any]]:
        return [
            {**row, **({"lfs": {**row["lfs"], "oid": "1" * 64}} if "lfs" in row else {})}
            for row in honest(self)
        ]

    monkeypatch.setattr(Answer, "tree", other)
    assert f"not {'1' * 64}" in failure(capsys, f"hf://owner/name@{COMMIT}")


def test_nothing_else_goes_online() -> None:
    """The only module that switches the hub's library on is that of this tool's sources."""
    root = Path(fetch.__file__).parents[2]
    modules = [
        path for package in ("gdpo", "tasks", "flows") for path in (root / package).rglob("*.py")
    ]
    assert [path.name for path in modules if "HF_HUB_OFFLINE =" in path.read_text()] == [
        "sources.py"
    ]
