"""Lock entries in the bucket, so that another clone can continue from a flow run's outputs.

results/ledgers/<commit>.json       stored by gdpo-pipeline/head; trainings and single stages at
                                    that commit start from these entries
results/ledgers/<flow run>.json     stored by gdpo-train; the evaluation that follows evaluates
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

from flows.dvc.run import RETRIES, StageFailed, check_commit, commit_of
from flows.publish import store_url
from flows.workplace import ROOT, read_ledger, write_ledger
from tasks.store.s3 import Store


@task(task_run_name="leave the ledger", cache_policy=NO_CACHE, **RETRIES)
def leave_ledger(root: Path, name: str, commit: str) -> None:
    """Store the clone's lock entries in the bucket.

    name: the flow run's id, or the commit. commit: the one at which the stages ran.
    """
    content = {"commit": commit, "stages": read_ledger(root)}
    Store.at(store_url()).write(_key(name), json.dumps(content).encode())


@task(task_run_name="take the ledger", cache_policy=NO_CACHE, **RETRIES)
def take_ledger(root: Path, run: str) -> None:
    """Merge the lock entries that a flow run stored into the clone's dvc.lock.

    `StageFailed` if the flow run stored none, or ran at another commit.
    """
    try:
        content = json.loads(Store.at(store_url()).read(_key(run)))
    except ValueError as error:
        raise StageFailed(
            f"run {run} left no ledger to go on from, as with share=false ({error})"
        ) from error
    check_commit(root, content["commit"], f"run {run} was")
    write_ledger(root, content["stages"])


@task(task_run_name="take the pipeline's ledger", cache_policy=NO_CACHE, **RETRIES)
def take_pipelines_ledger(root: Path) -> None:
    """Merge the lock entries that gdpo-pipeline stored for this commit, if any, into dvc.lock."""
    store, key = Store.at(store_url()), _key(commit_of(root))
    if store.tag(key) is not None:
        write_ledger(root, json.loads(store.read(key))["stages"])


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
    return f"results/ledgers/{name}.json"


def main() -> int:
    """Merge a training's lock entries into dvc.lock and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.dvc.lock",
        description="Lay the ledger that a run of gdpo-train left over dvc.lock here.",
    )
    parser.add_argument(
        "run", metavar="FLOW_RUN", help="the id of the flow run, as Prefect shows it"
    )
    run = parser.parse_args().run
    if not PREFECT_API_URL.value():
        sys.stderr.write("PREFECT_API_URL is not set: it names the server that knows the bucket\n")
        return 2
    try:
        take_ledger.fn(ROOT, run)
    except (StageFailed, OSError, httpx.TransportError) as error:
        away = (
            "the Prefect server does not answer: "
            if isinstance(error, httpx.TransportError)
            else ""
        )
        sys.stderr.write(f"{away}{error}\n")
        return 1
    sys.stdout.write(
        f"dvc.lock has what run {run} made; `git commit dvc.lock` names it for the nights to come\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
