"""What a run leaves for people: the report in the bucket, and on the Prefect run a link and a table.

    share   reports/ and the model  ->  s3://BUCKET/runs/<id>/, listed in runs/index.html      (tasks/publication.py)
    local   the same artifacts, the link leads to the file on this machine

The bucket is the Prefect variable `gdpo_store`, which `python -m flows.setup` makes; endpoint and credentials are the
environment's.
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from prefect import task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.variables import Variable

from flows.repro import RETRIES, StageFailed, check_commit, commit_of, pull
from flows.workplace import Ledger, read_ledger, write_ledger
from tasks import publication, summary
from tasks.store import Store

STORE_VARIABLE = "gdpo_store"


def publish(root: Path, *, share: bool, kind: str = "train") -> None:
    """Upload if asked to, then make the artifacts of the run, from the files the stages wrote."""
    if share:
        pull("publication", shown(read_ledger(root)), root)
        link = upload(root, kind, datetime.now(UTC), commit_of(root))
        how = f"{link}\n\nWithout a gateway: `gdpo-sr browse --store {store_url()}`"
    else:
        link, how = (root / summary.REPORT).as_uri(), None
    table, verdict = summary.artifact(summary.read(root))
    create_table_artifact(key="gdpo-evaluation", table=table, description=verdict)
    create_link_artifact(key="gdpo-report", link=link, link_text="report", description=how)


def shown(ledger: Ledger) -> Sequence[str]:
    """The outputs that a published run consists of: everything under reports/, and the model."""
    outs = [out["path"] for entry in ledger.values() for out in entry.get("outs", [])]
    return sorted(path for path in outs if path.startswith("reports/") or path == "models/gdpo")


@task(task_run_name="upload", cache_policy=NO_CACHE, **RETRIES)
def upload(root: Path, kind: str, when: datetime, commit: str) -> str:
    """Publish the run and return the address of its report."""
    return publication.publish(root, store_url(), publication.run_id(when, commit), kind=kind, commit=commit, when=when)


@task(task_run_name="leave the ledger", cache_policy=NO_CACHE, **RETRIES)
def leave_ledger(root: Path, run: UUID) -> None:
    """Write the clone's ledger and commit into the bucket, for who goes on from this flow run in another clone."""
    content = {"commit": commit_of(root), "stages": read_ledger(root)}
    Store.at(store_url()).write(_key(run), json.dumps(content).encode())


@task(task_run_name="take the ledger", cache_policy=NO_CACHE, **RETRIES)
def take_ledger(root: Path, run: UUID) -> None:
    """Lay the ledger that a flow run left over the clone's. `StageFailed` if it left none, or is of another commit."""
    try:
        content = json.loads(Store.at(store_url()).read(_key(run)))
    except ValueError as error:
        raise StageFailed(f"run {run} left no ledger to go on from, as with share=false ({error})") from error
    check_commit(root, content["commit"], f"run {run} was")
    write_ledger(root, content["stages"])


def _key(run: UUID) -> str:
    return f"results/ledgers/{run}.json"


def store_url() -> str:
    """The bucket of runs and models, s3://BUCKET; `StageFailed` if the server has not been set up."""
    store = Variable.get(STORE_VARIABLE)
    if not isinstance(store, str):
        raise StageFailed(f"the Prefect variable {STORE_VARIABLE} is not set: python -m flows.setup")
    return store
