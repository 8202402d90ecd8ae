"""A training on two hosts, which are two network namespaces, each with its own address; they share
one folder and run the real torchrun with gloo.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gdpo.hooks import Hooks
from tasks.params import BadParams, load
from tasks.run import torchrun
from tasks.stages import pretrain, rollout
from tests import tiny
from tests.tasks.forks import ROOT, Forks

# A busy machine takes minutes for what an idle one does in seconds.
pytestmark = [pytest.mark.processes, pytest.mark.timeout(900)]

FIRST = "10.231.0.1"
CONFIG = tiny.settings(finetune={"steps": 12, "checkpoint_every": 3, "batch": 3})
TWO_HOSTS = ("--set", "finetune.nodes=2")
TWO_HERE = ("--set", "finetune.gpus=2")
NAMES = ("gdpo-a", "gdpo-b")
CABLE = f"""set -e
ip netns add gdpo-a; ip netns add gdpo-b
ip link add gdpo0 netns gdpo-a type veth peer name gdpo0 netns gdpo-b
ip -n gdpo-a addr add {FIRST}/24 dev gdpo0; ip -n gdpo-b addr add 10.231.0.2/24 dev gdpo0
for name in gdpo-a gdpo-b; do ip -n $name link set gdpo0 up; ip -n $name link set lo up; done
"""


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[str, str]]:
    made = shutil.which("ip") and subprocess.run(["sh", "-c", CABLE], capture_output=True)
    try:
        if not made or made.returncode != 0:
            pytest.skip("network namespaces need root and iproute2")
        yield NAMES
    finally:
        for name in NAMES if made else ():
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def begin(name: str, place: int, folder: Path, **env: str) -> subprocess.Popen[str]:
    """finetune on one of the hosts."""
    command = [sys.executable, "-m", "tasks", "finetune", *TWO_HOSTS]
    return subprocess.Popen(
        ["ip", "netns", "exec", name, *command],
        cwd=folder,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "MASTER_ADDR": FIRST,
            "NODE_RANK": str(place),
            "GLOO_SOCKET_IFNAME": "gdpo0",
            **env,
        },
        stderr=subprocess.PIPE,
        text=True,
    )


def ends(processes: list[subprocess.Popen[str]]) -> tuple[list[int], list[str]]:
    stderrs = [process.communicate(timeout=600)[1] for process in processes]
    return [process.returncode for process in processes], stderrs


def test_two_hosts_train_as_two_processes_of_one_do_and_stop_together(
    hosts: tuple[str, str], tiny_base: Path, tmp_path: Path, forks: Forks
) -> None:
    root = tiny.workplace(tmp_path / "root", tiny_base)
    (root / "params.yaml").write_text(json.dumps(CONFIG.model_dump()))
    pretrain.run(CONFIG, root, Hooks())
    rollout.run(CONFIG, root, Hooks())
    straight = Path(shutil.copytree(root, tmp_path / "straight", symlinks=True))
    forks.start(straight, "finetune", *TWO_HERE)
    assert forks.wait() == 0, (straight / "stderr.txt").read_text()

    running = [begin(name, place, root) for place, name in enumerate(hosts)]
    live = root / "work/finetune/gdpo/metrics.jsonl"
    end = time.monotonic() + 600
    while not live.exists() or live.read_bytes().count(b"\n") < 3:
        assert all(process.poll() is None for process in running) and time.monotonic() < end
        time.sleep(0.02)
    running[1].send_signal(signal.SIGTERM)  # one of them; `ip netns exec` becomes the command
    codes, stderrs = ends(running)
    assert codes == [143, 143], stderrs
    assert all("stopped at step" in text for text in stderrs)

    codes, stderrs = ends([begin(name, place, root) for place, name in enumerate(hosts)])
    assert codes == [0, 0], stderrs
    assert tiny.tree(root / "models/gdpo", root / "reports/finetune") == tiny.tree(
        straight / "models/gdpo", straight / "reports/finetune"
    )
    assert not list((root / "work").glob(".hosts-*"))


def test_hosts_with_folders_of_their_own_are_refused(
    hosts: tuple[str, str], tiny_base: Path, tmp_path: Path
) -> None:
    folders = [tiny.workplace(tmp_path / name, tiny_base) for name in hosts]
    for folder in folders:
        (folder / "params.yaml").write_text(json.dumps(CONFIG.model_dump()))
        (folder / "sitecustomize.py").write_text(
            "import tasks.run.torchrun as it\nit.SEEN_S = 1.0\n"
        )
    running = [
        begin(name, place, folders[place], PYTHONPATH=f"{folders[place]}:{ROOT}")
        for place, name in enumerate(hosts)
    ]
    codes, stderrs = ends(running)
    assert codes == [1, 1], stderrs
    # All ranks have the same words; torchrun may end one of them before it has said them.
    assert f"{folders[1]} is not the folder of the first host" in "".join(stderrs)
    assert not list(folders[0].glob("work/.hosts-*"))


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"MASTER_ADDR": "a", "NODE_RANK": "1"}, torchrun.Host(2, 1, "a")),
        (
            {"MASTER_ADDR": "a", "MASTER_PORT": "9", "SLURM_NODEID": "0"},
            torchrun.Host(2, 0, "a", "9"),
        ),
        ({"MASTER_ADDR": "a", "JOB_COMPLETION_INDEX": "1"}, torchrun.Host(2, 1, "a")),
        ({"NODE_RANK": "1"}, "here they are not set and 1"),
        ({"MASTER_ADDR": "a"}, "here they are a and not set"),
        ({"MASTER_ADDR": "a", "NODE_RANK": "2"}, "its place from 0 to 1; here they are a and 2"),
    ],
)
def test_the_environment_says_which_host_this_is(
    variables: dict[str, str], expected: torchrun.Host | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT", *torchrun.PLACES):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if isinstance(expected, torchrun.Host):
        assert torchrun.host(2, "finetune.nodes") == expected
    else:
        with pytest.raises(ValueError, match=f"finetune.nodes is 2: start.*{expected}"):
            torchrun.host(2, "finetune.nodes")
    assert torchrun.host(1, "finetune.nodes") == torchrun.Host()


def test_every_process_of_all_hosts_has_work(root: Path) -> None:
    says = r"finetune.gpus is 3 on each of 2 hosts \(finetune.nodes\), but finetune.batch has work"
    with pytest.raises(BadParams, match=says):
        load(
            root / "tests/params.yaml",
            None,
            ["finetune.gpus=3", "finetune.nodes=2", "finetune.batch=5"],
        )
