"""What deploy/ and prefect.yaml hand to other programs, as far as it can be checked without them."""

import configparser
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from prefect.flows import Flow
from ruamel.yaml import YAML

UNITS = ("gdpo-server.service", "gdpo-worker@.service", "gdpo-gpu-worker@.service")


def unit(root: Path, name: str) -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(strict=False, interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read_string((root / "deploy/systemd" / name).read_text())
    return parsed


@pytest.mark.parametrize("name", UNITS)
def test_units_restart_and_give_up_in_time(root: Path, name: str) -> None:
    service = unit(root, name)["Service"]
    assert service["Restart"] == "always"
    assert 30 < int(service["TimeoutStopSec"]) <= 120  # Prefect's own grace is 30 s; a worker without its API never leaves
    assert service["User"] != "root"


def test_workers_take_one_run_and_one_gpu(root: Path) -> None:
    for name in UNITS[1:]:
        service = unit(root, name)["Service"]
        assert "--limit 1" in service["ExecStart"]
        assert service["KillMode"] == "mixed"
    assert unit(root, UNITS[2])["Service"]["Environment"] == "CUDA_VISIBLE_DEVICES=%i"


def test_systemd_accepts_the_units(root: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed here")
    for name in UNITS:
        text = (root / "deploy/systemd" / name).read_text().replace("/srv/gdpo-sr", str(tmp_path)).replace("User=gdpo\n", "")
        (tmp_path / name.replace("@", "@0" if "gpu" in name else "@cpu-0")).write_text(text)
    program = tmp_path / "head/.venv/bin/prefect"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, tmp_path.glob("*.service"))], capture_output=True, text=True
    )
    about_ours = [line for line in result.stderr.splitlines() if "gdpo-" in line]
    assert not about_ours, "\n".join(about_ours)


def strings(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for value in node.values():
            yield from strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from strings(value)
    elif isinstance(node, str):
        yield node


def test_the_kubernetes_template_is_a_job_whose_every_placeholder_is_a_variable(root: Path) -> None:
    template = json.loads((root / "deploy/kubernetes/base-job-template.json").read_text())
    known = template["variables"]["properties"]
    used = {name for text in strings(template["job_configuration"]) for name in re.findall(r"{{ (\w+) }}", text)}
    assert used == set(known)
    job = template["job_configuration"]["job_manifest"]
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    pod = job["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never" and job["spec"]["backoffLimit"] == 0  # a failing stage fails once
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "{{ gpus }}"
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    # Credentials come from a secret, not from the template, where everybody can read them.
    assert container["envFrom"] == [{"secretRef": {"name": "{{ secret }}"}}]


def test_the_policy_covers_what_the_code_writes(root: Path) -> None:
    policy = json.loads((root / "deploy/s3-policy.json").read_text())
    resources = " ".join(strings([statement["Resource"] for statement in policy["Statement"]]))
    for folder in ("dvc/*", "runs/*", "results/*", "models/*", ".conditional-write-probe-*"):
        assert f":::gdpo-sr/{folder}" in resources
    assert not any("*" in action for statement in policy["Statement"] for action in statement["Action"])


def deployments(root: Path) -> list[dict[str, Any]]:
    return list(YAML(typ="safe").load((root / "prefect.yaml").read_text())["deployments"])


def test_deployments_are_named_for_what_and_where(root: Path) -> None:
    found = {f"{flow_of(entry).name}/{entry['name']}" for entry in deployments(root)}
    assert found == {
        "gdpo-train/a100", "gdpo-train/local", "gdpo-pipeline/head", "gdpo-stage/cpu", "gdpo-stage/a100",
        "gdpo-evaluate/nightly",
    }  # fmt: skip


def flow_of(entry: dict[str, Any]) -> Flow[..., Any]:
    module, _, name = entry["entrypoint"].rpartition(".")
    found = getattr(import_module(module), name)
    assert isinstance(found, Flow)
    return found


def test_deployments_use_module_entrypoints_and_real_parameters(root: Path) -> None:
    for entry in deployments(root):
        assert ":" not in entry["entrypoint"]
        assert set(entry.get("parameters") or {}) <= set(flow_of(entry).parameters.properties)
        assert "CUDA_VISIBLE_DEVICES" not in json.dumps(entry)  # it would override every worker's own


def test_the_nightly_runs_at_two_and_never_twice_at_once(root: Path) -> None:
    (nightly,) = [entry for entry in deployments(root) if entry["name"] == "nightly"]
    (schedule,) = nightly["schedules"]
    assert (schedule["cron"], schedule["timezone"]) == ("0 2 * * *", "UTC")
    assert nightly["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}
