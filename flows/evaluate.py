"""The nightly evaluation: the flow `gdpo-evaluate`, deployed as gdpo-evaluate/nightly.

    repro     dvc repro --single-item for evaluate@... and report; up-to-date stages do not run;
              then the same for RealSR-R1 (vlcot-...), if dvc.lock names its model
    publish   to runs/<date>-<commit>/, with the kind "nightly", a run for each system
    compare   with the system's promoted run, as `python -m tasks evaluate --against FILE` does; a
              regression fails the flow run, and the message names the metrics

The flow evaluates the models that the lock entries at HEAD (the committed dvc.lock) name. After a
training it evaluates GDPO-SR's models in the training's lock entries instead. It fails if the
models were made with other code or parameters than this clone has. The committed dvc.lock replaces
the one that this clone's last run left, so at 02:00 every worker evaluates the same models.

The flow promotes nothing: it does not write the pointers (tasks/publish/promotion.py). Without a
promoted run there is nothing to compare with; this is logged and is not an error. A scheduled flow
run that no worker started before the next one was due is skipped.
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

from flows.dvc.bucket import store_url
from flows.dvc.graph import check_inputs, graph
from flows.dvc.lock import evaluation_of, fetch_lock_entries, note_evaluation
from flows.dvc.run import RETRIES, StageFailed, committed, pull, push, repro
from flows.publish import publish
from flows.workplace import ROOT, read_lock_entries, replace_lock
from tasks import paths
from tasks.commands import evaluation_stages
from tasks.params import load
from tasks.publish import promotion, records
from tasks.report import against
from tasks.run.exit_codes import REGRESSED
from tasks.store.s3 import Store
from tasks.systems import SYSTEMS

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
                message="skipped, a day late: the next nightly run evaluates the same models"
            )
        restore_committed_lock(ROOT)
    else:
        # The automation can create this flow run twice: a Prefect server that briefly loses its
        # database repeats the action.
        if by_automation(FlowRunContext.get()) and (report := evaluation_of(str(after))):
            return Completed(message=f"run {after} was already evaluated: {report}")
        fetch_lock_entries(ROOT, str(after))
    edges = graph(ROOT)
    failures = []
    for system in ["gdpo"] if after is not None else evaluated_systems(ROOT):
        try:
            failures += regressions(system, edges, after)
        except StageFailed as error:  # the other system is evaluated all the same
            failures.append(str(error))
    if failures:
        raise StageFailed("\n".join(failures))
    return None


def evaluated_systems(root: Path) -> list[str]:
    """GDPO-SR, and RealSR-R1 if dvc.lock names its model: after `make demo` alone it does not."""
    entries = read_lock_entries(root).values()
    outs = [out["path"] for entry in entries for out in entry.get("outs", [])]
    first, *others = SYSTEMS
    return [first, *(system for system in others if SYSTEMS[system].model in outs)]


def regressions(system: str, edges: dict[str, set[str]], after: UUID | None) -> list[str]:
    """Bring a system's evaluation and report up to date, publish them, and compare with its
    promoted run: a line for each benchmark that is worse.
    """
    names = evaluation_stages(system)
    stages = [stage for stage in edges if stage.partition("@")[0] in names]
    pull("gdpo-evaluate", check_inputs("the evaluation", stages, edges, ROOT), ROOT)
    for stage in stages:
        repro(stage, ROOT, share=True)
        push(stage, ROOT)
    link = publish(ROOT, share=True, kind="nightly", system=system)
    if after is not None:
        note_evaluation(str(after), link)
    # After publishing, so that the report of a run that fails can be looked at. All benchmarks are
    # compared before the run fails, so that one message names all regressions.
    promoted = promoted_scores(ROOT, system=system).items()
    lines = [compare(benchmark, scores, ROOT, system) for benchmark, scores in promoted]
    return [line for line in lines if line]


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


def restore_committed_lock(root: Path) -> None:
    """Replace the clone's dvc.lock with the committed one. `StageFailed` if none is committed."""
    content = committed("dvc.lock", root)
    if content is None:
        raise StageFailed(
            "no dvc.lock is committed here, so no models are named: commit the dvc.lock of the "
            "training to evaluate"
        )
    replace_lock(root, content)


@task(cache_policy=NO_CACHE, **RETRIES)
def promoted_scores(root: Path, system: str = "gdpo") -> dict[str, Path]:
    """The scores of the system's promoted run as {benchmark: per_image.parquet below
    work/promoted/<system>}.

    Only the benchmarks in evaluate.benchmarks; {} if nothing is promoted.
    """
    store = Store.at(store_url())
    promotions, _ = records.promoted(store, system)
    if not promotions:
        get_run_logger().warning(
            "%s: no run is promoted: nothing to compare with (gdpo-sr promote RUN)", system
        )
        return {}
    manifest = records.manifest_of(store, promotions[0]["run"])
    files = promotion.download_scores(store, manifest, paths.work(root, "promoted", system))
    scores = {file.parent.name: file for file in files}
    here = load(root / "params.yaml").evaluate.benchmarks
    for benchmark in sorted(scores.keys() - here):
        get_run_logger().warning(
            "%s is not in evaluate.benchmarks: not compared with run %s", benchmark, manifest["run"]
        )
    return {benchmark: path for benchmark, path in scores.items() if benchmark in here}


@task(task_run_name="compare {benchmark}", cache_policy=NO_CACHE)
def compare(benchmark: str, before: Path, root: Path, system: str = "gdpo") -> str:
    """The regressed metrics of a benchmark as one line, "" if none regressed.

    before: the promoted run's per_image.parquet. ValueError if the two runs cannot be compared.
    """
    code = against.check(load(root / "params.yaml"), root, benchmark, str(before), system)
    comparison = json.loads(
        (root / against.comparison(benchmark, system)).read_text(encoding="utf-8")
    )
    get_run_logger().info("%s: %s", benchmark, json.dumps(comparison))
    if code != REGRESSED:
        return ""
    name = benchmark if system == "gdpo" else f"{benchmark} of {system}"
    return f"{name} regressed: {', '.join(comparison['regressed'])}"
