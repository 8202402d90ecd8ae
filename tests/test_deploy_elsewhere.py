"""deploy/kubernetes, compose.yaml, deploy/slurm, deploy/skypilot.yaml and deploy/nginx.conf against
the schemas of the programs that read them, where a package has them, and against our own names.
"""

import json
import platform
import re
import shutil
import subprocess
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator
from prefect.utilities.templating import apply_values
from ruamel.yaml import YAML

from flows.setup import POOLS
from tasks.run import copies
from tests.deploy import defaults, strings, template

pytestmark = pytest.mark.processes

KUBERNETES = "1.33"
SET = {
    "claim": "mine",
    "env": {"PREFECT_API_URL": "http://head:4200/api"},
    "labels": {"prefect.io/flow-run-name": "x"},
    "name": "run",
    "command": ["prefect", "flow-run", "execute"],
    "image_pull_secrets": [{"name": "registry"}],
    "node_selector": {"gpu": "a100"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "priority_class": "preemptible",
}


def all_of(path: Path) -> list[dict[str, Any]]:
    return list(YAML(typ="safe").load_all(path.read_text()))


def job(root: Path, values: dict[str, Any]) -> dict[str, Any]:
    """The Job that the worker makes, without the two pod fields that only the worker reads."""
    manifest = template(root)["job_configuration"]["job_manifest"]
    found: dict[str, Any] = apply_values(manifest, {**defaults(root), **values})
    pod = found["spec"]["template"]["spec"]
    del pod["parallelism"], pod["completions"]
    # The worker writes the environment as a list.
    container = pod["containers"][0]
    if "env" in container:
        container["env"] = [{"name": k, "value": v} for k, v in container["env"].items()]
    return found


@pytest.mark.parametrize("values", [SET, {"command": ["x"], "name": "run"}], ids=["all", "fewest"])
def test_the_job_is_what_the_schema_of_kubernetes_takes(root: Path, values: Any) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    kubernetes_validate.validate(job(root, values), KUBERNETES, strict=True)
    wrong = {**job(root, values)}
    wrong["spec"] = {**wrong["spec"], "tolerations": []}  # a field of the pod
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", ["claim.yaml", "rbac.yaml"])
def test_the_other_objects_are_too(root: Path, name: str) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for found in all_of(root / "deploy/kubernetes" / name):
        kubernetes_validate.validate(found, KUBERNETES, strict=True)


def test_a_pod_is_no_root_and_goes_where_it_may(root: Path) -> None:
    pod = job(root, SET)["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    uid = re.search(r"useradd .*--uid (\d+) gdpo", (root / "deploy/Dockerfile").read_text())
    assert uid and pod["securityContext"]["runAsUser"] == int(uid[1])
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    for field, value in (
        ("imagePullSecrets", "image_pull_secrets"),
        ("nodeSelector", "node_selector"),
        ("tolerations", "tolerations"),
        ("priorityClassName", "priority_class"),
    ):
        assert pod[field] == SET[value]
        without = job(root, {k: v for k, v in SET.items() if k != value})["spec"]["template"][
            "spec"
        ]
        assert field not in without


def test_the_workers_account_is_the_one_of_the_chart_and_may_make_jobs(root: Path) -> None:
    account, role, binding = all_of(root / "deploy/kubernetes/rbac.yaml")
    (values,) = all_of(root / "deploy/kubernetes/worker-values.yaml")
    name = account["metadata"]["name"]
    assert values["serviceAccount"] == {"create": False, "name": name}
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": name}]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    may = {what: set(rule["verbs"]) for rule in role["rules"] for what in rule["resources"]}
    assert {"create", "delete", "watch"} <= may["jobs"] and "create" not in may["pods"]
    assert not any("*" in text for text in strings(role["rules"]))


def test_the_charts_run_the_version_of_the_lock_and_know_our_names(root: Path) -> None:
    locked = re.search(r"^prefect==(\S+) ", (root / "requirements.lock").read_text(), re.M)
    assert locked
    (server,) = all_of(root / "deploy/kubernetes/server-values.yaml")
    (worker,) = all_of(root / "deploy/kubernetes/worker-values.yaml")
    tag = f"{locked[1]}-python3.11"
    assert server["global"]["prefect"]["image"]["prefectTag"] == tag
    assert worker["worker"]["image"]["prefectTag"] == f"{tag}-kubernetes"
    assert worker["worker"]["config"]["workPool"] in POOLS
    assert worker["worker"]["extraEnvVarsSecrets"] == [defaults(root)["secret"]]


def compose(root: Path) -> dict[str, Any]:
    return dict(YAML(typ="safe").load((root / "compose.yaml").read_text()))


def test_compose_is_what_its_schema_takes(root: Path) -> None:
    vendor = pytest.importorskip("check_jsonschema.builtin_schemas.vendor")
    schema = json.loads(resources.files(vendor).joinpath("compose-spec.json").read_text())
    validator = Draft7Validator(schema)
    validator.validate(compose(root))
    assert not validator.is_valid({**compose(root), "workers": {}})


def test_compose_has_a_server_a_database_a_store_and_a_worker_of_every_pool(root: Path) -> None:
    services = compose(root)["services"]
    pools = {
        words[words.index("--pool") + 1]: name
        for name, service in services.items()
        if "--pool" in (words := service.get("command", []))
    }
    assert set(pools) == set(POOLS)
    for name in pools.values():
        service = services[name]
        assert service["command"][service["command"].index("--limit") + 1] == "1"
        assert service["depends_on"]["setup"]["condition"] == "service_completed_successfully"
        assert service["environment"]["PREFECT_API_URL"] == "http://server:4200/api"
        assert service["environment"]["AWS_ENDPOINT_URL"] == "http://s3:5000"
    assert set(services["setup"]["depends_on"]) == {"server", "s3"}
    server = services["server"]
    assert server["environment"]["PREFECT_API_DATABASE_CONNECTION_URL"].endswith(
        "@database/prefect"
    )
    assert server["ports"] == ["127.0.0.1:4200:4200"]
    assert (root / server["build"]["dockerfile"]).is_file()
    assert server["image"] == defaults(root)["image"]
    locked = re.search(r"^moto==(\S+) ", (root / "requirements.lock").read_text(), re.M)
    assert locked and services["s3"]["image"] == f"motoserver/moto:{locked[1]}"
    _, setup = services["setup"]["command"][1:]
    assert "flows.setup --store s3://gdpo-sr" in setup and "deploy/bucket.py s3://gdpo-sr" in setup


def slurm(
    root: Path, name: str, arguments: list[str], tmp_path: Path, repository: Path, **env: str
) -> list[str]:
    """Run a batch script with stand-ins; what was started on the hosts."""
    programs = repository / ".venv/bin"
    programs.mkdir(parents=True)
    for program in ("srun", "dvc", "python", "prefect"):
        (programs / program).write_text(
            # A training takes longer than the others need to start: the script ends them after it.
            '#!/bin/bash\nif [[ "$*" == *--relative=0* ]]; then\n'
            "  for _ in {1..100}; do\n"
            f"    grep -qs relative=1 {tmp_path}/log && break\n    sleep 0.1\n  done\n"
            "fi\n"
            f'echo {program} "$@" ${{NODE_RANK:+$NODE_RANK}} '
            f'"$GDPO_CHECKPOINTS" "$AWS_ENDPOINT_URL" >> {tmp_path}/log\n'
        )
        (programs / program).chmod(0o755)
    (tmp_path / "worker.env").write_text("AWS_ENDPOINT_URL=http://s3\n")
    subprocess.run(
        ["bash", str(root / "deploy/slurm" / name), *arguments],
        check=True,
        cwd=tmp_path,
        env={
            "PATH": "/usr/bin:/bin",
            "WORKER_ENV": f"{tmp_path}/worker.env",
            "SLURM_SUBMIT_DIR": str(repository),
            **env,
        },
    )
    return (tmp_path / "log").read_text().splitlines()


def test_a_stage_of_slurm_is_run_pushed_and_forgotten(
    root: Path, tmp_path: Path, repository: Path
) -> None:
    """In this order: a stage that stops ends the script before the copies are deleted."""
    place = "s3://gdpo-sr/results/checkpoints http://s3"
    assert slurm(root, "stage.sbatch", ["finetune@gdpo"], tmp_path, repository) == [
        f"srun --nodes=1 --ntasks=1 dvc repro --single-item finetune@gdpo --pull {place}",
        f"dvc push --run-cache finetune@gdpo {place}",
        f"python -m tasks.run.copies work/finetune/gdpo {place}",
    ]
    assert copies.__name__ == "tasks.run.copies"


def test_a_worker_of_slurm_is_one_of_its_pool_in_its_clone(
    root: Path, tmp_path: Path, repository: Path
) -> None:
    clone = Path(shutil.move(repository, tmp_path / "clones/a100-3"))
    (line,) = slurm(
        root,
        "worker.sbatch",
        ["a100"],
        tmp_path,
        clone,
        CLONES=str(tmp_path / "clones"),
        SLURM_ARRAY_TASK_ID="3",
    )
    assert "prefect worker start --pool a100 --limit 1 --name " in line
    assert line.split(" --name ")[1].startswith(f"{platform.node()}-a100-3")


def test_of_several_hosts_the_first_runs_the_stage_and_the_others_its_command(
    root: Path, tmp_path: Path, repository: Path
) -> None:
    arguments = ["finetune@gdpo", "finetune --run gdpo"]
    lines = slurm(root, "hosts.sbatch", arguments, tmp_path, repository, SLURM_JOB_NUM_NODES="3")
    first = "srun --nodes=1 --ntasks=1 --relative=0 dvc repro --single-item finetune@gdpo --pull 0 "
    others = "srun --nodes=2 --ntasks=2 --relative=1 bash -c NODE_RANK=$((SLURM_NODEID + 1)) exec "
    assert len(lines) == 4 and any(line.startswith(first) for line in lines[:2])
    assert any(line.startswith(f"{others}python -m tasks finetune --run gdpo") for line in lines)
    assert lines[2].startswith("dvc push --run-cache finetune@gdpo")
    assert lines[3].startswith("python -m tasks.run.copies work/finetune/gdpo")


@pytest.mark.parametrize("name", ["stage.sbatch", "worker.sbatch", "hosts.sbatch"])
def test_a_batch_job_is_told_before_its_end_and_queued_again(root: Path, name: str) -> None:
    lines = (root / "deploy/slurm" / name).read_text().splitlines()
    options = " ".join(line for line in lines if line.startswith("#SBATCH"))
    assert "--signal=TERM@90" in options and "--requeue" in options


def test_rented_machines_are_spot_ones_and_run_a_worker_of_a_pool(root: Path) -> None:
    (task,) = all_of(root / "deploy/skypilot.yaml")
    assert task["resources"]["use_spot"] is True and task["envs"]["POOL"] in POOLS
    for script in (task["setup"], task["run"]):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        assert "cd ~/gdpo-sr" in script
    used = set(re.findall(r"\$\{?([A-Z_]+)", task["setup"] + task["run"]))
    assert used <= {*task["envs"], "PATH", "PWD", "SKYPILOT_TASK_ID"}
    lock = re.search(r"LOCK=(\S+)", task["setup"])
    assert lock and (root / lock[1]).is_file()


def test_the_proxy_passes_web_sockets_on_and_speaks_tls(root: Path) -> None:
    text = (root / "deploy/nginx.conf").read_text()
    assert text.count("{") == text.count("}")
    assert "listen 443 ssl;" in text and "proxy_pass http://127.0.0.1:4200;" in text
    assert "proxy_set_header Upgrade $http_upgrade;" in text
