"""Stage degrade on a folder of small photographs."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML

from gdpo.config import Config
from gdpo.data.degrade import low_resolution
from gdpo.data.shards import Shards
from gdpo.images import write_png
from gdpo.training import Hooks, Stopped
from tasks import degrade

ROOT = Path(__file__).parents[2]


def _config(**changes) -> Config:
    values = YAML(typ="safe").load(ROOT / "params.yaml")
    cut = {"train": "photos/train", "evaluation": "photos/held", "crop": 32, "stride": 16, "evaluation_crop": 32}
    values["degrade"] = {**cut, "max_failures": 0.0, "shard_mb": 0.02, **changes}
    return Config.model_validate(values)


def _photo(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(0, 256, (height // 8, width // 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)


@pytest.fixture
def root(tmp_path) -> Path:
    """Two training photographs and one held out."""
    write_png(tmp_path / "photos/train/a.png", _photo(0))
    write_png(tmp_path / "photos/train/b.png", _photo(1))
    write_png(tmp_path / "photos/held/c.png", _photo(2, 72, 72))
    return tmp_path


def _hashes(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*.*")}


def test_pairs_of_both_splits(root):
    """Sliding windows and centred tiles, LR at a quarter, the enlargement stated, replayable from what is stored."""
    degrade.run(_config(), root, Hooks())
    train, held = Shards(root / "data/shards/train"), Shards(root / "data/shards/evaluation")
    assert len(train) == 2 * 2 * 3 and len(set(train.ids)) == 12
    assert held.ids == ["c-00", "c-01", "c-10", "c-11"]
    photos = {"a": _photo(0), "b": _photo(1), "c": _photo(2, 72, 72)}
    for pair in [*train, *held]:
        top, left, height, width = pair.box
        np.testing.assert_array_equal(pair.hr, photos[pair.source][top : top + height, left : left + width])
        assert pair.hr.shape == (32, 32, 3) and pair.lr.shape == (8, 8, 3) and 0 <= pair.detail_share <= 1
        np.testing.assert_array_equal(low_resolution(pair.hr.astype(np.float32) / 255, pair.degradation), pair.lr)
    assert {pair.degradation["enlarge"] for pair in held} == {"bicubic"}
    assert {pair.degradation["enlarge"] for pair in train} > {"bicubic"}
    report = json.loads((root / "reports/degrade/report.json").read_text())
    assert report["train"] == {"pairs": 12, "photographs": {"used": 2}, "skipped": []}
    assert report["evaluation"]["pairs"] == 4


def test_same_bytes_again_and_patches_do_not_depend_on_their_neighbours(root):
    """A second run repeats every byte; another photograph changes no pair of the others; another seed does."""
    degrade.run(_config(), root, Hooks())
    first = _hashes(root / "data")
    before = {pair.id: pair.lr.tobytes() for pair in Shards(root / "data/shards/train")}
    degrade.run(_config(), root, Hooks())
    assert _hashes(root / "data") == first
    write_png(root / "photos/train/aa.png", _photo(3))
    degrade.run(_config(), root, Hooks())
    after = {pair.id: pair.lr.tobytes() for pair in Shards(root / "data/shards/train")}
    assert len(after) == 18 and before.items() <= after.items()
    degrade.run(_config().model_copy(update={"seed": 1}), root, Hooks())
    other = {pair.id: pair.lr.tobytes() for pair in Shards(root / "data/shards/train")}
    assert all(other[name] != lr for name, lr in before.items())


def test_bad_photographs_are_reported_or_stop_the_stage(root):
    """Below the allowed share they are listed; above it the stage fails and leaves no shard behind."""
    (root / "photos/train/bad.jpg").write_bytes(b"half a photograph")
    write_png(root / "photos/train/twin.png", _photo(0))
    with pytest.raises(ValueError, match=r"bad\.jpg.*degrade\.max_failures"):
        degrade.run(_config(), root, Hooks())
    assert [p.name for p in (root / "data/shards").iterdir()] == ["evaluation"]
    degrade.run(_config(max_failures=0.3), root, Hooks())
    report = json.loads((root / "reports/degrade/report.json").read_text())["train"]
    assert report["photographs"] == {"used": 2, "duplicate": 1, "unreadable": 1}
    assert [row["name"] for row in report["skipped"]] == ["bad", "twin"]


def test_the_same_folder_for_both_is_refused(root):
    """No model is evaluated on what it was trained on."""
    with pytest.raises(ValueError, match="no photograph in common"):
        degrade.run(_config(evaluation="photos/train"), root, Hooks())
    write_png(root / "photos/held/copy.png", _photo(1))
    with pytest.raises(ValueError, match=r"b\.png: is the evaluation photograph copy too"):
        degrade.run(_config(), root, Hooks())


def test_photographs_without_a_whole_patch_are_too_small(root):
    """The message has both sizes."""
    with pytest.raises(ValueError, match=r"c\.png: 72x72 pixels, a patch needs 96x96"):
        degrade.run(_config(evaluation_crop=96), root, Hooks())


def test_stopping_keeps_what_was_there(root):
    """SIGTERM in the middle: `Stopped`, the old shards untouched, nothing half-written."""
    degrade.run(_config(), root, Hooks())
    before = _hashes(root / "data")
    calls = []
    hooks = Hooks(should_stop=lambda: calls.append(1) is None and len(calls) > 1)
    with pytest.raises(Stopped):
        degrade.run(_config().model_copy(update={"seed": 5}), root, hooks)
    after = _hashes(root / "data")
    assert {k: v for k, v in after.items() if "train" in k} == {k: v for k, v in before.items() if "train" in k}
    assert after.keys() == before.keys()
