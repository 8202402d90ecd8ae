"""The nightly evaluation: the flow `gdpo-evaluate`, deployed as gdpo-evaluate/nightly.

    stages it needs, up to date     dvc repro --single-item evaluate@..., report        (nothing
                                    runs if nothing changed)
    against the promoted run        as `python -m tasks evaluate --against FILE` does; a regression
                                    fails the run, by name
    publish                         runs/<date>-<commit>/ of the kind "nightly"

It judges the models that the committed ledger (dvc.lock at HEAD) names, or the ledger of the
training which it follows, and refuses them if they were made with other code or parameters than
those here. The committed ledger takes the place of what this clone's last run left: at 02:00 every
worker judges the same. It promotes nothing and touches no pointer. Without a promoted run there is
nothing to compare with, and that is logged, not an error. A night that no worker had time for until
the next came is skipped.
"""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.states import Completed

from flows.dvc.graph import check_inputs, graph
from flows.dvc.lock import evaluation_of, note_evaluation, take_ledger
from flows.dvc.run import RETRIES, StageFailed, committed, pull, push, repro
from flows.publish import publish, store_url
from flows.workplace import ROOT, replace_ledger
from tasks.params import load
from tasks.publish import publication
from tasks.report import against
from tasks.store.s3 import Store

NIGHT = timedelta(days=1)


@flow(name="gdpo-evaluate")
def evaluate(after: UUID | None = None) -> "State[None] | None":
    """Bring the evaluation up to date, publish it, and fail if it is worse than the promoted run.

    after: the id of the run of gdpo-train whose models are judged, wherever it ran; by default
    those of the committed ledger.
    """
    if after is None:
        if is_late(FlowRunContext.get(), datetime.now(UTC)):
            return Completed(
                message="a day late, and skipped: the run of the next night judges the same"
            )
        restore_ledger(ROOT)
    else:
        # A server that cannot reach its database for a moment does the same again, and may have
        # done it already.
        if by_automation(FlowRunContext.get()) and (there := evaluation_of(str(after))):
            return Completed(message=f"run {after} was evaluated: {there}")
        take_ledger(ROOT, str(after))
    edges = graph(ROOT)
    mine = [stage for stage in edges if stage.partition("@")[0] in ("evaluate", "report")]
    pull("gdpo-evaluate", check_inputs("the evaluation", mine, edges, ROOT), ROOT)
    for stage in mine:
        repro(stage, ROOT, share=True)
        push(stage, ROOT)
    link = publish(ROOT, share=True, kind="nightly")
    if after is not None:
        note_evaluation(str(after), link)
    regressions = [
        text
        for benchmark, scores in promoted_scores(ROOT).items()
        if (text := compare(benchmark, scores, ROOT))
    ]
    if regressions:
        raise StageFailed("\n".join(regressions))
    return None


def is_late(context: FlowRunContext | None, now: datetime) -> bool:
    """Whether the schedule made the run, and it begins when the next is due. Not one that somebody
    asked for, or repeats.
    """
    run = context.flow_run if context else None
    if (
        run is None
        or not run.auto_scheduled
        or run.run_count > 1
        or run.expected_start_time is None
    ):
        return False
    return now - run.expected_start_time > NIGHT


def by_automation(context: FlowRunContext | None) -> bool:
    """Whether nobody asked for the run but the automation that evaluates trainings."""
    run = context.flow_run if context else None
    return (
        run is not None
        and run.run_count == 1
        and run.created_by is not None
        and run.created_by.type == "AUTOMATION"
    )


def restore_ledger(root: Path) -> None:
    """Put the committed dvc.lock in the place of the clone's. `StageFailed` if none is
    committed.
    """
    content = committed("dvc.lock", root)
    if content is None:
        raise StageFailed(
            "no dvc.lock is committed here, so no models are named: commit that of the training "
            "to be judged"
        )
    replace_ledger(root, content)


@task(cache_policy=NO_CACHE, **RETRIES)
def promoted_scores(root: Path) -> dict[str, Path]:
    """The promoted run's scores, {benchmark: per_image.parquet below work/promoted}, of those
    benchmarks that are run here.

    {} if nothing is promoted.
    """
    store = Store.at(store_url())
    known, _ = publication.promoted(store)
    if not known:
        get_run_logger().warning(
            "no run is promoted: nothing to compare with (gdpo-sr promote RUN)"
        )
        return {}
    manifest = publication.manifest_of(store, known[0]["run"])
    found = publication.bring_scores(store, manifest, root / "work/promoted")
    scores = {path.parent.name: path for path in found}
    here = load(root / "params.yaml").evaluate.benchmarks
    for benchmark in sorted(scores.keys() - here):
        get_run_logger().warning(
            "%s is not in evaluate.benchmarks: not compared with run %s", benchmark, manifest["run"]
        )
    return {benchmark: path for benchmark, path in scores.items() if benchmark in here}


@task(task_run_name="compare {benchmark}", cache_policy=NO_CACHE)
def compare(benchmark: str, before: Path, root: Path) -> str:
    """What regressed on a benchmark, "" if nothing did. ValueError if the two runs cannot be
    compared.
    """
    code = against.check(load(root / "params.yaml"), root, benchmark, str(before))
    found = json.loads((root / "reports/against" / f"{benchmark}.json").read_text(encoding="utf-8"))
    get_run_logger().info("%s: %s", benchmark, json.dumps(found))
    return (
        f"{benchmark} regressed: {', '.join(found['regressed'])}"
        if code == against.REGRESSED
        else ""
    )
