"""The training stages on several processes: the real command, real torchrun, gloo, and real
signals.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gdpo.config import Config
from gdpo.hooks import Hooks
from tasks import __main__ as cli
from tasks.params import BadParams, load
from tasks.run import torchrun
from tasks.stages import finetune, pretrain, rollout
from tests import tiny
from tests.tasks.forks import Forks

# A busy machine takes minutes for what an idle one does in seconds.
pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]

SHARED = {"batch": 3, "optimizer": {"lr": 1e-4}}  # three over two processes: shares of one and two
CONFIG = tiny.settings(
    pretrain={"steps": 4, **SHARED}, finetune={"steps": 30, "checkpoint_every": 7, **SHARED}
)
TWO = ("--set", "pretrain.gpus=2", "--set", "finetune.gpus=2")
CHECKPOINT = "work/finetune/gdpo/checkpoint.pt"


@pytest.fixture(scope="module")
def prepared(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the rollouts of a NAOSD; not to be written to."""
    root = tiny.workplace(tmp_path_factory.mktemp("prepared") / "root", tiny_base)
    (root / "params.yaml").write_text(json.dumps(CONFIG.model_dump()))
    pretrain.run(CONFIG, root, Hooks())
    rollout.run(CONFIG, root, Hooks())
    return root


@pytest.fixture(scope="module")
def straight(prepared: Path, forks: Forks) -> Path:
    """The root after finetune on two processes, uninterrupted."""
    root = Path(shutil.copytree(prepared, prepared.with_name("straight"), symlinks=True))
    forks.start(root, "finetune", *TWO)
    assert forks.wait() == 0, (root / "stderr.txt").read_text()
    return root


def weights(folder: Path, name: str) -> torch.Tensor:
    return torch.cat([value.flatten() for value in load_file(folder / name).values()])


def agree(one: Path, two: Path, stage: str, model: str, run: str) -> None:
    """Adapters and logged values of two roots, up to rounding."""
    file = {"pretrain": "naosd.safetensors", "finetune": "gdpo.safetensors"}[stage]
    a, b = (weights(root / "models" / model, file) for root in (one, two))
    assert float((a - b).norm() / a.norm()) < 1e-5
    rows = [
        (root / "reports" / run / "metrics.jsonl").read_text().splitlines() for root in (one, two)
    ]
    assert len(rows[0]) == len(rows[1]) == getattr(CONFIG, stage).steps
    for line, other in zip(*rows, strict=True):
        assert smooth(line) == pytest.approx(smooth(other), rel=1e-3, abs=1e-6)


def smooth(line: str) -> dict[str, float]:
    """A step's values without those that rounding alone decides while policy and reference are
    still equal.
    """
    rounded = ("implicit_accuracy", "weighted_error_difference", "error_change")
    return {name: value for name, value in json.loads(line).items() if name not in rounded}


def test_two_processes_pretrain_as_one_does(prepared: Path, tmp_path: Path, forks: Forks) -> None:
    root = Path(shutil.copytree(prepared, tmp_path / "root", symlinks=True))
    forks.start(root, "pretrain", *TWO)
    assert forks.wait() == 0, (root / "stderr.txt").read_text()
    agree(prepared, root, "pretrain", "naosd", "pretrain")
    assert not (root / "work/pretrain/checkpoint.pt").exists()


def test_two_processes_finetune_as_one_does(prepared: Path, straight: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(prepared, tmp_path / "root", symlinks=True))
    finetune.run(CONFIG, root, Hooks())
    agree(root, straight, "finetune", "gdpo", "finetune/gdpo")


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not happened():
        assert time.monotonic() < deadline, "the stage did not get there in time"
        time.sleep(0.002)


