"""deploy/kubernetes and deploy/Dockerfile: the Job of a worker, its image and its pool."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from prefect.utilities.schema_tools import is_valid_schema, validate
from prefect.utilities.templating import apply_values
from ruamel.yaml import YAML

from tests.deploy import UNITS, defaults, strings, template, unit
from tests.guide import git, guide

pytestmark = pytest.mark.processes


def test_the_kubernetes_template_is_a_job_whose_every_placeholder_is_a_variable(root: Path) -> None:
    # It imports the server: CPU seconds that no quick test needs.
    from prefect.server.schemas.actions import WorkPoolCreate

    found = template(root)
    used = {
        name
        for text in strings(found["job_configuration"])
        for name in re.findall(r"{{ (\w+) }}", text)
    }
    assert used == set(found["variables"]["properties"])
    # As the server checks it.
    WorkPoolCreate(name="a100", type="kubernetes", base_job_template=found)
    is_valid_schema(found["variables"])
    validate(defaults(root), found["variables"], raise_on_error=True)
    job = found["job_configuration"]["job_manifest"]
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    pod = job["spec"]["template"]["spec"]
    # A failing stage fails once.
    assert pod["restartPolicy"] == "Never" and job["spec"]["backoffLimit"] == 0
    assert job["spec"]["parallelism"] == job["spec"]["completions"] == 1
    # These are no pod fields, but the worker refuses a template without them.
    assert pod["parallelism"] == pod["completions"] == 1
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
    # configparser keeps the last entry: the key in the secret.
    secret = unit(root, UNITS[3])["Service"]["Environment"]
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
    # Prefect's arguments are the command.
    assert words[0] == "FROM" and set(words) == {
        "FROM",
        "RUN",
        "WORKDIR",
        "ENV",
        "USER",
    }
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
