"""One DVC stage on any worker: the flow `gdpo-stage`, deployed to the pools `cpu` and `a100`.

    prefect deployment run gdpo-stage/a100 -p stage=finetune@gdpo --watch

    pull    the outputs that the stage reads, as dvc.lock names them, from the DVC remote
    repro   dvc repro --single-item STAGE --pull; a known result comes from the run cache
    push    the stage's outputs and its run-cache entry to the DVC remote; never to git

The result of the flow run is the stage's lock entry.
"""

from prefect import flow

from flows.dvc.graph import check_inputs, graph
from flows.dvc.lock import fetch_pipeline_lock_entries
from flows.dvc.run import StageFailed, check_commit, pull, push, repro
from flows.workplace import RESULTS, ROOT, LockEntries, read_lock_entries, write_lock_entries


@flow(name="gdpo-stage", flow_run_name="{stage}", persist_result=True, result_storage=RESULTS)
def run_stage(
    stage: str, lock_entries: LockEntries | None = None, commit: str | None = None
) -> LockEntries:
    """Run one stage in this worker's clone and return {stage: its entry in dvc.lock}.

    lock_entries: those of the stages whose outputs it reads. By default the clone's own entries,
    updated with those that gdpo-pipeline stored for this commit; `StageFailed` if they were made
    with other code or parameters. commit: the caller's; `StageFailed` if the clone is at another.
    """
    check_commit(ROOT, commit)
    if lock_entries is None:
        inputs = _known_inputs(stage)
    else:
        # From a pipeline, which has read the graph: that takes one and a half seconds of dvc.
        write_lock_entries(ROOT, lock_entries)
        inputs = sorted(lock_entries)
    pull(stage, inputs, ROOT)
    repro(stage, ROOT, share=True)
    push(stage, ROOT)
    return {stage: read_lock_entries(ROOT)[stage]}


def _known_inputs(stage: str) -> list[str]:
    """The stages whose outputs `stage` reads, their lock entries brought up to date."""
    edges = graph(ROOT)
    if stage not in edges:
        raise StageFailed(f"there is no stage {stage} in dvc.yaml; there is {', '.join(edges)}")
    fetch_pipeline_lock_entries(ROOT)
    check_inputs(f"stage {stage}", [stage], edges, ROOT)
    return sorted(edges[stage])
