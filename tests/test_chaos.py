"""A short fault campaign (benchmarks/chaos.py): what is broken for two minutes leaves no trace."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]


def test_after_every_fault_the_outputs_are_those_of_an_undisturbed_run(
    root: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "trials.jsonl"
    command = [sys.executable, "-m", "benchmarks.chaos", "--minutes", "2", "--kept", str(kept)]
    done = subprocess.run(
        command,
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr[-2000:]
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [row for row in rows if row["problems"]] == []
    assert done.returncode == 0 and len({row["fault"] for row in rows}) >= 3
