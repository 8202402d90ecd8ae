"""The command `gdpo-sr upscale`: what it writes and what it says when something is wrong."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gdpo.pictures.read import read_picture
from gdpo.released.tagger import import_tagger
from gdpo.upscale import resolver
from tasks import __main__ as cli
from tests.gdpo.pictures.icc import managed, profile
from tests.gdpo.tagger import released_tagger
from tests.gdpo.upscale.fake_model import FakeModel
from tests.tasks.tools.upscaling import fails


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
    assert f"{Path('no')}/tags.json: no such file; `gdpo-sr import-weights" in fails(
        capsys, "photo.jpg", "-o", "b.png", "--tagger", "no"
    )
    source = released_tagger.write(folder / "ckp")
    (folder / "ckp/ram_tag_list_threshold.txt").write_text("0\n" * 6)
    import_tagger(source, folder / "plain")
    assert "plain/dape.safetensors: no such file" in fails(
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


def test_without_an_output_it_goes_beside_the_photograph(folder: Path) -> None:
    assert cli.main(["upscale", "photo.jpg", "--scale", "2"]) == 0
    with Image.open(folder / "photo_x2.png") as image:
        assert image.size == (28, 18)


@pytest.fixture
def album(folder: Path) -> Path:
    """Photographs in folders, one of them broken."""
    for name in ("album/a.jpg", "album/sea/b.jpg", "album/sea/c.png", "album/.hidden/d.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.linear_gradient("L").convert("RGB").resize((12, 8)).save(folder / name)
    (folder / "album/sea/broken.jpg").write_bytes(b"no photograph")
    (folder / "album/notes.txt").write_text("no photograph either")
    return folder


def _files(folder: Path) -> list[str]:
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(map(str, found))


def test_a_broken_file_of_a_folder_is_named_and_the_others_are_done(
    album: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["upscale", "album", "-o", "large", "--format", "webp", "--suffix", "_big"]
    assert cli.main(command) == 1
    out, error = capsys.readouterr()
    assert _files(album / "large") == ["a_big.webp", "sea/b_big.webp", "sea/c_big.webp"]
    assert out.count("48x32 in ") == 3 and "album/sea/broken.jpg: not a readable" in error
    assert error.splitlines()[-1] == "gdpo-sr: 1 of 4 photographs failed"


def test_existing_results_are_skipped_or_replaced(
    album: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (album / "album/sea/broken.jpg").unlink()
    (album / "large/sea").mkdir(parents=True)
    (album / "large/sea/b.png").write_bytes(b"old")
    assert cli.main(["upscale", "album", "-o", "large"]) == 1
    assert "large/sea/b.png: already exists" in capsys.readouterr().err
    assert cli.main(["upscale", "album", "-o", "large", "--skip-existing"]) == 0
    assert capsys.readouterr().out.count("already exists") == 3
    assert (album / "large/sea/b.png").read_bytes() == b"old"
    assert cli.main(["upscale", "album", "-o", "large", "--overwrite"]) == 0
    assert (album / "large/sea/b.png").read_bytes() != b"old"


def test_patterns_and_a_second_run_over_the_same_folder(
    album: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["upscale", "album/sea/[bc].*", "album/a.jpg"]) == 0
    assert cli.main(["upscale", "album/sea", "--skip-existing"]) == 1  # the broken one
    results = [name for name in _files(album / "album") if "_x4" in name]
    assert results == ["a_x4.png", "sea/b_x4.png", "sea/c_x4.png"]
    capsys.readouterr()
    assert "none*: no file matches" in fails(capsys, "none*")
    (album / "empty").mkdir()
    assert "empty: no photographs in this folder" in fails(capsys, "empty", "-o", "x")
    assert "out.png: must be a folder, because there are several" in fails(
        capsys, "album", "-o", "out.png"
    )


def test_photographs_of_one_name_do_not_replace_each_other(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one/a.jpg", "one/a.png", "two/a.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)
    assert cli.main(["upscale", "one", "-o", "out"]) == 0
    assert _files(folder / "out") == ["a.png", "a.png.png"]
    message = fails(capsys, "one/a.png", "one/a.jpg", "two/a.jpg", "-o", "new")
    assert "two/a.jpg and one/a.jpg: both results would be new/a.jpg.png" in message


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (["--width", "28"], (28, 18)),
        (["--height", "27"], (42, 27)),
        (["--width", "28", "--height", "90"], (28, 18)),
    ],
)
def test_width_and_height(folder: Path, size: list[str], expected: tuple[int, int]) -> None:
    assert cli.main(["upscale", "photo.jpg", "-o", "out.png", *size]) == 0
    with Image.open(folder / "out.png") as image:
        assert image.size == expected


def test_the_best_of_several_seeds_is_kept(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([3.0, 1.0, 2.0])  # NIQE: less is better
    monkeypatch.setattr(
        "gdpo.metrics.score.score",
        lambda names, image: {names[0]: torch.tensor([next(values)])},
    )
    command = ["upscale", "photo.jpg", "-o", "best.png", "--seed", "5", "--best-of", "3", "--json"]
    assert cli.main(command) == 0
    assert json.loads(capsys.readouterr().out)["seed"] == 6
    assert cli.main(["upscale", "photo.jpg", "-o", "one.png", "--seed", "6"]) == 0
    assert (folder / "best.png").read_bytes() == (folder / "one.png").read_bytes()


def test_colours_alpha_depth_and_exif_survive(folder: Path) -> None:
    photo = np.full((10, 14, 3), (150, 110, 90), np.uint8)
    exif = Image.Exif()
    exif[0x0112], exif[271] = 6, "a maker"
    Image.fromarray(photo).save(folder / "p3.jpg", quality=100, icc_profile=profile(), exif=exif)
    assert cli.main(["upscale", "p3.jpg", "-o", "p3.png", "--color-fix", "adain"]) == 0
    shown = managed(photo, profile()).mean((0, 1))
    with Image.open(folder / "p3.png") as image:
        assert image.size == (40, 56) and image.getexif()[271] == "a maker"
        assert 0x0112 not in image.getexif() and image.info["icc_profile"]
        assert np.abs(np.array(image).mean((0, 1)) - shown).max() < 1
    alpha = np.linspace(0, 255, 14).astype(np.uint8)[None].repeat(10, 0)
    Image.fromarray(np.dstack([photo, alpha])).save(folder / "alpha.png")
    assert cli.main(["upscale", "alpha.png", "-o", "out.png", "--bits", "16"]) == 0
    found = read_picture(folder / "out.png", deep=True)
    assert found.alpha is not None and found.alpha.shape == (40, 56)
    assert np.all(np.diff(found.alpha[20].astype(int)) >= -700) and found.alpha.dtype == np.uint16


def test_before_a_large_result_is_begun_what_it_takes_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["upscale", "photo.jpg", "-o", "out.png", "--tile", "32", "--overwrite"]
    assert cli.main(command) == 0 and capsys.readouterr().err == ""
    small = (folder / "out.png").read_bytes()
    monkeypatch.setattr("tasks.tools.upscale_work.LARGE", 56 * 36 - 1)
    assert cli.main(command) == 0
    said = (
        r"photo\.jpg: 56x36 pixels take about 0 minutes and 0\.0 GB of memory besides the model\n"
    )
    assert re.fullmatch(said, capsys.readouterr().err)
    assert (folder / "out.png").read_bytes() == small


def test_the_base_reaches_the_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def load(
        folders: dict[str, Path], identities: Any, device: str, dtype: torch.dtype, base: Path
    ) -> dict[str, Any]:
        seen.update(folders=folders, device=device, dtype=dtype, base=base)
        return dict.fromkeys(folders, FakeModel)

    monkeypatch.setattr(resolver, "load_models", load)
    command = ["upscale", "photo.jpg", "--base", "elsewhere", "--dtype", "bfloat16"]
    assert cli.main([*command, "--device", "cpu"]) == 0
    assert seen["base"] == Path("elsewhere") and seen["dtype"] == torch.bfloat16
    assert list(seen["folders"].values()) == [Path("models/gdpo")] and seen["device"] == "cpu"


@pytest.mark.processes
def test_the_command_imports_no_metrics_tagger_or_compiler(tmp_path: Path) -> None:
    """Each is a CPU second or more, and one picture by the shipped model needs none of them."""
    Image.new("RGB", (24, 16), "teal").save(tmp_path / "photo.png")
    code = (
        "import sys\nfrom tasks.__main__ import main\n"
        "code = main(['upscale', 'photo.png', '-o', 'large.png'])\n"
        "print(code, {'gdpo.metrics.score', 'gdpo.tagger.ram', 'torch._inductor.compile_fx', "
        "'pyiqa'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "0 set()"
    assert read_picture(tmp_path / "large.png").rgb.shape == (64, 96, 3)
