"""The flows on real servers and workers: a Prefect server, an S3 server, process workers in clones, DVC between them.

Each test goes on from the fleet as the one before left it, as days do on real hosts.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from tests import s3
from tests.flows.fleet import BUCKET, Fleet, wait_for, working_in

pytestmark = [pytest.mark.orchestration, pytest.mark.timeout(900)]

STEPS = 150  # of a training run that is long enough to be cancelled, and killed


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Fleet(tmp_path_factory.mktemp("fleet")) as running:
        yield running


def dvc(clone: Path, env: dict[str, str], *args: str) -> str:
    result = subprocess.run([sys.executable, "-m", "dvc", *args], cwd=clone, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def outputs(clone: Path) -> dict[str, Any]:
    """{path: hash} of everything the pipeline made there, as DVC recorded it."""
    lock = YAML(typ="safe").load((clone / "dvc.lock").read_text())
    return {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage["outs"]}


def objects(fleet: Fleet) -> list[str]:
    pages = s3.client(fleet.s3).get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    return [entry["Key"] for page in pages for entry in page.get("Contents", [])]


def body(fleet: Fleet, key: str) -> bytes:
    return bytes(s3.client(fleet.s3).get_object(Bucket=BUCKET, Key=key)["Body"].read())


def artifacts(fleet: Fleet, run: str) -> dict[str, str]:
    found = fleet.post("artifacts/filter", artifacts={"flow_run_id": {"any_": [run]}})
    return {row["key"] or row["type"]: str(row["data"]) + str(row["description"]) for row in found}


def published(fleet: Fleet, kind: str) -> list[str]:
    """The runs of a kind, by their manifests."""
    manifests = [json.loads(body(fleet, key)) for key in objects(fleet) if key.endswith("manifest.json")]
    return sorted(manifest["run"] for manifest in manifests if manifest["kind"] == kind)


def test_setup_a_second_time_changes_nothing_but_what_differs(fleet: Fleet) -> None:
    def there() -> dict[str, list[str]]:
        return {
            "pools": sorted(row["name"] for row in fleet.post("work_pools/filter")),
            "queues": sorted(row["name"] for row in fleet.post("work_pools/a100/queues/filter")),
            "deployments": sorted(row["id"] for row in fleet.post("deployments/filter")),
            "automations": sorted(row["id"] + row["name"] for row in fleet.post("automations/filter")),
            "limits": sorted(row["name"] for row in fleet.post("v2/concurrency_limits/filter", limit=50, offset=0)),
        }

    before = there()
    command = [sys.executable, "-m", "flows.setup", "--store", f"s3://{BUCKET}", "--heartbeat", "30"]
    subprocess.run(command, cwd=fleet.source, env={**fleet.env, "PYTHONPATH": str(fleet.source)}, check=True)
    assert there() == before
    assert before["pools"] == ["a100", "cpu", "head"]
    assert "nightly" in before["queues"]
    assert len(before["deployments"]) == 6
    assert len(before["automations"]) == 2
    assert "tag:gdpo-transfer" in before["limits"]


def test_the_nightly_is_scheduled(fleet: Fleet) -> None:
    """The server makes the runs ahead of time: a scheduler that fails (SQLAlchemy 2.1) would show here and nowhere else."""
    nightly = fleet.get("deployments/name/gdpo-evaluate/nightly")["id"]

    def runs() -> list[Any]:
        states = {"type": {"any_": ["SCHEDULED"]}}
        return list(fleet.post("flow_runs/filter", deployments={"id": {"any_": [nightly]}}, flow_runs={"state": states}))

    wait_for(runs, 120, "a scheduled nightly run")
    assert all("T02:00:00" in run["expected_start_time"] for run in runs())


def test_the_graph_on_two_workers_makes_what_a_plain_repro_makes(fleet: Fleet) -> None:
    fleet.worker("head", "head")
    clones = [fleet.worker("one", "cpu"), fleet.worker("two", "cpu")]
    run = fleet.start("gdpo-pipeline/head", fan_out=True, gpu="gdpo-stage/cpu")
    state = fleet.finished(run)
    assert state["type"] == "COMPLETED", state["message"]
    # Both parts of `degrade` and both runs of `finetune` were there to be shared.
    assert all((clone / "work").is_dir() for clone in clones)

    plain = fleet.clone("plain")
    dvc(plain, fleet.env, "repro")
    assert outputs(fleet.folder / "head") == outputs(plain)
    assert len(outputs(plain)) > 10

    laptop = fleet.clone("laptop")
    said = dvc(laptop, fleet.env, "repro", "--pull")
    assert "Running stage" not in said
    assert outputs(laptop) == outputs(plain)
    assert (laptop / "models/gdpo/adapters.safetensors").is_file() or list((laptop / "models/gdpo").glob("*.safetensors"))

    found = artifacts(fleet, run)
    (shown,) = published(fleet, "train")
    assert f"/runs/{shown}/index.html" in found["gdpo-report"]
    assert "NAOSD" in found["gdpo-evaluation"]
    assert body(fleet, f"runs/{shown}/index.html") == (plain / "reports/index.html").read_bytes()
    assert shown in body(fleet, "runs/index.html").decode()
    fleet.kill("two")


@pytest.fixture(scope="module")
def long_run(fleet: Fleet) -> Path:
    """The GPU worker's clone, at a commit with the ledger of the pipeline's run and a longer training."""
    place = fleet.clone("gpu")
    shutil.copy(fleet.folder / "head/dvc.lock", place)
    yaml = YAML()
    params = yaml.load(place / "params.yaml")
    params["finetune"]["steps"] = STEPS
    yaml.dump(params, place / "params.yaml")
    for command in (["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "longer"]):
        subprocess.run(["git", *command], cwd=place, check=True)
    return place


def steps_of(clone: Path) -> int:
    path = clone / "work/finetune/gdpo/metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def test_cancelled_and_killed_it_resumes_to_the_same_bytes(fleet: Fleet, long_run: Path) -> None:
    fleet.worker("gpu", "a100")

    first = fleet.start("gdpo-train/a100")
    wait_for(lambda: steps_of(long_run) >= 5, 240, "five steps of training")
    begun = time.monotonic()
    fleet.cancel(first)
    assert fleet.finished(first, 90)["type"] == "CANCELLED"
    assert (long_run / "work/finetune/gdpo/checkpoint.pt").is_file()
    assert time.monotonic() - begun < 60  # 30 s for the checkpoint, and Prefect's own polling
    wait_for(
        lambda: not [line for line in working_in(long_run) if "prefect worker" not in line], 15, "the end of all processes"
    )

    second = fleet.start("gdpo-train/a100")
    wait_for(lambda: "progress" in artifacts(fleet, second), 240, "a progress artifact")
    wait_for(lambda: steps_of(long_run) >= 30, 240, "thirty steps of training")
    assert fleet.state(second)["type"] == "RUNNING"
    fleet.kill("gpu")  # the worker, the run, dvc and the trainer: a dead host
    wait_for(lambda: not working_in(long_run), 15, "the end of all processes")
    assert fleet.state(second)["type"] == "RUNNING"  # nobody is left who could say otherwise ...
    died = fleet.finished(second, 300)
    assert died["type"] == "CRASHED"  # ... but the automation
    assert "no sign of life" in died["message"]

    fleet.worker("gpu", "a100")
    third = fleet.start("gdpo-train/a100")
    state = fleet.finished(third)
    assert state["type"] == "COMPLETED", state["message"]

    straight = fleet.clone("straight")
    for name in ("params.yaml", "dvc.lock"):
        shutil.copy(long_run / name, straight)
    shutil.copy(fleet.folder / "head/dvc.lock", straight)
    dvc(straight, fleet.env, "pull", "rollout", "pretrain")
    dvc(straight, fleet.env, "repro", "--single-item", "finetune@gdpo")
    assert outputs(straight)["models/gdpo"] == outputs(long_run)["models/gdpo"]
    assert outputs(straight)["reports/finetune/gdpo"] == outputs(long_run)["reports/finetune/gdpo"]


def test_training_is_followed_by_an_evaluation(fleet: Fleet) -> None:
    nightly = fleet.get("deployments/name/gdpo-evaluate/nightly")["id"]

    def triggered() -> list[Any]:
        found = fleet.post("flow_runs/filter", deployments={"id": {"any_": [nightly]}})
        return [run for run in found if not run["auto_scheduled"]]

    wait_for(triggered, 60, "the automation's run")
    (run,) = [str(run["id"]) for run in triggered()]
    state = fleet.finished(run)
    assert state["type"] == "COMPLETED", state["message"]
    assert "no run is promoted" in fleet.logs(run)
    assert len(published(fleet, "nightly")) == 1


def tool(fleet: Fleet, clone: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tasks", *args], cwd=clone, env=fleet.env, capture_output=True, text=True, check=False
    )


def test_of_two_promotions_at_once_one_wins_and_the_nightly_compares(fleet: Fleet, long_run: Path) -> None:
    runs = published(fleet, "train")
    assert len(runs) == 2
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "tasks", "promote", run], cwd=long_run, env=fleet.env, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )
        for run in runs
    ]  # fmt: skip
    said = [process.communicate()[0] for process in both]
    codes = [process.returncode for process in both]
    pointer = json.loads(body(fleet, "models/latest.json"))
    assert [entry["run"] for entry in pointer["promoted"]][::-1] == [
        run for run, code in sorted(zip(runs, codes, strict=True), key=lambda pair: pair[0] == pointer["run"]) if code == 0
    ], said
    assert tool(fleet, long_run, "promote", runs[1]).returncode == 0  # the longer training: what the nightly judges
    subprocess.run(["git", "checkout", "-q", "--", "."], cwd=long_run, check=True)

    same = fleet.start("gdpo-evaluate/nightly")
    state = fleet.finished(same)
    assert state["type"] == "COMPLETED", state["message"]

    _promote_a_better_one(fleet, runs[1])
    worse = fleet.start("gdpo-evaluate/nightly")
    state = fleet.finished(worse)
    assert state["type"] == "FAILED"
    assert "sample regressed: " in state["message"] and "psnr_y" in state["message"]


def _promote_a_better_one(fleet: Fleet, run: str) -> None:
    """Give the promoted run's GDPO-SR 3 dB more than it had."""
    key = f"runs/{run}/evaluate/sample/per_image.parquet"
    table = pq.read_table(pa.BufferReader(body(fleet, key)))
    better = pc.if_else(pc.equal(table["model"], "gdpo"), pc.add(table["psnr_y"], 3.0), table["psnr_y"])
    table = table.set_column(table.column_names.index("psnr_y"), "psnr_y", better)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    s3.client(fleet.s3).put_object(Bucket=BUCKET, Key=key, Body=sink.getvalue().to_pybytes())


