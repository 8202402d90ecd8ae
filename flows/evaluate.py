"""The nightly evaluation: the flow `gdpo-evaluate`, deployed as gdpo-evaluate/nightly.

    repro     dvc repro --single-item for evaluate@... and report; up-to-date stages do not run
    publish   to runs/<date>-<commit>/, with the kind "nightly"
    compare   with the promoted run, as `python -m tasks evaluate --against FILE` does; a regression
              fails the flow run, and the message names the metrics

The flow evaluates the models that the lock entries at HEAD (the committed dvc.lock) name. After a
training it evaluates the models in the training's lock entries instead. It fails if the models were
made with other code or parameters than this clone has. The committed dvc.lock replaces the one that
this clone's last run left, so at 02:00 every worker evaluates the same models.

The flow promotes nothing and does not write the pointer models/latest.json. Without a promoted run
there is nothing to compare with; this is logged and is not an error. A scheduled flow run that no
worker started before the next one was due is skipped.
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

    after: the id of the gdpo-train flow run whose models are evaluated, on any worker. By default
    the models in the committed dvc.lock.
    """
    if after is None:
        if is_late(FlowRunContext.get(), datetime.now(UTC)):
            return Completed(
                message="a day late, and skipped: the run of the next night judges the same"
            )
        restore_ledger(ROOT)
    else:
        # The automation can create this flow run twice: a Prefect server that briefly loses its
        # database repeats the action.
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
    """Whether a scheduled flow run starts so late that the next one is already due.

    False for flow runs that were not scheduled, and for retries.
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
    """Whether an automation created the flow run, and this is its first attempt."""
    run = context.flow_run if context else None
    return (
        run is not None
        and run.run_count == 1
        and run.created_by is not None
        and run.created_by.type == "AUTOMATION"
    )


def restore_ledger(root: Path) -> None:
    """Replace the clone's dvc.lock with the committed one. `StageFailed` if none is committed."""
    content = committed("dvc.lock", root)
    if content is None:
        raise StageFailed(
            "no dvc.lock is committed here, so no models are named: commit that of the training "
            "to be judged"
        )
    replace_ledger(root, content)


@task(cache_policy=NO_CACHE, **RETRIES)
def promoted_scores(root: Path) -> dict[str, Path]:
    """The promoted run's scores as {benchmark: per_image.parquet below work/promoted}.

    Only the benchmarks in evaluate.benchmarks; {} if nothing is promoted.
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
    """The regressed metrics of a benchmark as one line, "" if none regressed.

    before: the promoted run's per_image.parquet. ValueError if the two runs cannot be compared.
    """
    code = against.check(load(root / "params.yaml"), root, benchmark, str(before))
    found = json.loads((root / "reports/against" / f"{benchmark}.json").read_text(encoding="utf-8"))
    get_run_logger().info("%s: %s", benchmark, json.dumps(found))
    return (
        f"{benchmark} regressed: {', '.join(found['regressed'])}"
        if code == against.REGRESSED
        else ""
    )
