"""The flows on real servers and workers: a Prefect server, an S3 server, process workers in clones,
DVC between them.

Each test goes on from the fleet as the one before left it, as days do on real hosts.
"""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from flows.dvc.graph import graph
from tests import s3
from tests.flows.clones import commit, dvc, outputs, set_params
from tests.flows.fleet import FINAL, HEARTBEAT_S, PASSWORD, Fleet
from tests.flows.looks import (
    artifacts,
    body,
    objects,
    promote_a_better_one,
    published,
    replayed,
    seconds_per_step,
    steps_of,
    tool,
)
from tests.flows.processes import wait_for, working_in

pytestmark = [pytest.mark.orchestration, pytest.mark.timeout(2400)]

LONG_S = 150  # a training run that is long enough to be cancelled, and killed


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Fleet(tmp_path_factory.mktemp("fleet")) as running:
        yield running


def test_setup_a_second_time_repairs_what_differs_and_changes_nothing_else(fleet: Fleet) -> None:
    def there() -> dict[str, Any]:
        limits = fleet.post("v2/concurrency_limits/filter", limit=50, offset=0)
        return {
            "pools": {row["name"]: row["description"] for row in fleet.post("work_pools/filter")},
            "queues": {
                f"{pool}/{row['name']}": (row["priority"], row["concurrency_limit"])
                for pool in ("head", "a100")
                for row in fleet.post(f"work_pools/{pool}/queues/filter")
            },
            "deployments": sorted(
                (row["id"], row["name"], row["paused"]) for row in fleet.post("deployments/filter")
            ),
            "automations": {
                row["name"]: (row["id"], row["enabled"], row["trigger"]["within"])
                for row in fleet.post("automations/filter")
            },
            "limits": {row["name"]: (row["limit"], row["active"]) for row in limits},
            "store": fleet.get("variables/name/gdpo_store")["value"],
        }

    before = there()
    assert sorted(before["pools"]) == ["a100", "cpu", "head"]
    assert before["queues"]["head/pipeline"] == before["queues"]["a100/nightly"] == (2, 1)
    names = sorted(name for _, name, _ in before["deployments"])
    assert names == ["a100", "a100", "cpu", "head", "local", "nightly", "vlcot"]
    assert before["limits"]["tag:gdpo-transfer"] == (16, True)
    dead, after = "gdpo: mark dead runs crashed", "gdpo: evaluate after training"
    unbegun = "gdpo: mark runs crashed that never began"
    cancelled = "gdpo: end cancelled runs"
    assert {name: entry[1:] for name, entry in before["automations"].items()} == {
        dead: (True, 3.0 * HEARTBEAT_S),
        unbegun: (True, 3.0 * HEARTBEAT_S),
        cancelled: (True, 3.0 * HEARTBEAT_S),
        after: (True, 0.0),
    }

    fleet.patch("work_pools/cpu", description="somebody's")
    fleet.patch("work_pools/a100/queues/nightly", priority=7, concurrency_limit=3)
    fleet.patch(f"automations/{before['automations'][dead][0]}", enabled=False)
    fleet.patch("v2/concurrency_limits/tag:gdpo-transfer", limit=1)
    changed = there()
    assert [key for key in before if changed[key] != before[key]] == [
        "pools",
        "queues",
        "automations",
        "limits",
    ]

    command = [sys.executable, "-m", "flows.setup"]  # bucket and heartbeat are on the server
    subprocess.run(command, cwd=fleet.source, env=fleet.environment(fleet.source), check=True)
    assert there() == before


def test_the_nightly_is_scheduled(fleet: Fleet) -> None:
    """The server makes the runs ahead of time: a scheduler that fails (SQLAlchemy 2.1) would show
    here and nowhere else.
    """
    nightly = fleet.get("deployments/name/gdpo-evaluate/nightly")["id"]

    def runs() -> list[Any]:
        states = {"type": {"any_": ["SCHEDULED"]}}
        return list(
            fleet.post(
                "flow_runs/filter",
                deployments={"id": {"any_": [nightly]}},
                flow_runs={"state": states},
            )
        )

    wait_for(runs, 300, "a scheduled nightly run")
    assert all("T02:00:00" in run["expected_start_time"] for run in runs())
    # In case the tests run at two o'clock, when the nightly starts.
    fleet.post(f"deployments/{nightly}/pause_deployment")


