"""Lock entries in the bucket, so that another clone can continue from a flow run's outputs.

results/lock/<commit>.json          stored by gdpo-pipeline/head; trainings and single stages at
                                    that commit start from these entries
results/lock/<flow run>.json        stored by gdpo-train; the evaluation that follows evaluates
                                    the models they name
results/evaluated/<flow run>.txt    the address of that evaluation's report, because Prefect's
                                    automations may request the same evaluation more than once

python -m flows.dvc.lock FLOW_RUN   merges a training's lock entries into dvc.lock here; once
                                    committed, every nightly evaluation uses its models
"""

import argparse
import json
import sys
from pathlib import Path

import httpx
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.settings import PREFECT_API_URL

from flows.dvc.bucket import store_url
from flows.dvc.run import RETRIES, StageFailed, check_commit, commit_of
from flows.workplace import ROOT, read_lock_entries, write_lock_entries
from tasks.store.s3 import Store


@task(task_run_name="store lock entries", cache_policy=NO_CACHE, **RETRIES)
def store_lock_entries(root: Path, name: str, commit: str) -> None:
    """Store the clone's lock entries in the bucket.

    name: the flow run's id, or the commit. commit: the one at which the stages ran.
    """
    content = {"commit": commit, "stages": read_lock_entries(root)}
    Store.at(store_url()).write(_key(name), json.dumps(content).encode())


@task(task_run_name="fetch lock entries", cache_policy=NO_CACHE, **RETRIES)
def fetch_lock_entries(root: Path, run: str) -> None:
    """Merge the lock entries that a flow run stored into the clone's dvc.lock.

    `StageFailed` if the flow run stored none, or ran at another commit.
    """
    try:
        content = json.loads(Store.at(store_url()).read(_key(run)))
    except ValueError as error:
        raise StageFailed(
            f"flow run {run} stored no lock entries, as with share=false ({error})"
        ) from error
    # Entries of another commit name outputs of other code; merged here, dvc would call them up to
    # date.
    check_commit(root, content["commit"], f"run {run} was")
    write_lock_entries(root, content["stages"])


@task(task_run_name="fetch the pipeline's lock entries", cache_policy=NO_CACHE, **RETRIES)
def fetch_pipeline_lock_entries(root: Path) -> None:
    """Merge the lock entries that gdpo-pipeline stored for this commit, if any, into dvc.lock."""
    # With uncommitted changes the name ends in their hash, so entries of other code are not found.
    store, key = Store.at(store_url()), _key(commit_of(root))
    if store.tag(key) is not None:
        write_lock_entries(root, json.loads(store.read(key))["stages"])


@task(task_run_name="note the evaluation", cache_policy=NO_CACHE, **RETRIES)
def note_evaluation(run: str, link: str) -> None:
    """Record that the models of a gdpo-train flow run were evaluated. link: the report."""
    Store.at(store_url()).write(f"results/evaluated/{run}.txt", link.encode())


@task(task_run_name="look for an evaluation", cache_policy=NO_CACHE, **RETRIES)
def evaluation_of(run: str) -> str | None:
    """The address of the report on a gdpo-train flow run's models; None if not evaluated."""
    store, key = Store.at(store_url()), f"results/evaluated/{run}.txt"
    return store.read(key).decode() if store.tag(key) is not None else None


def _key(name: str) -> str:
    return f"results/lock/{name}.json"


def main() -> int:
    """Merge a training's lock entries into dvc.lock and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.dvc.lock",
        description="Merge the lock entries that a run of gdpo-train stored into dvc.lock here.",
    )
    parser.add_argument(
        "run", metavar="FLOW_RUN", help="the id of the flow run, as Prefect shows it"
    )
    run = parser.parse_args().run
    if not PREFECT_API_URL.value():
        sys.stderr.write("PREFECT_API_URL is not set: it names the server that knows the bucket\n")
        return 2
    try:
        fetch_lock_entries.fn(ROOT, run)
    except (StageFailed, OSError, httpx.TransportError) as error:
        away = (
            "the Prefect server does not answer: "
            if isinstance(error, httpx.TransportError)
            else ""
        )
        sys.stderr.write(f"{away}{error}\n")
        return 1
    sys.stdout.write(
        f"dvc.lock names the outputs of run {run}; commit it, and nightly evaluations use them\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
