"""The evaluate stage on two tiny pairs, with models that add their noise to the input."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from gdpo.config import Config
from gdpo.data.shards import Box, Pair, write_shards
from gdpo.images import read_photo
from gdpo.training import Hooks, Stopped, noise_like_batch
from tasks import evaluate
from tasks.evaluation_files import folder_name

EVIL = "../../<script>'\"-00"


@pytest.fixture
def config(sample_config: Config) -> Config:
    evaluation = sample_config.evaluate.model_copy(update={"metrics": ["psnr_y", "ssim_y"], "noises": 3, "batch": 2})
    rollout = sample_config.rollout.model_copy(update={"fidelity": ["psnr_y"], "perception": ["ssim_y"]})
    return sample_config.model_copy(update={"evaluate": evaluation, "rollout": rollout})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Held-out shards, and models whose strength is told by their folder's name."""
    rng = np.random.default_rng(0)
    pairs = []
    for name in ("photo-00", EVIL):
        lr = rng.integers(60, 190, (8, 8, 3)).astype(np.uint8)
        hr = lr.repeat(4, 0).repeat(4, 1)
        pairs.append(Pair(name, name.rpartition("-")[0], Box(0, 0, 32, 32), hr, lr, {}, 0.5))
    write_shards(tmp_path / "data/shards/evaluation", pairs, 8.0)

    def resolve(model: float, lr_up_BCHW: torch.Tensor, keys: list[Any], **settings: Any) -> torch.Tensor:
        assert settings == {"color_fix": "wavelet", "precision": settings["precision"]}
        noise = noise_like_batch(keys, tuple(lr_up_BCHW.shape[1:])).to(lr_up_BCHW.device)
        return (lr_up_BCHW + model * noise).clamp(0, 1)

    def load(path: Path, **_: Any) -> float:
        return {"naosd": 0.06, "gdpo": 0.02, "control": 0.06}[path.name]

    monkeypatch.setattr(evaluate, "super_resolve", resolve)
    monkeypatch.setattr(evaluate.NAOSD, "from_pretrained", load)
    return tmp_path


def test_files_rows_and_summary(folder: Path, config: Config) -> None:
    evaluate.run(config, folder, Hooks())
    out = folder / "reports/evaluate"
    rows = pq.read_table(out / "per_image.parquet").to_pylist()
    assert list(rows[0]) == ["image", "model", "noise", "psnr_y", "ssim_y", "reward"]
    assert len(rows) == 2 * (1 + 3 * 3)
    naosd, control = ([row for row in rows if row["model"] == name] for name in ("naosd", "control"))
    assert [row["psnr_y"] for row in naosd] == [row["psnr_y"] for row in control]  # the same noises
    summary = json.loads((out / "summary.json").read_text())
    assert summary["images"] == 2 and summary["photographs"] == 2
    assert summary["models"]["naosd"]["reward"]["mean"] == pytest.approx(0, abs=1e-9)
    assert summary["models"]["gdpo"]["psnr_y"]["mean"] > summary["models"]["naosd"]["psnr_y"]["mean"] + 1
    assert {row["pair"] for row in summary["differences"]} == {
        "gdpo-naosd", "control-naosd", "gdpo-control", "naosd-bicubic",
    }  # fmt: skip


def test_images_stay_in_their_folder_and_hold_what_was_scored(folder: Path, config: Config) -> None:
    before = {path for path in folder.rglob("*") if path.is_file()}
    evaluate.run(config, folder, Hooks())
    out = folder / "reports/evaluate"
    written = {path for path in folder.rglob("*") if path.is_file()} - before
    assert all(path.is_relative_to(out) for path in written)
    summary = json.loads((out / "summary.json").read_text())
    assert {entry["id"] for entry in summary["files"]} == {"photo-00", EVIL}
    for entry in summary["files"]:
        images = out / "images" / entry["folder"]
        names = {path.name for path in images.glob("*.png")}
        assert names == {f"{name}.png" for name in ("lr", "bicubic", "naosd", "gdpo", "control", "hr")}
        first = read_photo(images / "naosd.png")
        assert np.array_equal(first, read_photo(images / "candidates/0.png"))
        assert len(list((images / "candidates").iterdir())) == 3
    groups = json.loads((out / "candidates.json").read_text())
    assert sum(member["advantage"] for member in groups[0]["members"]) == pytest.approx(0, abs=1e-6)


def test_the_same_run_gives_the_same_bytes(folder: Path, config: Config) -> None:
    def contents() -> dict[Path, bytes]:
        evaluate.run(config, folder, Hooks())
        return {path: path.read_bytes() for path in (folder / "reports/evaluate").rglob("*") if path.is_file()}

    assert contents() == contents()


def test_stopping_between_images_leaves_nothing(folder: Path, config: Config) -> None:
    with pytest.raises(Stopped):
        evaluate.run(config, folder, Hooks(should_stop=lambda: True))
    assert not list((folder / "reports").iterdir())


@pytest.mark.parametrize("image", [EVIL, "../..", "", "a/b\\c", "ÄÖ", "x" * 300])
def test_folder_names_are_harmless(image: str) -> None:
    name = folder_name(3, image)
    assert name.startswith("003") and len(name) < 70 and not set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789-")
