"""benchmarks/gpu.py runs to its end on a CPU at tiny size, so that it works where a card is."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
BATCHED = ("as_loaded_ms", "channels_last_ms", "compiled_ms", "compile_gain")
VARIANTS = ("released", "online", "cached", "online-lr", "cached-lr")
POSITIVE = {
    *(f"inference.{name}.{batch}" for name in BATCHED for batch in (1, 8)),
    *("tiled.seconds", "tiled.peak_bytes"),
    "rollout.candidates_per_s",
    *("pretrain.seconds", "pretrain.peak_bytes"),
    *(f"rl_step.{name}.seconds" for name in VARIANTS),
    *(f"rl_step.{name}.static_bytes" for name in VARIANTS),
    *(f"rl_step.{name}.peak_bytes" for name in VARIANTS),
    *("ranks.groups", "ranks.largest_difference_db"),
}


@pytest.mark.processes
@pytest.mark.timeout(600)
def test_every_figure_is_measured_and_in_the_table(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--size", "tiny", "--repeats", "1"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)],
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    progress, table = done.stdout.split("| figure | value |\n| --- | --- |\n")
    cells = [line.strip("| ").split(" | ", 1) for line in table.splitlines()]
    rows = {cell[0]: cell[1] for cell in cells}
    assert rows.keys() >= POSITIVE
    for name in POSITIVE:
        assert math.isfinite(float(rows[name])) and float(rows[name]) > 0, name
    groups = int(rows["ranks.groups"])
    assert 0 <= int(rows["ranks.best_changes"]) <= groups
    assert 0 <= int(rows["ranks.worst_changes"]) <= groups
    assert rows["two_processes.exit"] == "3"
    assert "finetune needs" in rows["two_processes.says"]
    assert "CPU" in rows["tests.left_out"]

    written = json.loads((tmp_path / "gpu.json").read_text())["measured"]
    assert str(written["inference"]["compiled_ms"]["8"]) == rows["inference.compiled_ms.8"]
    parts = ("inference", "tiled", "rollout", "pretrain", "ranks", "rl_step", "two_processes")
    for part in parts:
        assert f"{part} ...\n" in progress, part
