"""What deploy/ and prefect.yaml hand to other programs, as far as a machine can tell."""

import json
import os
import shutil
import socket
import subprocess
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from prefect.flows import Flow
from ruamel.yaml import YAML

from tests.deploy import UNITS, unit

pytestmark = pytest.mark.processes


@pytest.mark.parametrize("name", UNITS)
def test_units_restart_and_give_up_in_time(root: Path, name: str) -> None:
    service = unit(root, name)["Service"]
    assert service["Restart"] == "always"
    # Prefect's own grace is 30 s; a worker without its API never leaves.
    assert 30 < int(service["TimeoutStopSec"]) <= 120
    assert service["User"] != "root"


def test_workers_take_one_run_and_one_gpu(root: Path) -> None:
    for name in UNITS[1:]:
        service = unit(root, name)["Service"]
        assert "--limit 1" in service["ExecStart"]
        assert service["KillMode"] == "mixed"
    assert unit(root, UNITS[2])["Service"]["Environment"] == "CUDA_VISIBLE_DEVICES=%i"


def test_the_server_is_private_unless_told_and_its_files_are_systemds(root: Path) -> None:
    service = unit(root, UNITS[0])["Service"]
    assert "--host" not in service["ExecStart"]  # the setting's default is 127.0.0.1
    assert f"PREFECT_HOME=%S/{service['StateDirectory']}" in service["Environment"]


def test_the_server_counts_as_started_when_it_answers(root: Path) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        command = (
            unit(root, UNITS[0])["Service"]["ExecStartPost"]
            .replace("$$", "$")
            .replace("4200", str(one.getsockname()[1]))
        )
        env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        waiting = subprocess.Popen(["bash", "-c", f"exec {command}"], env=env)
        try:
            time.sleep(1.0)
            assert waiting.poll() is None
            one.listen()
            assert waiting.wait(20) == 0
        finally:
            waiting.kill()


def test_systemd_accepts_the_units(root: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed here")
    for name in UNITS:
        text = (
            (root / "deploy/systemd" / name)
            .read_text()
            .replace("/srv/gdpo-sr", str(tmp_path))
            .replace("User=gdpo\n", "")
        )
        (tmp_path / name.replace("@", "@0" if "gpu" in name else "@cpu-0")).write_text(text)
    for program in (tmp_path / "head/.venv/bin/prefect", tmp_path / "kubernetes/bin/prefect"):
        program.parent.mkdir(parents=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, tmp_path.glob("*.service"))],
        capture_output=True,
        text=True,
    )
    about_ours = [line for line in result.stderr.splitlines() if "gdpo-" in line]
    assert not about_ours, "\n".join(about_ours)


def deployments(root: Path) -> list[dict[str, Any]]:
    return list(YAML(typ="safe").load((root / "prefect.yaml").read_text())["deployments"])


def test_deployments_are_named_for_what_and_where(root: Path) -> None:
    found = {f"{flow_of(entry).name}/{entry['name']}" for entry in deployments(root)}
    assert found == {
        "gdpo-train/a100",
        "gdpo-train/local",
        "gdpo-train/vlcot",
        "gdpo-pipeline/head",
        "gdpo-stage/cpu",
        "gdpo-stage/a100",
        "gdpo-evaluate/nightly",
    }


def flow_of(entry: dict[str, Any]) -> Flow[..., Any]:
    module, _, name = entry["entrypoint"].rpartition(".")
    found = getattr(import_module(module), name)
    assert isinstance(found, Flow)
    return found


def test_deployments_use_module_entrypoints_and_real_parameters(root: Path) -> None:
    for entry in deployments(root):
        assert ":" not in entry["entrypoint"]
        assert set(entry.get("parameters") or {}) <= set(flow_of(entry).parameters.properties)
        # It would override every worker's own.
        assert "CUDA_VISIBLE_DEVICES" not in json.dumps(entry)


def test_the_nightly_runs_at_two(root: Path) -> None:
    (nightly,) = [entry for entry in deployments(root) if entry["name"] == "nightly"]
    (schedule,) = nightly["schedules"]
    assert (schedule["cron"], schedule["timezone"]) == ("0 2 * * *", "UTC")
