"""What deploy/ and prefect.yaml hand to other programs, as far as a machine can tell."""

import configparser
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.flows import Flow
from prefect.server.schemas.actions import WorkPoolCreate
from prefect.utilities.schema_tools import is_valid_schema, validate
from prefect.utilities.templating import apply_values
from ruamel.yaml import YAML

from tests import s3
from tests.guide import git, guide
from tests.tasks.store.test_s3 import use

pytestmark = pytest.mark.processes

UNITS = (
    "gdpo-server.service",
    "gdpo-worker@.service",
    "gdpo-gpu-worker@.service",
    "gdpo-kubernetes-worker@.service",
)


def unit(root: Path, name: str) -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(strict=False, interpolation=None)
    parsed.optionxform = str
    parsed.read_string((root / "deploy/systemd" / name).read_text())
    return parsed


@pytest.mark.parametrize("name", UNITS)
def test_units_restart_and_give_up_in_time(root: Path, name: str) -> None:
    service = unit(root, name)["Service"]
    assert service["Restart"] == "always"
    assert (
        30 < int(service["TimeoutStopSec"]) <= 120
    )  # Prefect's own grace is 30 s; a worker without its API never leaves
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


def bucket(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, root / "deploy/bucket.py", "s3://gdpo-sr"]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "AWS_MAX_ATTEMPTS": "1"}
    )


