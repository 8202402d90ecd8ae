"""What is left of a stage when the process that started it is killed: nothing, and its
checkpoint.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[3]

# A stage that talks all the time, as trainers do.
STAGE = """
import pathlib, signal, sys, time
def stop(*_):
    for _ in range(5):
        print("writing the checkpoint", flush=True)
        time.sleep(0.1)
    pathlib.Path("checkpoint").write_text("written")
    sys.exit(143)
if "stubborn" in sys.argv: signal.signal(signal.SIGTERM, signal.SIG_IGN)
else: signal.signal(signal.SIGTERM, stop)
pathlib.Path("begun").touch()
while True:
    print("a step", flush=True)
    time.sleep(0.05)
"""
FLOW = (
    "from flows.dvc.run import run_dvc; from pathlib import Path; run_dvc(['repro', 'slow'], "
    "Path.cwd(), print)"
)
GUARD = [sys.executable, str(ROOT / "flows/dvc/guard.py")]


def processes(folder: Path) -> list[int]:
    """The processes that work there."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_text()  # empty: a zombie
            if command and (entry / "cwd").resolve() == folder.resolve():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def wait_for(happens: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def folder(initialised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A repository with a stage `slow`; what is started there finds our modules, and is gone with
    the test.
    """
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    shutil.copytree(initialised, tmp_path, dirs_exist_ok=True)
    (tmp_path / "stage.py").write_text(STAGE)
    (tmp_path / "dvc.yaml").write_text(
        "stages: {slow: {cmd: python stage.py, deps: [stage.py], outs: [slow]}}\n"
    )
    yield tmp_path
    for pid in processes(tmp_path):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_stage_whose_flow_is_killed_checkpoints_and_is_gone(folder: Path) -> None:
    flow = subprocess.Popen([sys.executable, "-c", FLOW], cwd=folder, stdout=subprocess.DEVNULL)
    wait_for((folder / "begun").exists, 60)
    assert len(processes(folder)) >= 4  # the flow, the guard, dvc, the stage
    flow.kill()
    assert flow.wait(10) == -signal.SIGKILL
    wait_for(lambda: not processes(folder), 15)
    assert (folder / "checkpoint").read_text() == "written"

    # Nothing is "busy": the next run is the only one.
    (folder / "begun").unlink()
    again = subprocess.Popen([sys.executable, "-c", FLOW], cwd=folder, stdout=subprocess.DEVNULL)
    wait_for((folder / "begun").exists, 60)
    again.terminate()  # no handler of Prefect's or ours in this process: as good as killed
    again.wait(10)
    wait_for(lambda: not processes(folder), 15)


def test_if_the_guard_itself_is_killed_the_stage_is_stopped(folder: Path) -> None:
    flow = subprocess.Popen(
        [sys.executable, "-c", FLOW],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for((folder / "begun").exists, 60)
    (guard,) = [
        pid for pid in processes(folder) if "guard.py" in Path(f"/proc/{pid}/cmdline").read_text()
    ]
    os.kill(guard, signal.SIGKILL)
    assert "StageFailed: dvc repro slow ended with code -9" in flow.communicate(timeout=30)[1]
    wait_for(lambda: not processes(folder), 5)


def test_a_stubborn_stage_whose_flow_is_killed_is_killed(folder: Path) -> None:
    guard = (
        "import flows.dvc.guard as g, os, sys; g.GRACE_S = 0.5; "
        "sys.exit(g.main(int(sys.argv[1]), sys.argv[2:]))"
    )
    parent = (
        "import os, subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1], "
        "str(os.getpid()), *sys.argv[2:]],"
        " start_new_session=True)"
    )
    flow = subprocess.Popen(
        [sys.executable, "-c", parent, guard, sys.executable, "stage.py", "stubborn"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
    )
    wait_for((folder / "begun").exists)
    flow.kill()
    flow.wait(10)
    wait_for(lambda: not processes(folder), 10)
    assert not (folder / "checkpoint").exists()


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("print('one'); print('two')", 0),
        ("raise SystemExit(7)", 7),
        ("import os; os.kill(os.getpid(), 9)", 137),
    ],
)
def test_lines_and_exit_code_pass(program: str, code: int) -> None:
    command = [*GUARD, str(os.getpid()), sys.executable, "-c", program]
    result = subprocess.run(
        command, capture_output=True, text=True, start_new_session=True, timeout=30
    )
    assert result.returncode == code
    assert result.stdout == ("one\ntwo\n" if code == 0 else "") and not result.stderr


def test_a_command_does_not_inherit_deafness() -> None:
    """SIGTERM to the group ends the command in the way it wants, and the guard reports it."""
    command = [
        *GUARD,
        str(os.getpid()),
        sys.executable,
        "-c",
        "import time; print('up', flush=True); time.sleep(60)",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(10) == 143
