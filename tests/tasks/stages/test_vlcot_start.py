"""RealSR-R1 from a model that is there: going on from it, and exporting it."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from gdpo.hooks import Hooks
from gdpo.vlcot.folder import load_model
from gdpo.vlcot.start import initial_model
from gdpo.vlcot.trunk import Trunk
from tasks.__main__ import main
from tasks.stages import vlcot_coldstart, vlcot_tokenizer
from tests import tiny
from tests.tasks.vlcot_root import settings


@pytest.fixture
def root(vlcot_finished: Path, tmp_path: Path) -> Path:
    """A copy of a root after all stages, with a model to begin with and without its results."""
    copy = Path(shutil.copytree(vlcot_finished, tmp_path / "root", symlinks=True))
    (copy / "models/vlcot/vlcot").rename(copy / "first")
    shutil.rmtree(copy / "models/vlcot")
    return copy


def test_a_training_goes_on_from_a_model(root: Path) -> None:
    config = settings(vlcot={"init": "first"}, coldstart={"lr": 1e-9})
    vlcot_tokenizer.run(config, root, Hooks())
    assert tiny.tree(root / "models/vlcot/tokenizer") == tiny.tree(root / "first/tokenizer")
    assert (root / "reports/vlcot/tokenizer/metrics.jsonl").read_text() == ""
    vlcot_coldstart.run(config, root, Hooks())
    before, after = load_model(root / "first"), load_model(root / "models/vlcot/coldstart")
    for a, b in zip(before.trunk.parameters(), after.trunk.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
    assert after.card.label == "RealSR-R1 cold start"


def test_the_folder_of_the_base_means_new_weights() -> None:
    """DVC depends on what `vlcot.init` names, and there must always be a folder to compare."""
    assert initial_model(settings()) is None
    assert initial_model(settings(vlcot={"init": settings().model.base})) is None
    assert initial_model(settings(vlcot={"init": "first"})) == "first"


def test_a_training_cannot_start_from_what_it_writes() -> None:
    with pytest.raises(ValueError, match=r"vlcot.init is models/vlcot/coldstart, .* move"):
        settings(vlcot={"init": "models/vlcot/coldstart"})


def test_a_model_of_another_shape_is_named(root: Path) -> None:
    vlcot_tokenizer.run(settings(vlcot={"init": "first"}), root, Hooks())
    for key, value in {"layers": 1, "evidence": False}.items():
        other = settings(vlcot={"init": "first", key: value})
        with pytest.raises(ValueError, match=rf"vlcot.{key} must be .*, that of vlcot.init"):
            vlcot_coldstart.run(other, root, Hooks())
    with pytest.raises(ValueError, match="nowhere"):
        vlcot_tokenizer.run(settings(vlcot={"init": "nowhere"}), root, Hooks())


def test_an_export_loads_in_transformers(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["export", str(root / "first"), "-o", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    model, found = load_model(root / "first"), Trunk.from_pretrained(out)
    assert found.evidence is not None
    for a, b in zip(model.trunk.parameters(), found.parameters(), strict=True):
        assert torch.equal(a, b)
    ids = torch.arange(6)[None]
    with torch.no_grad():
        torch.testing.assert_close(found.eval()(ids), model.trunk(ids))
    assert json.loads((out / "model.json").read_text())["kind"] == "vlcot"
    assert tiny.tree(out / "tokenizer") == tiny.tree(root / "first/tokenizer")
    assert "from_pretrained" in (out / "README.md").read_text()
    assert main(["export", str(root / "first"), "-o", str(out)]) == 1
    assert "is there already" in capsys.readouterr().err
    lora = ["export", str(root / "first"), "-o", str(tmp_path / "x"), "--format", "lora"]
    assert main(lora) == 1 and "has no adapters" in capsys.readouterr().err
