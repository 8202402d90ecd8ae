"""Publishes a run: uploads the report, and adds a link and a table to the Prefect flow run.

    share   reports/ and the model  ->  s3://BUCKET/runs/<id>/, listed in runs/index.html
            (tasks/publish/publication.py)
    local   uploads nothing; the same artifacts, with a link to the file on this machine

The Prefect variable `gdpo_store` names the bucket; `python -m flows.setup` sets it. Endpoint and
credentials come from the environment.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from prefect import task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.variables import Variable

from flows.dvc.graph import graph
from flows.dvc.run import RETRIES, StageFailed, commit_of, pull
from flows.workplace import read_ledger
from tasks.publish import publication
from tasks.report import summary

STORE_VARIABLE = "gdpo_store"


def publish(root: Path, *, share: bool, kind: str = "train") -> str:
    """Create the flow run's artifacts from the files the stages wrote; return the report's address.

    share: upload the report and the model first.
    """
    if share:
        outs = shown(root)
        pull("publication", outs, root)
        link = upload(root, outs, kind, datetime.now(UTC), commit_of(root))
        how = f"{link}\n\nWithout a gateway: `gdpo-sr browse --store {store_url()}`"
    else:
        link, how = (root / summary.REPORT).as_uri(), None
    table, verdict = summary.artifact(summary.read(root))
    create_table_artifact(key="gdpo-evaluation", table=table, description=verdict)
    create_link_artifact(key="gdpo-report", link=link, link_text="report", description=how)
    return link


def shown(root: Path) -> Sequence[str]:
    """The outputs to publish: those of dvc.yaml's stages below reports/, and the model.

    dvc.lock may list more: DVC keeps the entries of stages and parts that dvc.yaml no longer has.
    """
    known = read_ledger(root)
    outs = [out["path"] for stage in graph(root) for out in known.get(stage, {}).get("outs", [])]
    return sorted(path for path in outs if path.startswith("reports/") or path == "models/gdpo")


@task(task_run_name="upload", cache_policy=NO_CACHE, **RETRIES)
def upload(root: Path, outs: Sequence[str], kind: str, when: datetime, commit: str) -> str:
    """Publish the run and return the address of its report."""
    run = publication.run_id(when, commit)
    return publication.publish(
        root, store_url(), run, outs=outs, kind=kind, commit=commit, when=when
    )


def store_url() -> str:
    """The bucket of runs and models, s3://BUCKET. `StageFailed` if the server is not set up."""
    store = Variable.get(STORE_VARIABLE)
    if not isinstance(store, str):
        raise StageFailed(
            f"the Prefect variable {STORE_VARIABLE} is not set: python -m flows.setup"
        )
    return store
