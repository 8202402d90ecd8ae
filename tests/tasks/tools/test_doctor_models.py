"""`gdpo-sr doctor --models`: a flipped byte is found before a model is used."""

import json
from pathlib import Path

import pytest

from gdpo.files import shipped
from gdpo.model.card import IDENTITIES
from gdpo.model.checkpoints import read_adapters, read_folder, save_model
from tasks import __main__ as cli


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model that ships, written anew, so that the test may damage it."""
    monkeypatch.chdir(tmp_path)
    base = shipped("assets/tiny-sd")
    adapters = read_adapters(base / "naosd")
    folder = tmp_path / "models/own"
    save_model(folder, base, adapters, IDENTITIES["naosd"], t_add=250, t_diff=100, prompt="")
    return folder


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def test_whole_models_exit_0(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--models"]) == 0
    assert capsys.readouterr().out == "1 models, nothing damaged\n"
    assert cli.main(["doctor", "--models", str(shipped("assets/tiny-sd")), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["damaged"] == []


def test_a_flipped_byte_is_found_and_the_model_is_not_loaded(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(model / "naosd.safetensors")
    assert cli.main(["doctor", "--models"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "naosd.safetensors: damaged: its SHA-256 is " in lines[0]
    assert lines[1:] == ["1 models, 1 damaged"]
    for read in (read_adapters, read_folder):
        with pytest.raises(ValueError, match=r"own/naosd\.safetensors: damaged"):
            read(model)


def test_a_card_of_an_earlier_version_loads_and_is_named(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = json.loads((model / "model.json").read_text())
    del card["adapters"][0]["sha256"]
    (model / "model.json").write_text(json.dumps(card))
    assert len(read_adapters(model)) == 1
    assert cli.main(["doctor", "--models"]) == 1
    assert "names no SHA-256" in capsys.readouterr().out


def test_no_model_is_an_error(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model.parent / "empty").mkdir()
    assert cli.main(["doctor", "--models", "models/empty"]) == 1
    assert "models/empty: no model here" in capsys.readouterr().err