def test_the_graph_on_two_workers_makes_what_a_plain_repro_makes(fleet: Fleet) -> None:
    plain = fleet.clone("plain")
    with ThreadPoolExecutor(1) as beside:  # the graph leaves a core idle where it is narrow
        repro = beside.submit(dvc, plain, fleet.env, "repro", "report")
        fleet.worker("head", "head")
        clones = [fleet.worker("one", "cpu"), fleet.worker("two", "cpu")]
        run = fleet.start("gdpo-pipeline/head", fan_out=True, gpu="gdpo-stage/cpu")
        # On the way the server is restarted, and calls the run crashed: neither ends what is under
        # way.
        wait_for(lambda: len(fleet.tasks(run)) > 3, 600, "some stages")
        fleet.restart_server()
        fleet.call_crashed(run)
        state = fleet.finished(run)
    repro.result()
    assert state["type"] == "COMPLETED", state["message"]
    # The parts of a matrix were there to be shared, and were made side by side.
    assert all((clone / "work").is_dir() for clone in clones)
    cpu = fleet.get("deployments/name/gdpo-stage/cpu")["id"]
    spans = {
        row["name"]: tuple(
            datetime.fromisoformat(row[which]) for which in ("start_time", "end_time")
        )
        for row in fleet.post("flow_runs/filter", deployments={"id": {"any_": [cpu]}})
    }
    at_once = [
        (one, other)
        for one, other in combinations(spans, 2)
        if spans[one][0] < spans[other][1] and spans[other][0] < spans[one][1]
    ]
    assert any("@" in one and "@" in other for one, other in at_once), spans

    assert outputs(fleet.folder / "head") == outputs(plain)
    assert len(outputs(plain)) > 10

    laptop = fleet.clone("laptop")
    output = dvc(laptop, fleet.env, "repro", "--pull", "report")
    assert "Running stage" not in output
    assert outputs(laptop) == outputs(plain)
    assert (laptop / "models/gdpo/adapters.safetensors").is_file() or list(
        (laptop / "models/gdpo").glob("*.safetensors")
    )

    found = artifacts(fleet, run)
    (shown,) = published(fleet, "train")
    assert f"/runs/{shown}/index.html" in found["gdpo-report"]
    assert "NAOSD" in found["gdpo-evaluation"]
    assert body(fleet, f"runs/{shown}/index.html") == (plain / "reports/index.html").read_bytes()
    assert shown in body(fleet, "runs/index.html").decode()
    fleet.kill("two")


