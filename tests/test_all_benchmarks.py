"""benchmarks/all.py: which scripts it runs, and what its table says of them."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import all as everything


def test_every_script_exists_and_every_target_names_one() -> None:
    for name in everything.SCRIPTS:
        assert find_spec(f"benchmarks.{name}") is not None, name
    assert {target.script for target in everything.TARGETS} == everything.SCRIPTS.keys()


def test_the_named_script_runs_and_a_missed_or_unmeasured_target_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    record = {"measured": {"ratio": 7.0}, "machine": {"commit": "0123456789abcdef"}}
    (tmp_path / "cheap.json").write_text(json.dumps(record))
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks/cheap.py").write_text("import sys\nprint('ran', sys.argv[1:])\n")
    monkeypatch.setattr(everything, "REPO", tmp_path)
    monkeypatch.setattr(everything, "RESULTS", tmp_path)
    monkeypatch.setattr(everything, "SCRIPTS", {"cheap": ["--rounds", "1"], "absent": []})
    monkeypatch.delenv("PYTHONPATH", raising=False)
    held = everything.Target("seven", "cheap", ("ratio",), 6.0)

    def main(*names: str, targets: tuple[everything.Target, ...]) -> int:
        monkeypatch.setattr(everything, "TARGETS", targets)
        monkeypatch.setattr(sys, "argv", ["all.py", *names])
        return everything.main()

    assert main("cheap", targets=(held,)) == 0
    assert "ran ['--rounds', '1']" in capfd.readouterr().out
    row = "| seven | 7.00 | >= 6 | yes | cheap | 0123456789 |"
    assert (tmp_path / "all.md").read_text().splitlines()[2] == row
    missed = everything.Target("eight", "cheap", ("ratio",), 8.0)
    never = everything.Target("never", "absent", ("ratio",), 1.0)
    assert main("--recorded", targets=(held, missed)) == 1
    assert main("--recorded", targets=(held, never)) == 1
    assert "| never | not measured | >= 1 | NO | absent |  |" in capfd.readouterr().out
    assert main("absent", targets=(held,)) == 1  # the script cannot run
