"""`gdpo-sr doctor`: GPUs, disk and bucket, against what the parameters ask for."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gdpo.data.shards import shard_files
from gdpo.hooks import Hooks
from gdpo.images import write_png
from tasks.stages import degrade, index
from tasks.tools.doctor_resources import problems, shard_bytes
from tests import s3, tiny


def machine(gpus: int = 0, free: int = 10**12) -> dict[str, Any]:
    return {"gpus": [{}] * gpus, "disk_free": free}


@pytest.mark.parametrize("native", [True, False])
def test_bf16_is_named_where_the_processor_emulates_it(
    native: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)
    config = tiny.settings(evaluate={"precision": "bf16"})
    line = "evaluate.precision: bf16, which this processor lacks instructions for"
    lines = [line] if not native else []
    assert [text[: len(line)] for text in problems(config, tmp_path, machine(), [])] == lines
    assert not problems(config, tmp_path, machine(gpus=1), [])


def test_each_stage_that_asks_for_more_gpus_is_named(tmp_path: Path) -> None:
    on_cpu = tiny.settings(
        pretrain={"gpus": 4, "batch": 8}, finetune={"gpus": 8, "batch": 8, "micro_batch": None}
    )
    config = on_cpu.model_copy(update={"allow_cpu": False})
    lines = problems(config, tmp_path, machine(4), [])
    assert lines == ["finetune.gpus asks for 8 GPUs, here: 4"]
    none = problems(config, tmp_path, machine(0), [])
    assert "pretrain.gpus asks for 4 GPUs, here: none" in none
    assert "rollout needs 1 GPU, here: none" in none
    assert problems(config, tmp_path, machine(8), []) == []
    assert on_cpu.allow_cpu
    assert problems(on_cpu, tmp_path, machine(0), []) == []


def test_the_disk_must_hold_the_shards(tmp_path: Path) -> None:
    """The estimate is for noise too low and for flat pictures too high, by less than a factor."""
    config = tiny.settings(
        degrade={
            "train": [{"path": "photos"}],
            "evaluation": [{"path": "held"}],
            "crop": 64,
            "stride": 32,
            "evaluation_crop": 64,
        }
    )
    ramp = np.add.outer(np.arange(160), np.arange(160)).astype(np.uint8)
    for number, folder in enumerate(("photos", "photos", "held")):
        noise = np.random.default_rng(number).integers(0, 24, (160, 160, 3))
        turned = np.rot90(ramp, number)[..., None]
        picture = (turned // 2 + noise + 40 * number).astype(np.uint8)
        write_png(tmp_path / folder / f"{number}.png", picture)
    estimate = shard_bytes(config, tmp_path)
    lines = problems(config, tmp_path, machine(free=estimate - 1), [])
    assert len(lines) == 1 and "of disk (shards" in lines[0]
    assert problems(config, tmp_path, machine(free=estimate), []) == []
    index.run(config, tmp_path, Hooks())
    degrade.run(config, tmp_path, Hooks(), "00")
    written = sum(path.stat().st_size for path in shard_files(tmp_path / "data/shards/train"))
    assert 0.3 < estimate / written < 3
    assert shard_bytes(config, tmp_path) == 0


def test_a_worker_must_reach_its_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny.settings()
    (tmp_path / ".dvc").mkdir()
    text = "['remote \"store\"']\n    url = s3://gdpo-sr/dvc\n"
    (tmp_path / ".dvc/config").write_text(text)
    with s3.server() as url:
        s3.use(monkeypatch, url)
        assert problems(config, tmp_path, machine(), []) == []
        monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
        lines = problems(config, tmp_path, machine(), [])
        assert len(lines) == 1 and lines[0].startswith("s3://gdpo-sr/dvc: there is no such")
        s3.client(url).create_bucket(Bucket="gdpo-sr")
        assert problems(config, tmp_path, machine(), []) == []
