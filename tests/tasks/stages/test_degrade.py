"""Stage degrade on a folder of small photographs: the pairs, and that parts and processes change
none of them.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from gdpo.data.degrade import low_resolution
from gdpo.data.shards import Shards
from gdpo.hooks import Hooks, Stopped
from gdpo.images import write_png
from tasks.stages import degrade, index
from tests.tasks.photos import config, files, photo, rows, write


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two training photographs and one held out."""
    return write(tmp_path)


def _run(root: Path, **changes: object) -> None:
    settings = config(**changes)
    index.run(settings, root, Hooks())
    degrade.run(settings, root, Hooks())


def test_pairs_of_both_splits(root: Path) -> None:
    """Sliding windows and centred tiles, LR at a quarter, the enlargement stated, replayable from
    what is stored.
    """
    _run(root)
    train, held = Shards(root / "data/shards/train"), Shards(root / "data/shards/evaluation")
    assert len(train) == 2 * 2 * 3 and len(set(train.ids)) == 12
    assert held.ids == ["c-00", "c-01", "c-10", "c-11"]
    photos = {"a": photo(0), "b": photo(1), "c": photo(1000, 72, 72)}
    for pair in [*train, *held]:
        top, left, height, width = pair.box
        np.testing.assert_array_equal(
            pair.hr, photos[pair.source][top : top + height, left : left + width]
        )
        assert (
            pair.hr.shape == (32, 32, 3)
            and pair.lr.shape == (8, 8, 3)
            and 0 <= pair.detail_share <= 1
        )
        np.testing.assert_array_equal(
            low_resolution(pair.hr.astype(np.float32) / 255, pair.degradation), pair.lr
        )
    assert {pair.degradation["enlarge"] for pair in held} == {"bicubic"}
    assert {pair.degradation["enlarge"] for pair in train} > {"bicubic"}
    assert json.loads((root / "reports/degrade/00/report.json").read_text()) == {
        "photographs": 2,
        "pairs": 12,
    }
    assert json.loads((root / "reports/degrade/evaluation/report.json").read_text()) == {
        "photographs": 1,
        "pairs": 4,
    }


def test_same_bytes_again_and_patches_do_not_depend_on_their_neighbours(root: Path) -> None:
    """A second run repeats every byte; another photograph changes no pair of the others; another
    version does.
    """
    _run(root)
    first, before = files(root / "data"), rows(root / "data/shards/train")
    _run(root)
    assert files(root / "data") == first
    write_png(root / "photos/train/aa.png", photo(3))
    _run(root)
    after = rows(root / "data/shards/train")
    assert len(after) == 18 and before.items() <= after.items()
    _run(root, version=1)
    other = rows(root / "data/shards/train")
    assert all(other[name] != sha256 for name, sha256 in before.items())


def test_another_epoch_degrades_the_same_patches_anew(root: Path) -> None:
    """Ids, crops and HR bytes stay, every LR image is another one; the first epoch again gives the
    first bytes.
    """
    _run(root)
    before, first = (
        rows(root / "data/shards/train"),
        {pair.id: pair for pair in Shards(root / "data/shards/train")},
    )
    _run(root, epoch=1)
    for pair in Shards(root / "data/shards/train"):
        np.testing.assert_array_equal(pair.hr, first[pair.id].hr)
        assert pair.box == first[pair.id].box and pair.lr.tobytes() != first[pair.id].lr.tobytes()
    _run(root)
    assert rows(root / "data/shards/train") == before


@pytest.mark.parametrize("count", [2, 5])
def test_the_union_does_not_depend_on_the_number_of_parts(tmp_path: Path, count: int) -> None:
    """1, 2 and 5 parts, in any order, one of them with no photograph: the same rows by hash, in the
    same order.
    """
    write(tmp_path, 4)
    _run(tmp_path)
    whole, order = (
        rows(tmp_path / "data/shards/train"),
        Shards(tmp_path / "data/shards/train").order(0, 0),
    )
    ids = Shards(tmp_path / "data/shards/train").ids
    # DVC removes outputs of stages that no longer exist.
    shutil.rmtree(tmp_path / "data/shards/train/00")
    settings = config(parts=[f"part-{i}" for i in range(count)])
    index.run(settings, tmp_path, Hooks())
    for part in reversed(settings.degrade.parts):
        degrade.run(settings, tmp_path, Hooks(), part)
    assert rows(tmp_path / "data/shards/train") == whole and len(whole) == 24
    counts = [
        json.loads(path.read_text())
        for path in (tmp_path / "reports/degrade").glob("part-*/report.json")
    ]
    assert sum(one["pairs"] for one in counts) == 24
    if count == 5:
        assert {"photographs": 0, "pairs": 0} in counts
    union = Shards(tmp_path / "data/shards/train")
    assert union.ids == ids and union.order(0, 0) == order


def test_the_first_of_a_source_resized(tmp_path: Path) -> None:
    """A second source has its own names; `first` goes by name; `resize` makes every photograph one
    size.
    """
    write(tmp_path)
    for i in range(3):
        write_png(tmp_path / f"faces/FFHQ/{i:05d}.png", photo(10 + i, 96, 128))
    _run(
        tmp_path, train=[{"path": "photos/train"}, {"path": "faces/FFHQ", "first": 2, "resize": 32}]
    )
    pairs = list(Shards(tmp_path / "data/shards/train"))
    assert {pair.source for pair in pairs} == {"a", "b", "FFHQ__00000", "FFHQ__00001"}
    assert sum(pair.source == "FFHQ__00000" for pair in pairs) == 1  # 32 x 43


