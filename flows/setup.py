"""Creates everything on the Prefect server that the flows need, or updates what exists.

    python -m flows.setup [--store s3://BUCKET] [--heartbeat S]

An option that is left out keeps the server's value. On a new server that is s3://gdpo-sr and 180.
The command can be repeated at any time.

    work pools      head, cpu, a100: process workers
    queues          pipeline on head, nightly on a100: one flow run at a time, others wait; the
                    pool's default queue has priority over them
    limits          tag gdpo-transfer: how many pulls and pushes run at once (one stage per worker
                    comes from the worker's own --limit 1)
    variables       gdpo_store: the bucket with runs/, models/ and the results of flow runs;
                    gdpo_heartbeat_s: the heartbeat interval of the workers
    results         S3Bucket block `gdpo-results`; endpoint and credentials stay in each worker's
                    environment
    deployments     those in prefect.yaml
    automations     a flow run without heartbeats is marked Crashed; a completed flow run of
                    gdpo-train/a100 is evaluated
"""

import argparse
import subprocess
import sys
from datetime import timedelta
from typing import cast
from urllib.parse import urlparse
from uuid import UUID

import httpx
from prefect.automations import Automation
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import StateType
from prefect.events import EventTrigger, Posture, ResourceSpecification
from prefect.events.actions import ChangeFlowRunState, RunDeployment
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.settings import PREFECT_API_URL
from prefect.variables import Variable
from prefect_aws import AwsCredentials, S3Bucket

from flows.dvc.run import TRANSFER_TAG
from flows.publish import STORE_VARIABLE
from flows.workplace import RESULTS_BLOCK, ROOT

POOLS = {
    "head": "one light process per pipeline run: it walks the graph and sends stages to the other "
    "pools",
    "cpu": "degrade and report; any host",
    "a100": "stages with models; one worker per GPU, each with its CUDA_VISIBLE_DEVICES and "
    "--limit 1",
}
TRANSFERS = 16
STORE = "s3://gdpo-sr"
HEARTBEAT_S = 180
HEARTBEAT_VARIABLE = "gdpo_heartbeat_s"
_ENDS = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
AFTER = {
    "after": {"__prefect_kind": "jinja", "template": "{{ flow_run.id }}"}
}  # the id of the training's flow run that completed
_BEAT = "prefect.flow-run.heartbeat"


def setup(store: str | None = None, heartbeat_s: int | None = None) -> str:
    """Create or update everything; returns the bucket.

    store: s3://BUCKET. heartbeat_s: PREFECT_FLOWS_HEARTBEAT_FREQUENCY of the workers. None keeps
    the server's value. ValueError naming `store` if it is not a bucket's URL.
    """
    store = store or str(Variable.get(STORE_VARIABLE, STORE))
    bucket = urlparse(store)
    if bucket.scheme != "s3" or not bucket.netloc or bucket.path.strip("/"):
        raise ValueError(f"--store must be s3://BUCKET, got {store}")
    heartbeat_s = heartbeat_s or int(str(Variable.get(HEARTBEAT_VARIABLE, HEARTBEAT_S)))
    with get_client(sync_client=True) as client:
        for name, description in POOLS.items():
            _pool(client, name, description)
        # One flow run at a time: two pipeline runs would write the same clone's dvc.lock. The
        # others wait and are not dropped, so every training is evaluated even if several end at
        # once.
        _queue(client, "head", "pipeline")
        _queue(client, "a100", "nightly")
        client.upsert_global_concurrency_limit_by_name(f"tag:{TRANSFER_TAG}", TRANSFERS)
    Variable.set(STORE_VARIABLE, f"s3://{bucket.netloc}", overwrite=True)
    Variable.set(HEARTBEAT_VARIABLE, heartbeat_s, overwrite=True)
    results = S3Bucket(
        bucket_name=bucket.netloc, bucket_folder="results", credentials=AwsCredentials()
    )
    results.save(RESULTS_BLOCK, overwrite=True)
    _deploy()
    with get_client(sync_client=True) as client:
        nightly = client.read_deployment_by_name("gdpo-evaluate/nightly")
        train = client.read_deployment_by_name(
            "gdpo-train/a100"
        )  # not gdpo-train/local: its outputs stay on its machine
    _automation(_crash_the_dead(timedelta(seconds=3 * heartbeat_s)))
    _automation(
        _evaluate_after_training(
            train.id,
            RunDeployment(
                deployment_id=nightly.id, source="selected", parameters=AFTER, job_variables=None
            ),
        )
    )
    return f"s3://{bucket.netloc}"


def _deploy() -> None:
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if result.returncode != 0:
        raise ValueError(f"prefect deploy --all failed: {(result.stderr or result.stdout).strip()}")


def _pool(client: SyncPrefectClient, name: str, description: str) -> None:
    try:
        client.create_work_pool(WorkPoolCreate(name=name, type="process", description=description))
    except ObjectAlreadyExists:
        client.update_work_pool(name, WorkPoolUpdate(description=description))


def _queue(client: SyncPrefectClient, pool: str, name: str) -> None:
    try:
        queue = client.read_work_queue_by_name(name, work_pool_name=pool)
    except ObjectNotFound:
        client.create_work_queue(name, work_pool_name=pool, priority=2, concurrency_limit=1)
    else:
        client.update_work_queue(queue.id, priority=2, concurrency_limit=1)


def _crash_the_dead(window: timedelta) -> Automation:
    """The automation that marks a flow run Crashed after `window` without a heartbeat.

    A self-hosted server does not do this by itself. Without the automation, a flow run whose host
    failed would stay Running for ever.
    """
    return Automation(
        name="gdpo: mark dead runs crashed",
        trigger=EventTrigger(
            after={_BEAT},
            expect={_BEAT} | _ENDS,
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=window,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED, name=None, message="no sign of life from the worker"
            )
        ],
    )


def _evaluate_after_training(train: UUID, evaluate: RunDeployment) -> Automation:
    return Automation(
        name="gdpo: evaluate after training",
        trigger=EventTrigger(
            expect={"prefect.flow-run.Completed"},
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=ResourceSpecification(
                {"prefect.resource.id": f"prefect.deployment.{train}"}
            ),
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[evaluate],
    )


def _automation(wanted: Automation) -> None:
    try:
        there = cast(Automation, Automation.read(name=wanted.name))
    except ValueError:  # there is no automation of this name
        wanted.create()
        return
    there.trigger, there.actions, there.enabled = wanted.trigger, wanted.actions, True
    there.update()


def main() -> int:
    """Set up the server and return the exit code: 1 no answer, 2 wrong usage or settings."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.setup", description="Set up the Prefect server at PREFECT_API_URL."
    )
    parser.add_argument(
        "--store",
        metavar="URL",
        help=f"bucket of runs, models and results; at first {STORE}, then what it was",
    )
    parser.add_argument(
        "--heartbeat",
        type=int,
        metavar="S",
        help="PREFECT_FLOWS_HEARTBEAT_FREQUENCY of the workers; a run silent three times as long "
        "is marked crashed; "
        f"at first {HEARTBEAT_S}, then what it was",
    )
    args = parser.parse_args()
    if not PREFECT_API_URL.value():
        sys.stderr.write(
            "PREFECT_API_URL is not set: without it a server is started that ends with this "
            "command\n"
        )
        return 2
    try:
        store = setup(args.store, args.heartbeat)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except httpx.TransportError as error:
        sys.stderr.write(f"PREFECT_API_URL: {PREFECT_API_URL.value()} does not answer ({error})\n")
        return 1
    sys.stdout.write(
        f"pools {', '.join(POOLS)}, deployments and automations are set up; results go to {store}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