def test_a_bucket_keeps_the_lifecycle_rules_of_others(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = [
        {
            "ID": "old lock entries",
            "Status": "Enabled",
            "Filter": {"Prefix": "results/"},
            "Expiration": {"Days": 90},
        },
        {
            "ID": "off",
            "Status": "Disabled",
            "Filter": {"Prefix": "x/"},
            "NoncurrentVersionExpiration": {"NoncurrentDays": 7},
        },
    ]
    with s3.server() as url:
        use(monkeypatch, url)
        client = s3.client(url)
        assert bucket(root).returncode == 0  # there are no rules yet
        ours, copies = client.get_bucket_lifecycle_configuration(Bucket="gdpo-sr")["Rules"]
        assert copies["Filter"] == {"Prefix": "results/checkpoints/"}
        assert copies["Expiration"] == {"Days": 30}
        stale = {**ours, "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 9}}
        client.put_bucket_lifecycle_configuration(
            Bucket="gdpo-sr", LifecycleConfiguration={"Rules": [*theirs, stale]}
        )
        for _ in range(2):
            assert bucket(root).returncode == 0
            found = client.get_bucket_lifecycle_configuration(Bucket="gdpo-sr")["Rules"]
            assert sorted(found, key=lambda rule: str(rule["ID"])) == sorted(
                [*theirs, ours, copies], key=lambda rule: str(rule["ID"])
            )


def test_a_bucket_keeps_what_holds_for_all_its_rules(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server always has a smallest size of objects that move: a proxy tells whether it is
    written again.
    """
    with (
        s3.server() as url,
        s3.proxy(url, lambda method, path: "refuse x-amz-transition-default-minimum") as address,
    ):
        use(monkeypatch, address)
        assert bucket(root).returncode == 0
        assert "NotImplemented" in bucket(root).stderr


def test_rules_that_cannot_be_read_are_not_replaced(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def fault(method: str, path: str) -> int | None:
        asked.append(f"{method} {path}")
        return 403 if method == "GET" and "lifecycle" in path else None

    with s3.server() as url, s3.proxy(url, fault) as address:
        use(monkeypatch, address)
        result = bucket(root)
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert [
        request for request in asked if request.startswith("PUT") and "lifecycle" in request
    ] == []


@pytest.mark.parametrize("beginning", ["http://", ""])
def test_the_bucket_does_not_show_a_password_in_the_endpoint(
    root: Path, monkeypatch: pytest.MonkeyPatch, beginning: str
) -> None:
    use(monkeypatch, f"{beginning}me:{s3.SECRET}@127.0.0.1:9")
    result = bucket(root)
    assert result.returncode == 1
    assert result.stderr.startswith("s3://gdpo-sr: ") and result.stderr.count("\n") == 1
    assert s3.SECRET not in result.stderr


def strings(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for value in node.values():
            yield from strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from strings(value)
    elif isinstance(node, str):
        yield node


def template(root: Path) -> dict[str, Any]:
    return dict(json.loads((root / "deploy/kubernetes/base-job-template.json").read_text()))


def defaults(root: Path) -> dict[str, Any]:
    properties = template(root)["variables"]["properties"]
    return {name: entry["default"] for name, entry in properties.items() if "default" in entry}


def test_the_kubernetes_template_is_a_job_whose_every_placeholder_is_a_variable(root: Path) -> None:
    found = template(root)
    used = {
        name
        for text in strings(found["job_configuration"])
        for name in re.findall(r"{{ (\w+) }}", text)
    }
    assert used == set(found["variables"]["properties"])
    WorkPoolCreate(
        name="a100", type="kubernetes", base_job_template=found
    )  # as the server checks it
    is_valid_schema(found["variables"])
    validate(defaults(root), found["variables"], raise_on_error=True)
    job = found["job_configuration"]["job_manifest"]
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    pod = job["spec"]["template"]["spec"]
    assert (
        pod["restartPolicy"] == "Never" and job["spec"]["backoffLimit"] == 0
    )  # a failing stage fails once
    assert job["spec"]["parallelism"] == job["spec"]["completions"] == 1
    assert (
        pod["parallelism"] == pod["completions"] == 1
    )  # no fields of a pod, but the worker refuses a template without
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "{{ gpus }}"
    # Credentials come from a secret, not from the template, where everybody can read them.
    assert container["envFrom"] == [{"secretRef": {"name": "{{ secret }}"}}]


def test_what_a_clone_keeps_outlives_the_pod(root: Path) -> None:
    values = {**defaults(root), "claim": "mine"}
    job = apply_values(template(root)["job_configuration"]["job_manifest"], values)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    places = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert {mount["name"] for mount in places.values()} == {
        volume["name"] for volume in pod["volumes"]
    }
    (claim,) = [volume["name"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
    assert apply_values(pod["volumes"], values)[0]["persistentVolumeClaim"] == {"claimName": "mine"}
    ignored = [
        line.strip("/")
        for line in (root / ".gitignore").read_text().splitlines()
        if line.startswith("/") and line not in ("/site/", "/deploy/space/*.whl")
    ]
    assert {"work", "data", "models", "reports"} <= set(ignored)
    for folder in ignored:  # a folder per worker, as every worker of a host has its clone
        mount = places[f"{container['workingDir']}/{folder}"]
        assert (mount["name"], mount["subPathExpr"]) == (claim, f"$(PREFECT__WORKER_NAME)/{folder}")
    cache = places[f"{container['workingDir']}/.dvc/cache"]
    assert cache["name"] == claim and "WORKER" not in json.dumps(cache)
    written = YAML(typ="safe").load((root / "deploy/kubernetes/claim.yaml").read_text())
    assert written["metadata"]["name"] == defaults(root)["claim"]
    assert written["spec"]["accessModes"] == ["ReadWriteMany"]
    secret = unit(root, UNITS[3])["Service"][
        "Environment"
    ]  # configparser keeps the last: the key in the secret
    assert secret.endswith("SECRET_KEY=PREFECT_API_AUTH_STRING")
    assert (
        f"SECRET_NAME={defaults(root)['secret']}\n"
        in (root / "deploy/systemd" / UNITS[3]).read_text()
    )


def test_the_image_is_a_clean_clone_with_the_locked_environment_and_no_entry_point(
    root: Path, tmp_path: Path, repository: Path
) -> None:
    lines = [
        line
        for line in (root / "deploy/Dockerfile").read_text().splitlines()
        if not line.startswith("#")
    ]
    words = [line.split()[0] for line in lines]
    assert words[0] == "FROM" and set(words) == {
        "FROM",
        "RUN",
        "WORKDIR",
        "ENV",
        "USER",
    }  # Prefect's arguments are the command
    assert "/" not in lines[0]  # a registry is the builder's own business
    (container,) = template(root)["job_configuration"]["job_manifest"]["spec"]["template"]["spec"][
        "containers"
    ]
    place = container["workingDir"]
    assert f"WORKDIR {place}" in lines and f"ENV PATH={place}/.venv/bin:$PATH" in lines
    (install,) = [line for line in lines if line.startswith("RUN make .venv")]
    assert "--require-hashes -r $(LOCK)" in (root / "Makefile").read_text()
    lock = root / re.search(r"LOCK=(\S+)", install)[1]
    locked = set(re.findall(r"^([a-z0-9._-]+)==", lock.read_text(), re.M))
    assert {"torch", "prefect", "dvc", "pyiqa"} <= locked
    assert not locked & {"pytest", "ruff", "mypy", "moto", "selenium", "pre-commit", "yapf"}
    assert lines.index("USER gdpo") > lines.index(install)
    (clone,) = [line for line in lines if "git clone" in line]
    mount, command = re.fullmatch(
        r"RUN --mount=type=bind,source=(\S+),target=/source (.*)", clone
    ).groups()
    (repository / "deploy/bucket.py").write_text("changed")
    (repository / "data").mkdir()
    subprocess.run(
        command.replace("/source", str(repository / mount)).replace(place, str(tmp_path / "image")),
        shell=True,
        check=True,
    )
    assert git("status", "--porcelain", at=tmp_path / "image") == ""
    assert git("rev-parse", "HEAD", at=tmp_path / "image") == git(
        "rev-parse", "HEAD", at=repository
    )


@pytest.mark.prefect
@pytest.mark.timeout(600)
def test_the_pool_of_the_guide_is_kubernetes_and_stays_so_on_a_server_with_a_password(
    root: Path, tmp_path: Path
) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")} | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_UI_API_URL": "http://head:4200/api",
        "PREFECT_SERVER_API_AUTH_STRING": "gdpo:secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with (tmp_path / "server.log").open("wb") as log:
        command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        wait_for_server(f"{address}/api/health", server)
        assert httpx.get(f"{address}/api/admin/version").status_code == 401
        assert httpx.get(f"{address}/ui-settings").json()["api_url"] == "http://head:4200/api"
        env |= {"PREFECT_API_URL": f"{address}/api", "PREFECT_API_AUTH_STRING": "gdpo:secret"}
        setup = [sys.executable, "-m", "flows.setup"]
        subprocess.run(setup, cwd=root, env=env, check=True)  # makes the process pool
        lines = [
            line
            for line in guide(root, "On Kubernetes")[0].splitlines()
            if re.match("sed |prefect ", line)
        ]
        text = "\n".join(lines).replace("/tmp/", f"{tmp_path}/").replace("IMAGE", "an/image")
        subprocess.run(
            ["bash", "-ec", text], cwd=root, env=env, check=True, stdin=subprocess.DEVNULL
        )
        subprocess.run(setup, cwd=root, env=env, check=True)
        with httpx.Client(base_url=f"{address}/api", auth=("gdpo", "secret")) as api:
            wanted = {"a100": (1, 12, "96Gi"), "cpu": (0, 4, "16Gi")}
            for name, resources in wanted.items():
                pool = api.get(f"/work_pools/{name}").json()
                assert pool["type"] == "kubernetes"
                properties = pool["base_job_template"]["variables"]["properties"]
                assert properties["image"]["default"] == "an/image"
                found = tuple(properties[key]["default"] for key in ("gpus", "cpus", "memory"))
                assert found == resources
            nightly = api.get("/deployments/name/gdpo-evaluate/nightly").json()
            assert (nightly["work_pool_name"], nightly["work_queue_name"]) == ("a100", "nightly")
    finally:
        server.terminate()
        server.wait(60)


def wait_for_server(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        assert server.poll() is None
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(1)
    raise AssertionError("the server never answered")


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
        assert "CUDA_VISIBLE_DEVICES" not in json.dumps(
            entry
        )  # it would override every worker's own


def test_the_nightly_runs_at_two(root: Path) -> None:
    (nightly,) = [entry for entry in deployments(root) if entry["name"] == "nightly"]
    (schedule,) = nightly["schedules"]
    assert (schedule["cron"], schedule["timezone"]) == ("0 2 * * *", "UTC")