def below(process: int) -> list[int]:
    """The processes that `process` started, and those that they started."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended
            continue
    direct = [child for child, parent in parents.items() if parent == process]
    return direct + [found for child in direct for found in below(child)]


def started(root: Path, forks: Forks) -> int:
    """The process of a finetune on two ranks that has come to its third step."""
    live = root / "work/finetune/gdpo/metrics.jsonl"
    live.unlink(missing_ok=True)
    process = forks.start(root, "finetune", *TWO)
    wait_for(lambda: live.exists() and live.read_bytes().count(b"\n") >= 3)
    return process


def test_stopped_on_its_way_it_ends_in_the_same_bytes(
    prepared: Path, straight: Path, tmp_path: Path, forks: Forks
) -> None:
    """SIGTERM, and once more: 143 and one checkpoint. The second start finishes."""
    root = Path(shutil.copytree(prepared, tmp_path / "root", symlinks=True))
    before = tiny.tree(root / "models", root / "reports")
    process = started(root, forks)
    os.kill(process, signal.SIGTERM)
    os.kill(process, signal.SIGTERM)
    assert forks.wait() == 143
    steps = torch.load(root / CHECKPOINT, weights_only=True)["step"]
    assert 3 <= steps < CONFIG.finetune.steps
    line = (
        f"gdpo-sr: stopped at step {steps}, checkpoint in {CHECKPOINT}; the same command resumes\n"
    )
    said = (root / "stderr.txt").read_text()
    assert said.endswith(line) and said.count("gdpo-sr: ") == 1  # what precedes it is progress
    assert [path.name for path in root.rglob("*checkpoint*")] == ["checkpoint.pt"]
    assert tiny.tree(root / "models", root / "reports") == before

    forks.start(root, "finetune", *TWO)
    assert forks.wait() == 0
    assert tiny.tree(root / "models", root / "reports") == tiny.tree(
        straight / "models", straight / "reports"
    )
    assert not (root / CHECKPOINT).exists()


def test_a_killed_rank_ends_the_stage_and_a_killed_stage_its_ranks(
    prepared: Path, tmp_path: Path, forks: Forks
) -> None:
    root = Path(shutil.copytree(prepared, tmp_path / "root", symlinks=True))
    os.kill(below(started(root, forks))[-1], signal.SIGKILL)
    assert forks.wait() == 1
    said = (root / "stderr.txt").read_text().splitlines()[-1]
    assert "finetune: one of its 2 processes ended with code" in said and said.endswith(
        "resumes from the last checkpoint"
    )

    process = started(root, forks)
    ranks = below(process)
    assert len(ranks) == 3  # torchrun and two
    os.kill(process, signal.SIGKILL)
    assert forks.wait() == -signal.SIGKILL
    wait_for(lambda: not any(Path(f"/proc/{rank}").exists() for rank in ranks))


def test_with_one_gpu_torchrun_is_not_started(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(prepared, tmp_path / "root", symlinks=True))
    monkeypatch.chdir(root)
    monkeypatch.setattr(torchrun, "start", lambda *_: pytest.fail("one process needs no torchrun"))
    assert cli.main(["finetune", "--set", "finetune.steps=1"]) == 0
    assert not torch.distributed.is_initialized()


def test_fewer_gpus_than_asked_for_exit_3(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(prepared)
    monkeypatch.setattr(cli, "_gpus", lambda: 1)
    monkeypatch.setattr(torchrun, "start", lambda *_: 0)
    assert cli.main(["finetune", *TWO, "--set", "allow_cpu=false"]) == 3
    assert "finetune needs 2 GPUs (finetune.gpus) and there is 1 here" in capsys.readouterr().err
    monkeypatch.setattr(cli, "_gpus", lambda: 2)
    assert cli.main(["finetune", *TWO, "--set", "allow_cpu=false"]) == 0


def test_more_processes_than_samples_are_refused(prepared: Path) -> None:
    says = r"finetune.gpus is 4, but finetune.batch has work for 3 only; lower one"
    with pytest.raises(BadParams, match=says):
        load(prepared / "params.yaml", None, ["finetune.gpus=4"])
    assert isinstance(load(prepared / "params.yaml", None, ["finetune.gpus=3"]), Config)


def test_a_rank_leaves_its_line_to_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(torchrun.FOLDER, str(tmp_path))
    for rank, code, returned in (("0", 143, 0), ("1", 1, 1)):
        monkeypatch.setenv("RANK", rank)
        assert torchrun.ended(code, "why") == returned
        assert json.loads((tmp_path / rank).read_text()) == [code, "gdpo-sr: why\n"]
    assert capsys.readouterr().err == ""


def test_a_stop_before_the_ranks_have_joined_is_heeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rendezvous that hangs must not keep the stage, even if torchrun ignores the signal."""
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\ntrap '' TERM\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setattr(torchrun.sys, "executable", str(program))
    monkeypatch.setattr(torchrun, "RANK_GRACE_S", 0.2)
    before = time.monotonic()
    assert torchrun.start(["pretrain"], 2, lambda: True) == 143
    assert time.monotonic() - before < 30
    assert "stopped before all 2 processes had joined" in capsys.readouterr().err


PROGRAM = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
one = torch.ones(1)
dist.all_reduce(one)
assert one.item() == 2
dist.destroy_process_group()  # as the stages do: gloo's threads may abort a rank that ends without
"""


def test_ranks_find_each_other_on_a_host_without_a_name(tmp_path: Path) -> None:
    unshare = ["unshare", "--uts", "sh", "-c"]
    if subprocess.run([*unshare, "hostname x"], capture_output=True).returncode != 0:
        pytest.skip("a host name of its own needs root")
    (tmp_path / "program.py").write_text(PROGRAM)
    options = " ".join(torchrun.rendezvous(2, torchrun.Host()))
    command = (
        f"hostname no-such-host-x7; {sys.executable} -m tasks.run.torchrun {options} program.py"
    )
    path = str(Path(torchrun.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": path}
    result = subprocess.run(
        [*unshare, command], cwd=tmp_path, env=environment, capture_output=True, timeout=240
    )
    assert result.returncode == 0, result.stderr.decode()