def test_a_failing_stage_fails_once_with_its_last_lines(fleet: Fleet, long_run: Path) -> None:
    unknown = fleet.start("gdpo-stage/cpu", stage="nothing")
    assert "there is no stage nothing in dvc.yaml; there is " in fleet.finished(unknown)["message"]
    elsewhere = fleet.start("gdpo-stage/cpu", stage="select", commit="0" * 40)
    assert "check out the same commit here" in fleet.finished(elsewhere)["message"]

    place = fleet.folder / "one"
    text = (place / "params.yaml").read_text()
    (place / "params.yaml").write_text(text.replace("min_detail: 0.1", "min_detail: 1.0"))
    run = fleet.start("gdpo-stage/cpu", stage="select")
    state = fleet.finished(run)
    (place / "params.yaml").write_text(text)
    assert state["type"] == "FAILED"
    assert "lower select.min_detail" in state["message"]
    tasks = fleet.post("task_runs/filter", task_runs={"flow_run_id": {"any_": [run]}})
    assert {task["name"].split()[0]: task["run_count"] for task in tasks}["select"] == 1


def test_faults_of_s3_are_waited_out(fleet: Fleet) -> None:
    """503 and broken answers for half a minute, as S3 has them: transfers are repeated, the stage is not."""
    begun: list[float] = []
    seen = {"faults": 0}

    def fault(method: str, path: str) -> int | str | None:
        if "/dvc/" not in path and "prefix=dvc" not in path:
            return None
        begun.append(time.monotonic())
        if time.monotonic() - begun[0] > 25:
            time.sleep(0.2)  # slow, from then on
            return None
        seen["faults"] += 1
        return 503 if seen["faults"] % 2 else "cut"

    fleet.kill("one")
    with s3.proxy(fleet.s3, fault) as url:
        fresh = fleet.worker("fresh", "cpu", AWS_ENDPOINT_URL=url)
        shutil.copy(fleet.folder / "head/dvc.lock", fresh)
        run = fleet.start("gdpo-stage/cpu", stage="select")
        state = fleet.finished(run)
    assert state["type"] == "COMPLETED", state["message"]
    assert seen["faults"] > 3
    assert outputs(fresh)["data/selected"] == outputs(fleet.folder / "plain")["data/selected"]


