"""Stage select on a few shards, with a stand-in for the score."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from ruamel.yaml import YAML

from gdpo.config import Config
from gdpo.data.shards import Box, Pair, write_shards
from gdpo.training import Hooks, Stopped
from tasks import select

ROOT = Path(__file__).parents[2]


def _config(**changes) -> Config:
    values = YAML(typ="safe").load(ROOT / "params.yaml")
    values["select"] = {"count": 3, "score": "niqe", "min_detail": 0.1, "max_per_photo": 10, **changes}
    return Config.model_validate(values)


def _pair(i: int) -> Pair:
    """Pair i: brightness falls with i, so the stand-in prefers later ones; pairs 0 and 1 are flat."""
    rng = np.random.default_rng(i)
    hr = np.kron(rng.integers(0, 100, (8, 8, 3)), np.ones((4, 4, 1))).astype(np.uint8) + np.uint8(100 - 10 * i)
    return Pair(f"p{i}", f"photo{i % 2}", Box(0, 0, 32, 32), hr, hr[::4, ::4], {}, 0.0 if i < 2 else 0.5)


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """Eight pairs; the score is the mean brightness, lower is better."""
    write_shards(tmp_path / "data/shards/train", (_pair(i) for i in range(8)), 0.01)
    monkeypatch.setattr(select, "BATCH", 3)
    monkeypatch.setattr(select, "check_available", lambda names: None)
    monkeypatch.setattr(select, "higher_is_better", lambda name: False)
    monkeypatch.setattr(select, "score", lambda names, image, _: {names[0]: image.double().mean((1, 2, 3))})
    return tmp_path


def test_selection_is_written(root):
    """References in rank order, a score and a reason for all, counts in the report."""
    logged: list[tuple[int, dict[str, float]]] = []
    select.run(_config(), root, Hooks(log=lambda step, values: logged.append((step, values))))
    table = pq.read_table(root / "data/selected/scores.parquet").to_pydict()
    assert table["id"] == [f"p{i}" for i in range(8)]
    expected = [torch.from_numpy(_pair(i).hr).double().div(255).mean().item() for i in range(8)]
    np.testing.assert_allclose(table["score"], expected, rtol=1e-6)
    assert table["reason"][:2] == ["too little detail"] * 2
    manifest = pq.read_table(root / "data/selected/manifest.parquet").to_pydict()
    best = sorted(range(2, 8), key=lambda i: expected[i])[:3]
    assert manifest["id"] == [f"p{i}" for i in best] and manifest["detail_share"] == [0.5] * 3
    report = json.loads((root / "data/selected/report.json").read_text())
    assert report["reasons"] == {"count is reached": 3, "selected": 3, "too little detail": 2}
    assert report["selected"] == 3 and report["note"] == "" and sum(report["photographs"].values()) == 3
    assert [step for step, _ in logged] == [3, 6, 8]


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
    """One names the folder, the other leaves nothing behind."""
    with pytest.raises(Stopped):
        select.run(_config(), root, Hooks(should_stop=lambda: True))
    assert [p.name for p in (root / "data").iterdir()] == ["shards"]
    with pytest.raises(ValueError, match="no shards here"):
        select.run(_config(), tmp_path / "elsewhere", Hooks())
