"""What `gdpo-sr upscale` says when something is wrong: one line, and nothing half-written."""

import re
from pathlib import Path

import pytest

from gdpo.upscale import resolver
from tasks import __main__ as cli
from tests.tasks.tools.upscaling import fails


def test_what_is_wrong_is_said_in_one_line(
    folder: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.jpg").write_bytes(b"no photograph")
    assert "nothing.jpg: no such photograph" in fails(capsys, "nothing.jpg", "-o", "out.png")
    assert "broken.jpg" in fails(capsys, "broken.jpg", "-o", "out.png")
    (folder / "folder.png").mkdir()
    assert "folder.png: is a folder" in fails(capsys, "photo.jpg", "-o", "folder.png")
    assert list((folder / "folder.png").iterdir()) == []
    (folder / "old.png").write_bytes(b"old")
    assert "old.png: already exists; --overwrite or --skip-existing" in fails(
        capsys, "photo.jpg", "-o", "old.png"
    )
    assert (folder / "old.png").read_bytes() == b"old"
    assert "old.png is not a folder" in fails(capsys, "photo.jpg", "-o", "old.png/new.png")
    assert "out.webp: WEBP holds at most" in fails(
        capsys, "photo.jpg", "-o", "out.webp", "--scale", "2000"
    )
    assert "out.gif: unknown extension; use one of .png" in fails(
        capsys, "photo.jpg", "-o", "out.gif"
    )
    assert "photograph itself" in fails(capsys, "photo.jpg", "-o", "photo.jpg")
    assert "tile must be at least 32" in fails(capsys, "photo.jpg", "-o", "out.png", "--tile", "8")
    missing = fails(capsys, "photo.jpg", "-o", "out.png", "--model", "models/none")
    assert "models/none: no such model folder; without --model, the one that ships" in missing
    (folder / "base").symlink_to(tiny_base)
    bare = fails(capsys, "photo.jpg", "-o", "out.png", "--model", "base")
    assert "base/model.json: no such file, so this is no model for super-resolution" in bare
    assert not (folder / "out.png").exists()


@pytest.mark.parametrize(
    "extra",
    [
        *(["--t-add", "1000"], ["--t-add", "x"], ["--seed", "-1"], ["--color-fix", "lab"]),
        *(
            ["--scale", "0"],
            ["--scale", "x"],
            ["--skip-existing", "--overwrite"],
            ["--by", "psnr_y"],
        ),
    ],
)
def test_wrong_usage_exits_2(
    folder: Path, extra: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["upscale", "photo.jpg", "-o", "out.png", *extra])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    said = r"gdpo-sr upscale: argument --\S+ .+; see `gdpo-sr upscale --help`\n"
    assert re.fullmatch(said, error) and "_positive" not in error


def test_what_cannot_be_written_is_said_before_the_model_is_loaded(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver, "load_models", lambda *_: pytest.fail("the model was loaded"))
    assert "out.jpg: holds 8 bits only" in fails(
        capsys, "photo.jpg", "-o", "out.jpg", "--bits", "16"
    )
    monkeypatch.setattr("gdpo.pictures.write.can_heif", lambda: False)
    assert "a.heic: is HEIC, which needs pillow-heif" in fails(capsys, "photo.jpg", "-o", "a.heic")


@pytest.mark.parametrize(
    ("scale", "says"),
    [
        ("1e9", r"out\.png: PNG holds at most 2147483647 pixels a side, .*; make it smaller"),
        ("1e6", r"photo\.jpg: 14000000x9000000 pixels need \d+ GB of memory, and this machine has"),
    ],
)
def test_a_result_that_no_file_or_memory_holds_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], scale: str, says: str
) -> None:
    assert re.search(says, fails(capsys, "photo.jpg", "-o", "out.png", "--scale", scale))
    assert not (folder / "out.png").exists()


def test_a_name_is_one_line_whatever_is_in_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "photo.jpg").rename(folder / "a\n\x1b[2J<b>.jpg")
    (folder / "b\x1b[2J.jpg").write_bytes(b"no photograph")
    assert cli.main(["upscale", "*.jpg", "-o", "out"]) == 1
    out, error = capsys.readouterr()
    assert out.startswith(r"out/a\n\x1b[2J<b>.png: 56x36 in ") and out.count("\n") == 1
    assert r"gdpo-sr: b\x1b[2J.jpg: not a readable" in error and "\x1b" not in error
    assert (folder / "out/a\n\x1b[2J<b>.png").is_file()