def test_training_here_without_a_bucket(fleet: Fleet) -> None:
    """As a person types it; in a clone where everything is up to date, nothing runs again."""
    fleet.kill("head")
    place = fleet.worker("local", "head", clone="plain")
    before = outputs(place)
    command = [sys.executable, "-m", "prefect", "deployment", "run", "gdpo-train/local", "--watch"]
    result = subprocess.run(command, cwd=place, env=fleet.env, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    assert outputs(place) == before
    (link,) = fleet.post("artifacts/filter", artifacts={"key": {"any_": ["gdpo-report"]}}, sort="CREATED_DESC", limit=1)
    assert (place / "reports/index.html").as_uri() in link["data"]


def test_the_secret_is_nowhere(fleet: Fleet) -> None:
    """In no log, artifact, result, lock or report: it is in the workers' environment and there alone."""
    secret = s3.SECRET
    assert secret not in fleet.log_files()
    for run in fleet.post("flow_runs/filter", limit=200):
        assert secret not in fleet.logs(run["id"])
        assert secret not in json.dumps(run)
    assert secret not in json.dumps(fleet.post("artifacts/filter", limit=200))
    assert secret not in json.dumps(fleet.post("block_documents/filter", include_secrets=True))
    assert secret not in json.dumps(fleet.post("deployments/filter"))
    for key in objects(fleet):
        assert secret.encode() not in body(fleet, key), key
    for clone in ("head", "one", "gpu", "plain"):
        for path in (fleet.folder / clone).rglob("*"):
            if path.is_file() and ".git" not in path.parts and path.name != "s3.py":
                assert secret.encode() not in path.read_bytes(), path
