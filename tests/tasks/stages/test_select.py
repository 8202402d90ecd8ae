"""Stage select on a few shards, with a stand-in for the score."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ruamel.yaml import YAML

from gdpo.config import Config
from gdpo.data.selection import perceptual_hash
from gdpo.data.shards import Box, Pair, write_shards
from gdpo.hooks import Hooks, Stopped
from tasks.files.photographs import SCHEMA
from tasks.stages import select
from tests import tiny

ROOT = Path(__file__).parents[3]


def _config(**changes) -> Config:
    values = YAML(typ="safe").load(ROOT / "tests/params.yaml")
    values["select"] = {
        "count": 3,
        "score": "niqe",
        "min_detail": 0.1,
        "max_per_photo": 10,
        **changes,
    }
    return Config.model_validate(values)


def _pair(i: int) -> Pair:
    """Pair i: brightness falls with i, so the stand-in prefers later ones; pairs 0 and 1 are
    flat.
    """
    rng = np.random.default_rng(i)
    hr = np.kron(rng.integers(0, 100, (8, 8, 3)), np.ones((4, 4, 1))).astype(np.uint8) + np.uint8(
        100 - 10 * i
    )
    return Pair(
        f"p{i}", f"photo{i % 2}", Box(0, 0, 32, 32), hr, hr[::4, ::4], {}, 0.0 if i < 2 else 0.5
    )


def write_photos(root: Path, part: str, names: list[str], content: str = "") -> None:
    """The list that `index` leaves; a photograph's content hash is that of its name, or of
    `content`.
    """
    (root / "data/photos").mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "name": name,
            "source": "photos",
            "file": f"{name}.png",
            "resize": None,
            "height": 32,
            "width": 32,
            "sha256": hashlib.sha256((content or name).encode()).hexdigest(),
        }
        for name in names
    ]
    pq.write_table(
        pa.Table.from_pylist(rows, schema=SCHEMA), root / "data/photos" / f"{part}.parquet"
    )


def write_inputs(root: Path) -> None:
    """What the stages before leave: eight training pairs of two photographs, one held-out pair."""
    write_shards(root / "data/shards/train", (_pair(i) for i in range(8)), 0.01)
    held_out = Pair("held-00", "held", Box(0, 0, 32, 32), _pair(9).hr, _pair(9).lr, {}, 0.5)
    write_shards(root / "data/shards/evaluation", [held_out], 1.0)
    write_photos(root, "00", ["photo0", "photo1"])
    write_photos(root, "evaluation", ["held"])


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """Eight pairs; the score is the mean brightness, lower is better."""
    write_inputs(tmp_path)
    monkeypatch.setattr(select, "BATCH", 3)
    monkeypatch.setattr(select, "higher_is_better", lambda name: False)
    monkeypatch.setattr(
        select, "score", lambda names, image: {names[0]: image.double().mean((1, 2, 3))}
    )
    return tmp_path


def test_selection_is_written(root):
    """References in rank order, a score and a reason for all, counts in the report."""
    logged: list[tuple[int, dict[str, float]]] = []
    select.run(_config(), root, Hooks(log=lambda step, values: logged.append((step, values))))
    table = pq.read_table(root / "data/selected/scores.parquet").sort_by("id").to_pydict()
    assert table["id"] == [f"p{i}" for i in range(8)]
    expected = [torch.from_numpy(_pair(i).hr).double().div(255).mean().item() for i in range(8)]
    np.testing.assert_allclose(table["score"], expected, rtol=1e-6)
    assert table["reason"][:2] == ["too little detail"] * 2
    manifest = pq.read_table(root / "data/selected/manifest.parquet").to_pydict()
    best = sorted(range(2, 8), key=lambda i: expected[i])[:3]
    assert manifest["id"] == [f"p{i}" for i in best] and manifest["detail_share"] == [0.5] * 3
    report = json.loads((root / "data/selected/report.json").read_text())
    assert report["reasons"] == {"count is reached": 3, "selected": 3, "too little detail": 2}
    assert (
        report["selected"] == 3
        and report["note"] == ""
        and sum(report["photographs"].values()) == 3
    )
    assert [step for step, _ in logged] == [3, 6, 8]
    assert not (root / "work/select/scored").exists()
    docs = root / "reports/data-docs/select"
    assert {path.name for path in docs.iterdir()} == {"index.html", "manifest.html", "scores.html"}


def test_fewer_than_asked_for_are_taken_and_said(root):
    """Six pass, twenty were asked for."""
    select.run(_config(count=20), root, Hooks())
    report = json.loads((root / "data/selected/report.json").read_text())
    assert report["selected"] == 6 and "6 of the 20" in report["note"]


def test_none_fit_names_the_key_and_writes_nothing(root):
    """The old selection would stay; here there was none."""
    with pytest.raises(ValueError, match=r"select\.min_detail"):
        select.run(_config(min_detail=0.9), root, Hooks())
    assert not (root / "data/selected").exists()


def test_missing_shards_and_stopping(root, tmp_path):
    """One names the folder, the other leaves no output behind."""
    with pytest.raises(Stopped):
        select.run(_config(), root, Hooks(should_stop=lambda: True))
    assert sorted(p.name for p in (root / "data").iterdir()) == ["photos", "shards"]
    with pytest.raises(ValueError, match="no shards here"):
        select.run(_config(), tmp_path / "elsewhere", Hooks())


def _run(root: Path, stop_after: int | None = None, **changes) -> list[int]:
    """Run the stage; returns the numbers of finished patches it logged. stop_after: of these, then
    stop.
    """
    logged: list[int] = []
    stop = lambda: stop_after is not None and len(logged) >= stop_after  # noqa: E731
    hooks = Hooks(log=lambda step, _: logged.append(step), should_stop=stop)
    if stop_after is None:
        select.run(_config(**changes), root, hooks)
    else:
        with pytest.raises(Stopped):
            select.run(_config(**changes), root, hooks)
    return logged


def test_a_stopped_run_goes_on_where_it_was(root, tmp_path_factory):
    """And leaves what an uninterrupted one does."""
    whole = tmp_path_factory.mktemp("whole")
    write_inputs(whole)
    assert _run(whole) == [3, 6, 8]
    assert _run(root, stop_after=2) == [3, 6]
    assert (root / "work/select/scored/000000000.parquet").is_file()
    assert _run(root) == [8]
    assert tiny.tree(root / "data/selected", root / "reports") == tiny.tree(
        whole / "data/selected", whole / "reports"
    )


def test_a_killed_run_loses_what_it_had_not_kept(root, monkeypatch):
    """It ends in the middle of the third batch, having kept the two before."""

    class Killed(BaseException):
        """What no `except` or `finally` of the stage acts on."""

    def hash_or_die(image: np.ndarray) -> int:
        hashed.append(1)
        if len(hashed) == 8:
            raise Killed
        return perceptual_hash(image)

    hashed: list[int] = []
    monkeypatch.setattr(select, "KEEP_EVERY", 3)
    monkeypatch.setattr(select, "perceptual_hash", hash_or_die)
    with pytest.raises(Killed):
        _run(root)
    assert _run(root) == [8] and len(hashed) == 8 + 2


@pytest.mark.parametrize(
    ("change", "logged"), [("metric", [3, 6, 8]), ("shards", [3, 6, 7]), ("code", [3, 6, 8])]
)
def test_what_was_kept_for_other_inputs_is_not_used(root, monkeypatch, change, logged):
    """Another file behind the metric, another set of pairs, or other code."""
    _run(root, stop_after=1)
    if change == "metric":
        monkeypatch.setattr(
            select, "versions", lambda names: dict.fromkeys(names, "niqe.mat sha256 0123")
        )
    elif change == "code":
        monkeypatch.setattr("tasks.run.fingerprint.made_by", lambda _: {"code": "another"})
    else:
        write_shards(root / "data/shards/train", (_pair(i) for i in range(1, 8)), 0.01)
    assert _run(root) == logged


def silently_damaged(path: Path) -> bytes:
    """The file with a bit flipped so that Parquet reads other values from it."""
    whole, table = path.read_bytes(), pq.read_table(path)
    for place in range(4, len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 2
        try:
            if not pq.read_table(pa.BufferReader(bytes(flipped))).equals(table):
                return bytes(flipped)
        except (OSError, pa.ArrowException):
            continue
    raise AssertionError("every flipped bit is noticed")


def test_a_damaged_file_of_an_interrupted_run_is_named(root):
    """Rather than scored again in silence."""
    _run(root, stop_after=1)
    path = root / "work/select/scored/000000000.parquet"
    flipped = silently_damaged(path)
    for damaged in (b"PAR1", flipped):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"000000000\.parquet: unreadable .* delete"):
            _run(root)


def test_difficulty_scores_the_results_of_naosd(tiny_base, tmp_path):
    """The worst half by PSNR, through a model folder, in batches of the rollout's size."""
    root = tiny.workplace(tmp_path / "root", tiny_base, count=6)
    shutil.rmtree(root / "data/selected")
    held_out = tiny.pair(9)
    write_shards(root / "data/shards/evaluation", [held_out], 1.0)
    write_photos(root, "00", ["made"])
    write_photos(root, "evaluation", ["held"])
    (root / "models").mkdir()
    (root / "models/naosd").symlink_to(tiny_base)
    settings = {"rule": "difficulty", "worst": 0.5, "count": None, "min_hash_distance": 0}
    select.run(tiny.settings(select=settings, rollout={"batch": 4}), root, Hooks())
    table = pq.read_table(root / "data/selected/scores.parquet").to_pylist()
    worst = sorted(table, key=lambda row: row["score"])[:3]
    manifest = pq.read_table(root / "data/selected/manifest.parquet").to_pylist()
    assert [row["id"] for row in manifest] == [row["id"] for row in worst]
    assert len({row["score"] for row in table}) == 6
    assert json.loads((root / "data/selected/report.json").read_text())["metric"] == "psnr_y"


def test_a_photograph_of_the_evaluation_fails_the_stage(root):
    """By its content, under another name; the selection there was stays, the page says what
    failed.
    """
    _run(root)
    before = tiny.tree(root / "data/selected", root / "reports")
    write_photos(root, "evaluation", ["held"], content="photo1")
    with pytest.raises(
        ValueError, match=r"photograph_is_new.*fails in 2 of 3 rows, such as .*source photo1"
    ):
        _run(root)
    assert tiny.tree(root / "data/selected", root / "reports") == before
    assert "photograph_is_new" in (root / "work/select/data-docs/manifest.html").read_text()
    assert [path.name for path in (root / "data").iterdir() if path.name.startswith(".")] == []
