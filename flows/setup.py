"""Creates everything on the Prefect server that the flows need, or updates what exists.

    python -m flows.setup [--store s3://BUCKET] [--heartbeat S] [--notify URL]

An option that is left out keeps the server's value. On a new server that is s3://gdpo-sr and 180,
and alerts are off.
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
    automations     those of flows/automations.py
"""

import argparse
import re
import subprocess
import sys
from datetime import timedelta
from urllib.parse import urlparse

import httpx
from apprise import Apprise
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.events.actions import RunDeployment
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.settings import PREFECT_API_URL
from prefect.variables import Variable
from prefect_aws import AwsCredentials, S3Bucket

from flows import automations
from flows.dvc.bucket import STORE_VARIABLE
from flows.dvc.run import TRANSFER_TAG
from flows.workplace import RESULTS_BLOCK, ROOT
from tasks.arguments import DEFAULT_STORE

POOLS = {
    "head": "one light process per pipeline run: it walks the graph and sends stages to the other "
    "pools",
    "cpu": "degrade and report; any host",
    "a100": "stages with models; one worker per GPU, each with its CUDA_VISIBLE_DEVICES and "
    "--limit 1",
}
TRANSFERS = 16
HEARTBEAT_S = 180
HEARTBEAT_VARIABLE = "gdpo_heartbeat_s"
# The id of the training's flow run that completed.
AFTER = {"after": {"__prefect_kind": "jinja", "template": "{{ flow_run.id }}"}}


def setup(
    store: str | None = None, heartbeat_s: int | None = None, notify: str | None = None
) -> str:
    """Create or update everything; returns the bucket.

    store: s3://BUCKET. heartbeat_s: PREFECT_FLOWS_HEARTBEAT_FREQUENCY of the workers. notify: the
    web hook or e-mail address to which failed, crashed and late flow runs are reported
    (`automations.alerts_block`). None keeps the server's value.
    ValueError naming `store` or `notify` if it is no URL of its kind.
    """
    if notify is not None and not _takes_alerts(notify):
        raise ValueError(
            "--notify must be the http or https address of a web hook, or "
            "mailtos://USER:PASSWORD@SMTP-HOST?from=ADDRESS&to=ADDRESS"
        )
    store = store or str(Variable.get(STORE_VARIABLE, DEFAULT_STORE))
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
        # Not gdpo-train/local: its outputs stay on its machine.
        train = client.read_deployment_by_name("gdpo-train/a100")
    # A slow network may lose one or two heartbeats; a window of one interval would mark healthy
    # runs Crashed.
    window = timedelta(seconds=3 * heartbeat_s)
    automations.create_or_update(automations.mark_crashed_without_heartbeats(window))
    automations.create_or_update(automations.mark_crashed_if_never_started(window))
    automations.create_or_update(automations.mark_cancelled_if_not_ended(window))
    if notify is not None:
        automations.create_or_update(automations.alert(automations.alerts_block(notify)))
    automations.create_or_update(
        automations.evaluate_after_training(
            train.id,
            RunDeployment(
                deployment_id=nightly.id, source="selected", parameters=AFTER, job_variables=None
            ),
        )
    )
    return f"s3://{bucket.netloc}"


def _takes_alerts(url: str) -> bool:
    if re.match(r"mailtos?://[^/\s]", url):
        return Apprise().add(url)
    return re.match(r"https?://[^/\s]", url) is not None


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


def main() -> int:
    """Set up the server and return the exit code: 1 no answer, 2 wrong usage or settings."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.setup", description="Set up the Prefect server at PREFECT_API_URL."
    )
    parser.add_argument(
        "--store",
        metavar="URL",
        help=f"bucket of runs, models and results; at first {DEFAULT_STORE}, then what it was",
    )
    parser.add_argument(
        "--heartbeat",
        type=int,
        metavar="S",
        help="PREFECT_FLOWS_HEARTBEAT_FREQUENCY of the workers; a run silent three times as long "
        "is marked crashed; "
        f"at first {HEARTBEAT_S}, then what it was",
    )
    parser.add_argument(
        "--notify",
        metavar="URL",
        help="where runs that failed, crashed or are late are reported: a web hook (of Slack, "
        'Mattermost, ...), which gets {"text": ...}, or e-mail by '
        "mailtos://USER:PASSWORD@SMTP-HOST?from=ADDRESS&to=ADDRESS; "
        "at first none, then what it was",
    )
    args = parser.parse_args()
    if not PREFECT_API_URL.value():
        sys.stderr.write(
            "PREFECT_API_URL is not set: without it a server is started that ends with this "
            "command\n"
        )
        return 2
    try:
        store = setup(args.store, args.heartbeat, args.notify)
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