def test_training_here_without_a_bucket(fleet: Fleet) -> None:
    """As a person types it; in a clone where everything is up to date, nothing runs again."""
    fleet.kill("head")
    place = fleet.worker("local", "head", clone="plain")
    before = outputs(place)
    command = [sys.executable, "-m", "prefect", "deployment", "run", "gdpo-train/local", "--watch"]
    result = subprocess.run(
        command, cwd=place, env=fleet.env, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert outputs(place) == before
    (link,) = fleet.post(
        "artifacts/filter",
        artifacts={"key": {"any_": ["gdpo-report"]}},
        sort="CREATED_DESC",
        limit=1,
    )
    assert (place / "reports/index.html").as_uri() in link["data"]


@pytest.fixture(scope="module")
def long_run(fleet: Fleet) -> Path:
    """The GPU worker's clone, at a commit with the lock entries of the pipeline's run and a longer
    training.
    """
    place = fleet.clone("gpu")
    shutil.copy(fleet.folder / "head/dvc.lock", place)
    # Prefect takes half a minute to cancel; a step takes a seventh of a second, or three times as
    # long on a slow machine. At the profile's learning rate the policy's error explodes after 700
    # steps.
    steps = round(LONG_S / seconds_per_step(fleet.folder / "plain"))
    slow = {"lr": 1.0e-5, "schedule": "constant", "weight_decay": 0.01, "clip": 1.0}
    set_params(place, {"finetune.steps": steps, "finetune.optimizer": slow})
    commit(place, "longer")
    return place


def test_cancelled_and_killed_it_resumes_to_the_same_bytes(fleet: Fleet, long_run: Path) -> None:
    fleet.worker("gpu", "a100")

    first = fleet.start("gdpo-train/a100")
    wait_for(lambda: steps_of(long_run) >= 5, 600, "five steps of training")
    begun = time.time()
    fleet.cancel(first)
    assert fleet.finished(first)["type"] == "CANCELLED"
    # 30 s of grace, and Prefect's polling.
    assert begun < (long_run / "work/finetune/gdpo/checkpoint.pt").stat().st_mtime < begun + 60
    wait_for(
        lambda: not [line for line in working_in(long_run) if "prefect worker" not in line],
        60,
        "the end of all processes",
    )

    second = fleet.start("gdpo-train/a100")
    wait_for(lambda: "progress" in artifacts(fleet, second), 600, "a progress artifact")
    wait_for(lambda: steps_of(long_run) >= 30, 600, "thirty steps of training")
    fleet.call_crashed(second)
    assert replayed(long_run) >= 4  # the first run's
    begun = time.time()
    # Kills the worker and the flow run; dvc and the trainer must notice that and stop.
    fleet.crash("gpu")
    wait_for(lambda: not working_in(long_run), 60, "the end of all processes")
    assert (long_run / "work/finetune/gdpo/checkpoint.pt").stat().st_mtime > begun
    # No process is left that could report the end of the run; without heartbeats, the automation
    # marks it as crashed.
    assert fleet.state(second)["type"] == "RUNNING"
    straight = fleet.clone("straight")
    with ThreadPoolExecutor(1) as beside:
        uninterrupted = beside.submit(_train_without_a_break, fleet, long_run, straight)
        died = fleet.finished(second, 600)
    assert died["type"] == "CRASHED"
    assert "no heartbeats" in died["message"]

    # From here on a host of its own does the evaluations: it has the commit, and a dvc.lock without
    # this training.
    fleet.worker("gpu", "a100", queue="default")
    subprocess.run(
        ["git", "pull", "-q", str(long_run), "HEAD"], cwd=fleet.clone("night"), check=True
    )
    fleet.worker("night", "a100", queue="nightly")
    third = fleet.start("gdpo-train/a100")
    state = fleet.finished(third)
    assert state["type"] == "COMPLETED", state["message"]
    assert 30 <= replayed(long_run) < steps_of(long_run)

    uninterrupted.result()
    assert replayed(straight) == 0
    for path in ("models/gdpo", "reports/finetune/gdpo"):
        assert outputs(straight)[path] == outputs(long_run)[path]


def _train_without_a_break(fleet: Fleet, long_run: Path, straight: Path) -> None:
    shutil.copy(long_run / "params.yaml", straight)
    shutil.copy(fleet.folder / "head/dvc.lock", straight)
    dvc(straight, fleet.env, "pull", *sorted(graph(straight)["finetune@gdpo"]))
    dvc(straight, fleet.env, "repro", "--single-item", "finetune@gdpo")


def test_training_is_followed_by_an_evaluation(fleet: Fleet) -> None:
    nightly = fleet.get("deployments/name/gdpo-evaluate/nightly")["id"]

    def triggered() -> list[Any]:
        found = fleet.post("flow_runs/filter", deployments={"id": {"any_": [nightly]}})
        return [run for run in found if not run["auto_scheduled"]]

    wait_for(triggered, 300, "the automation's run")
    run = str(triggered()[0]["id"])
    state = fleet.finished(run)
    assert state["type"] == "COMPLETED", state["message"]
    # Of one training: that without a bucket is not followed by any. A locked database makes Prefect
    # ask again, to no effect.
    assert len({row["parameters"]["after"] for row in triggered()}) == 1
    for again in triggered():
        assert fleet.finished(again["id"])["type"] == "COMPLETED"
    message = "no run is promoted"
    # Logs arrive later than states.
    wait_for(lambda: any(message in fleet.logs(row["id"]) for row in triggered()), 60, "that line")
    (shown,) = published(fleet, "nightly")
    night, gpu = fleet.folder / "night", fleet.folder / "gpu"
    assert (
        outputs(night)["models/gdpo"]
        == outputs(gpu)["models/gdpo"]
        != outputs(fleet.folder / "head")["models/gdpo"]
    )
    assert body(fleet, f"runs/{shown}/index.html") == (gpu / "reports/index.html").read_bytes()
    for worker in ("night", "gpu"):
        fleet.kill(worker)
    fleet.worker("gpu", "a100")


def test_of_two_promotions_at_once_one_wins_and_the_nightly_compares(
    fleet: Fleet, long_run: Path
) -> None:
    runs = published(fleet, "train")
    assert len(runs) == 2
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "tasks", "promote", run],
            cwd=long_run,
            env=fleet.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for run in runs
    ]
    printed = [process.communicate()[0] for process in both]
    codes = [process.returncode for process in both]
    pointer = json.loads(body(fleet, "models/latest.json"))
    assert [entry["run"] for entry in pointer["promoted"]][::-1] == [
        run
        for run, code in sorted(
            zip(runs, codes, strict=True), key=lambda pair: pair[0] == pointer["run"]
        )
        if code == 0
    ], printed
    assert tool(fleet, long_run, "promote", runs[1]).returncode == 0  # the longer training
    # Its scores, and the lock entries of the training: what the nightly judges.
    commit(long_run, "promoted")

    same = fleet.start("gdpo-evaluate/nightly")
    state = fleet.finished(same)
    assert state["type"] == "COMPLETED", state["message"]

    promote_a_better_one(fleet, runs[1])
    worse = fleet.start("gdpo-evaluate/nightly")
    state = fleet.finished(worse)
    assert state["type"] == "FAILED"
    assert "sample regressed: " in state["message"] and "psnr_y" in state["message"]


