"""What a run leaves for people: the report in the bucket, and on the Prefect run a link and a
table.

    share   reports/ and the model  ->  s3://BUCKET/runs/<id>/, listed in runs/index.html
            (tasks/publish/publication.py)
    local   the same artifacts, the link leads to the file on this machine

The bucket is the Prefect variable `gdpo_store`, which `python -m flows.setup` makes; endpoint and
credentials are the environment's.
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
    """Upload if asked to, then make the artifacts of the run, from the files the stages wrote;
    returns the report's address.
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
    """The outputs that a published run consists of: what dvc.yaml's stages made under reports/, and
    the model.

    The ledger may know of others: DVC keeps the entries of stages, and of parts, that dvc.yaml no
    longer has.
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
    """The bucket of runs and models, s3://BUCKET; `StageFailed` if the server has not been set
    up.
    """
    store = Variable.get(STORE_VARIABLE)
    if not isinstance(store, str):
        raise StageFailed(
            f"the Prefect variable {STORE_VARIABLE} is not set: python -m flows.setup"
        )
    return store
