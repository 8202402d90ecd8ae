"""`gdpo-sr import-weights` and `gdpo-sr export`, from released files to folders that load."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from gdpo.model.naosd import NAOSD
from gdpo.tagger.tagger import Tagger
from tasks.__main__ import main
from tests.gdpo.released.released_files import fabricate, output, write_base
from tests.gdpo.tagger import released_tagger


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    write_base(root / "base")
    fabricate(root / "naosd.pkl", root / "base", "naosd")
    return root


@pytest.fixture(autouse=True)
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder that has base/ and naosd.pkl."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GDPO_DEBUG", raising=False)


def run(line: str) -> int:
    return main(line.split())


def test_there_and_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("import-weights naosd.pkl -o models/naosd --base base") == 0
    out, err = capsys.readouterr()
    assert out == "models/naosd: made from naosd.pkl, over base\n"
    assert "gdpo-sr: note: left out 20 modules of the VAE decoder's adapter" in err
    assert run("export models/naosd -o merged") == 0
    fabricate(Path("gdpo.pkl"), Path("merged"), "gdpo")
    assert run("import-weights gdpo.pkl -o models/gdpo --naosd models/naosd") == 0
    assert run("import-weights gdpo.pkl -o models/short --base merged") == 0
    assert run("import-weights merged -o models/same --base base") == 0
    assert run("export models/gdpo -o lora --format lora") == 0
    assert Path("lora/pytorch_lora_weights.safetensors").is_file()
    capsys.readouterr()
    assert run("export models/gdpo -o out --format merged") == 0
    assert capsys.readouterr().out.startswith("out: merged in fp32")
    UNet2DConditionModel.from_pretrained("out/unet")
    AutoencoderKL.from_pretrained("out/vae")
    images = [
        output(NAOSD.from_pretrained(name)) for name in ("models/gdpo", "models/short", "out")
    ]
    assert all(torch.allclose(image, images[0], atol=1e-5) for image in images)


def test_the_base_of_params_yaml_is_the_default(root: Path) -> None:
    text = (root / "tests/params.yaml").read_text().replace("base: assets/tiny-sd", "base: base")
    Path("params.yaml").write_text(text)
    assert run("import-weights naosd.pkl -o models/naosd") == 0
    assert NAOSD.from_pretrained("models/naosd").t_add == 250


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("import-weights nothing.pkl -o x --base base", "nothing.pkl: no such file or folder"),
        ("import-weights naosd.pkl -o x --base nothing", "nothing: no such model folder"),
        (
            "import-weights naosd.pkl -o base --base base",
            "base: already exists; remove it or choose another --output",
        ),
        (
            "import-weights naosd.pkl -o x --naosd base",
            "base/model.json: no such file; a folder in diffusers layout goes to",
        ),
        ("export nothing -o x", "nothing: no such model folder"),
        (
            "export base -o x --format lora",
            "base/model.json: no such file, so there are no adapters to export",
        ),
    ],
)
def test_a_failure_is_one_line_and_leaves_nothing(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(line) == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("gdpo-sr: ") and error.count("\n") == 1
    assert sorted(path.name for path in Path().iterdir()) == ["base", "naosd.pkl"]


def test_the_tagger_of_rams_and_dapes_files(capsys: pytest.CaptureFixture[str]) -> None:
    released_tagger.write(Path("ckp"))
    assert (
        run("import-weights ckp/ram_swin_large_14m.pth -o models/tagger --dape ckp/DAPE.pth") == 0
    )
    out, err = capsys.readouterr()
    assert out == "models/tagger: tagger made from ckp/ram_swin_large_14m.pth and ckp/DAPE.pth\n"
    assert not [line for line in err.splitlines() if line.startswith("gdpo-sr")]
    assert Tagger.from_folder("models/tagger", dape=True).names == released_tagger.NAMES
    Path("ckp/ram_tag_list.txt").rename("names.txt")
    assert run("import-weights ckp/ram_swin_large_14m.pth -o models/plain --tags names.txt") == 0
    assert "gdpo-sr: note: without DAPE this folder tags HR images only" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ckp/ram_swin_large_14m.pth -o x --base base", "is RAM's, which belongs on no model"),
        ("ckp/DAPE.pth -o x", "ckp/DAPE.pth: is DAPE's; give it to --dape"),
        (
            "naosd.pkl -o x --dape ckp/DAPE.pth",
            "naosd.pkl: is not RAM's checkpoint, to which --dape",
        ),
        ("ckp/ram_swin_large_14m.pth -o x --dape none.pth", "none.pth: no such file"),
        ("ckp/ram_swin_large_14m.pth -o base", "base: already exists"),
        ("ckp/ram_tag_list.txt -o x", "ckp/ram_tag_list.txt: "),
    ],
)
def test_what_does_not_fit_the_tagger_is_one_line(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    released_tagger.write(Path("ckp"))
    assert run(f"import-weights {line}") == 1
    error = [text for text in capsys.readouterr().err.splitlines() if text.startswith("gdpo-sr: ")]
    assert len(error) == 1 and message in error[0] and not Path("x").exists()


def test_a_copy_that_fails_half_way_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("import-weights naosd.pkl -o models/naosd --base base") == 0

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "tokenizer")

    monkeypatch.setattr(shutil, "copytree", full)
    assert run("export models/naosd -o out") == 1
    assert sorted(path.name for path in Path().iterdir()) == ["base", "models", "naosd.pkl"]


def test_an_output_of_a_stage_is_said_to_be_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    Path("dvc.yaml").touch()
    assert run("import-weights naosd.pkl -o released --base base") == 0
    assert "pretrain.init" not in capsys.readouterr().err
    assert run("import-weights naosd.pkl -o models/naosd --base base") == 0
    assert "a stage of dvc.yaml writes models/naosd" in capsys.readouterr().err