def test_a_photograph_that_changed_since_it_was_indexed_is_named(root: Path) -> None:
    """Also one that is gone, and a list that is."""
    index.run(config(), root, Hooks())
    write_png(root / "photos/train/b.png", photo(5))
    with pytest.raises(
        ValueError, match=r"b\.png: has changed since it was indexed; run the index stage again"
    ):
        degrade.run(config(), root, Hooks(), "00")
    (root / "photos/train/b.png").unlink()
    with pytest.raises(ValueError, match=r"b\.png: not a readable photograph"):
        degrade.run(config(), root, Hooks(), "00")
    (root / "data/photos/00.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"00\.parquet: damaged or missing list of photographs"):
        degrade.run(config(), root, Hooks(), "00")
    with pytest.raises(
        ValueError, match=r"degrade\.parts has no part '07'; there is 00, evaluation"
    ):
        degrade.run(config(), root, Hooks(), "07")
    assert not (root / "data/shards/train/00").exists()


def test_stopping_keeps_what_was_there(root: Path) -> None:
    """SIGTERM in the middle: `Stopped`, the old shards untouched, nothing half-written."""
    _run(root)
    before = files(root)
    calls: list[int] = []
    hooks = Hooks(should_stop=lambda: calls.append(1) is None and len(calls) > 1)
    with pytest.raises(Stopped):
        degrade.run(config(shard_mb=0.001, version=5), root, hooks)
    after = files(root)
    assert {k: v for k, v in after.items() if "evaluation" in k} == {
        k: v for k, v in before.items() if "evaluation" in k
    }
    assert {k.partition("/")[0] for k in after} == {k.partition("/")[0] for k in before}


def test_so_many_pairs_as_asked_for_whatever_the_parts(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The windows with the lowest ids, in any number of parts; a greater number keeps all."""
    monkeypatch.setattr(degrade, "check_pairs", lambda *_: None)

    def pairs(**changes: object) -> dict[str, str]:
        shutil.rmtree(root / "data", ignore_errors=True)
        settings = config(**changes)
        index.run(settings, root, Hooks())
        for part in settings.degrade.parts:
            degrade.run(settings, root, Hooks(), part)
        return rows(root / "data/shards/train")

    every = pairs()
    assert pairs(pairs=5, parts=["00", "01", "02"]) == {
        id_: every[id_] for id_ in sorted(every)[:5]
    }
    assert pairs(pairs=100) == every


def test_ready_made_pairs_are_cut_in_both_images(root: Path) -> None:
    low = {name: photo(50 + i, 16, 16)[:12] for i, name in enumerate("ab")}
    for name, pixels in low.items():
        write_png(root / f"photos/lr/{name}.png", pixels)
    source = {"path": "photos/train", "lr": "photos/lr"}
    _run(root, train=[source])
    pairs = Shards(root / "data/shards/train")
    assert len(pairs) == 12
    for pair in pairs:
        top, left = pair.box.top // 4, pair.box.left // 4
        np.testing.assert_array_equal(pair.lr, low[pair.source][top : top + 8, left : left + 8])
        assert pair.degradation == {"scale": 4, "enlarge": "bicubic"}
    write_png(root / "photos/lr/a.png", low["b"])
    with pytest.raises(ValueError, match=r"lr/a.png: has changed since it was indexed"):
        degrade.run(config(train=[source]), root, Hooks())


def test_pairs_that_do_not_fit_are_named(root: Path) -> None:
    source = {"path": "photos/train", "lr": "photos/lr"}
    write_png(root / "photos/lr/a.png", photo(1, 16, 16))
    with pytest.raises(ValueError, match=r"lr/a.png: 16x16 pixels, of an HR image of 64x48; a 4th"):
        _run(root, train=[source])
    (root / "photos/lr/a.png").unlink()
    write_png(root / "photos/lr/b.png", photo(1, 16, 16)[:12])
    with pytest.raises(ValueError, match=r"lr/a.png"):
        _run(root, train=[source])
    for wrong in ({"resize": 64}, {"path": "s3://bucket/hr"}):
        with pytest.raises(ValueError, match="lr goes with a folder"):
            config(train=[{**source, **wrong}])
    with pytest.raises(ValueError, match="stride is 18; with LR images"):
        config(train=[source], stride=18)


def test_without_held_out_photographs_their_shards_are_empty(root: Path) -> None:
    with pytest.raises(ValueError, match=r"evaluate.benchmarks has sample"):
        config(evaluation=[])
    settings = config()
    empty = settings.model_copy(
        update={"degrade": settings.degrade.model_copy(update={"evaluation": []})}
    )
    index.run(empty, root, Hooks())
    degrade.run(empty, root, Hooks())
    assert rows(root / "data/shards/evaluation") == {}
    assert (root / "reports/data-docs/degrade/evaluation").is_dir()
    assert len(Shards(root / "data/shards/train")) == 12