def test_a_failing_stage_fails_once_with_its_last_lines(fleet: Fleet) -> None:
    unknown = fleet.start("gdpo-stage/cpu", stage="nothing")
    elsewhere = fleet.start("gdpo-stage/cpu", stage="select", commit="0" * 40)
    assert "there is no stage nothing in dvc.yaml; there is " in fleet.finished(unknown)["message"]
    assert "check out the same commit here" in fleet.finished(elsewhere)["message"]

    place = fleet.folder / "one"
    shutil.copy(fleet.folder / "head/dvc.lock", place)
    before = (place / "params.yaml").read_bytes()
    # Of the best score alone, and only if it is detail everywhere, which it is not.
    set_params(place, {"select.min_detail": 1.0, "select.best": 0.0001})
    run = fleet.start("gdpo-stage/cpu", stage="select")
    state = fleet.finished(run)
    (place / "params.yaml").write_bytes(before)
    assert state["type"] == "FAILED"
    assert "lower select.min_detail" in state["message"]
    counts = {task["name"]: task["run_count"] for task in fleet.tasks(run)}
    assert counts == {"fetch the pipeline's lock entries": 1, "pull for select": 1, "select": 1}


def test_faults_of_s3_are_waited_out(fleet: Fleet) -> None:
    """503 and cut answers until the S3 client gives up, then slow ones: transfers are repeated, the
    stage is not.
    """
    seen = {"faults": 0, "slow": 0}
    mended = threading.Event()

    def fault(method: str, path: str) -> int | str | None:
        if "/dvc/" not in path and "prefix=dvc" not in path:
            return None
        if mended.is_set():
            seen["slow"] += 1
            time.sleep(0.2)
            return None
        seen["faults"] += 1
        return 503 if seen["faults"] % 2 else "cut"

    def repeated() -> bool:
        return any(
            task["state_name"] == "AwaitingRetry" or task["run_count"] > 1
            for task in fleet.tasks(run)
        )

    fleet.kill("one")
    with s3.proxy(fleet.s3, fault) as url:
        # One attempt: the client by itself would wait for minutes before it says so.
        # It fetches the pipeline's lock entries from S3.
        fresh = fleet.worker("fresh", "cpu", AWS_ENDPOINT_URL=url, AWS_MAX_ATTEMPTS="1")
        run = fleet.start("gdpo-stage/cpu", stage="select")
        wait_for(repeated, 900, "a second try")
        mended.set()
        state = fleet.finished(run)
    assert state["type"] == "COMPLETED", state["message"]
    counts = {task["name"]: task["run_count"] for task in fleet.tasks(run)}
    assert counts["pull for select"] > 1 and counts["select"] == 1
    assert min(seen.values()) > 3
    assert outputs(fresh)["data/selected"] == outputs(fleet.folder / "plain")["data/selected"]


@pytest.mark.parametrize("secret", [s3.SECRET, PASSWORD], ids=["s3", "prefect"])
def test_the_secret_is_nowhere(fleet: Fleet, secret: str) -> None:
    """In no log, artifact, result, lock or report: it is in the workers' environment and there
    alone.
    """
    assert secret not in fleet.log_files()
    # Sorted so that the scheduled runs of coming nights are last.
    runs = fleet.post("flow_runs/filter", limit=200, sort="EXPECTED_START_TIME_ASC")
    assert sum(row["state_type"] in FINAL for row in runs) > 10
    for run in runs:
        assert secret not in fleet.logs(run["id"])
        assert secret not in json.dumps(run)
    shown = json.dumps(fleet.post("artifacts/filter", limit=200))
    # A signed URL grants access until it expires.
    assert secret not in shown and "X-Amz-" not in shown
    assert secret not in json.dumps(fleet.post("block_documents/filter", include_secrets=True))
    assert secret not in json.dumps(fleet.post("deployments/filter"))
    for key in objects(fleet):
        assert secret.encode() not in body(fleet, key), key
    for clone in ("head", "one", "two", "plain", "laptop", "gpu", "straight", "night", "fresh"):
        assert (fleet.folder / clone / "dvc.lock").is_file(), clone
        for path in (fleet.folder / clone).rglob("*"):
            if (
                path.is_file()
                and ".git" not in path.parts
                and path.name not in ("s3.py", "fleet.py")
            ):
                assert secret.encode() not in path.read_bytes(), path
