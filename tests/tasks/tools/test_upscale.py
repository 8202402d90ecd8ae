"""The command `gdpo-sr upscale`: what it writes and what it says when something is wrong."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gdpo.model.naosd import NAOSD
from gdpo.tagger.convert import import_tagger
from tasks import __main__ as cli
from tests.gdpo.tagger import released_tagger
from tests.gdpo.upscale.fake_model import FakeModel


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a photograph and a model folder whose model is a fake."""
    photo = np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.jpg")
    (tmp_path / "models/gdpo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        NAOSD, "from_pretrained", classmethod(lambda cls, folder, **options: FakeModel())
    )
    return tmp_path


def _fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert cli.main(["upscale", *argv]) == 1
    error = capsys.readouterr().err
    assert error.startswith("gdpo-sr: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize("name", ["out.png", "deep/er/out.webp", "OUT.JPG"])
def test_a_photograph_is_enlarged_four_times(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert cli.main(["upscale", "photo.jpg", "-o", name]) == 0
    assert f"{name}: 56x36 in " in capsys.readouterr().out
    with Image.open(folder / name) as image:
        assert image.size == (56, 36)
    leftovers = [path for path in (folder / name).parent.iterdir() if path.name.startswith(".")]
    assert leftovers == []


def test_json_says_what_was_made(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["upscale", "photo.jpg", "-o", "out.png", "--scale", "2", "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert result["output"] == "out.png" and result["size"] == [28, 18] and result["seconds"] >= 0
    assert result["prompt"] == "sharp"


def test_the_prompt_is_of_the_users_words_or_of_a_tagger(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeModel, "embed", lambda self, texts: torch.zeros(1, 2, 4))
    assert cli.main(["upscale", "photo.jpg", "-o", "a.png", "--prompt", "two boats", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == "two boats, sharp"
    assert f"{Path('no')}/tags.json: no such file; `gdpo-sr import-weights" in _fails(
        capsys, "photo.jpg", "-o", "b.png", "--tagger", "no"
    )
    source = released_tagger.write(folder / "ckp")
    (folder / "ckp/ram_tag_list_threshold.txt").write_text("0\n" * 6)
    import_tagger(source, folder / "plain")
    assert "plain/dape.safetensors: no such file" in _fails(
        capsys, "photo.jpg", "-o", "b.png", "--tagger", "plain"
    )
    import_tagger(source, folder / "tagger", dape=folder / "ckp/DAPE.pth")
    assert (
        cli.main(
            ["upscale", "photo.jpg", "-o", "b.png", "--tagger", "tagger", "--prompt", "two boats"]
        )
        == 0
    )
    names = ", ".join(released_tagger.NAMES)
    assert capsys.readouterr().out.endswith(f"; prompt: {names}, two boats, sharp\n")


def test_seed_decides_the_bytes(folder: Path) -> None:
    for name, seed in (("a.png", "1"), ("b.png", "1"), ("c.png", "2")):
        assert (
            cli.main(["upscale", "photo.jpg", "-o", name, "--seed", seed, "--color-fix", "none"])
            == 0
        )
    assert (folder / "a.png").read_bytes() == (folder / "b.png").read_bytes()
    assert (folder / "a.png").read_bytes() != (folder / "c.png").read_bytes()


def test_what_is_wrong_is_said_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.jpg").write_bytes(b"no photograph")
    assert "nothing.jpg: no such photograph" in _fails(capsys, "nothing.jpg", "-o", "out.png")
    assert "broken.jpg" in _fails(capsys, "broken.jpg", "-o", "out.png")
    assert "out.gif: unknown extension; use one of .png" in _fails(
        capsys, "photo.jpg", "-o", "out.gif"
    )
    assert "photograph itself" in _fails(capsys, "photo.jpg", "-o", "photo.jpg")
    assert "tile must be at least 32" in _fails(capsys, "photo.jpg", "-o", "out.png", "--tile", "8")
    missing = _fails(capsys, "photo.jpg", "-o", "out.png", "--model", "models/none")
    assert "models/none: no such model folder; run `make demo` first, or pass --model" in missing
    assert not (folder / "out.png").exists()


@pytest.mark.parametrize(
    "extra", [["--t-add", "1000"], ["--t-add", "x"], ["--seed", "-1"], ["--color-fix", "lab"], []]
)
def test_wrong_usage_exits_2(folder: Path, extra: list[str]) -> None:
    output = ["-o", "out.png"] if extra else []
    with pytest.raises(SystemExit) as caught:
        cli.main(["upscale", "photo.jpg", *output, *extra])
    assert caught.value.code == 2
