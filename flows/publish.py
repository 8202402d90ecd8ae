"""Publishes a run: uploads the report, and adds a link and a table to the Prefect flow run.

share   reports/ and the model  ->  s3://BUCKET/runs/<id>/, listed in runs/index.html
        (tasks/publish/publication.py)
local   uploads nothing; the same artifacts, with a link to the file on this machine
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from prefect import get_run_logger, task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from flows.dvc.bucket import store_url
from flows.dvc.graph import graph
from flows.dvc.run import RETRIES, commit_of, pull
from flows.workplace import read_lock_entries
from tasks.publish import publication
from tasks.report import summary
from tasks.systems import SYSTEMS


def publish(root: Path, *, share: bool, kind: str = "train", system: str = "gdpo") -> str:
    """Create the flow run's artifacts from the files the stages wrote; return the report's address.

    share: upload the report and the model first. system: a key of `SYSTEMS`.
    """
    if share:
        outs = shown(root, system)
        pull("publication", outs, root)
        link = upload(root, outs, kind, datetime.now(UTC), commit_of(root), system)
        how = f"{link}\n\nWithout a gateway: `gdpo-sr browse --store {store_url()}`"
    else:
        link, how = (root / SYSTEMS[system].report).as_uri(), None
    table, verdict = summary.artifact(summary.read(root, system=system))
    create_table_artifact(key=f"{system}-evaluation", table=table, description=verdict)
    create_link_artifact(key=f"{system}-report", link=link, link_text="report", description=how)
    return link


def shown(root: Path, system: str = "gdpo") -> Sequence[str]:
    """The outputs to publish: those of dvc.yaml's stages below the system's reports, and its model.

    dvc.lock may list more: DVC keeps the entries of stages and parts that dvc.yaml no longer has.
    """
    known = read_lock_entries(root)
    outs = [out["path"] for stage in graph(root) for out in known.get(stage, {}).get("outs", [])]
    return sorted(path for path in outs if SYSTEMS[system].has(path))


@task(task_run_name="upload", cache_policy=NO_CACHE, **RETRIES)
def upload(
    root: Path, outs: Sequence[str], kind: str, when: datetime, commit: str, system: str
) -> str:
    """Publish the run and return the address of its report."""
    run = publication.run_id(when, commit)
    return publication.publish(
        root,
        store_url(),
        run,
        outs=outs,
        kind=kind,
        commit=commit,
        when=when,
        warn=get_run_logger().warning,
        system=system,
    )
