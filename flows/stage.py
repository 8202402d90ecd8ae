"""One DVC stage on any worker: the flow `gdpo-stage`, deployed to the pools `cpu` and `a100`.

    prefect deployment run gdpo-stage/a100 -p stage=finetune@gdpo --watch

    pull    the outputs that the stage reads, as dvc.lock names them, from the DVC remote
    repro   dvc repro --single-item STAGE --pull; a known result comes from the run cache
    push    the stage's outputs and its run-cache entry to the DVC remote; never to git

The result of the flow run is the stage's lock entry.
"""

from prefect import flow

from flows.dvc.graph import check_inputs, graph
from flows.dvc.lock import take_pipelines_ledger
from flows.dvc.run import StageFailed, check_commit, pull, push, repro
from flows.workplace import RESULTS, ROOT, Ledger, read_ledger, write_ledger


@flow(name="gdpo-stage", flow_run_name="{stage}", persist_result=True, result_storage=RESULTS)
def run_stage(stage: str, ledger: Ledger | None = None, commit: str | None = None) -> Ledger:
    """Run one stage in this worker's clone and return {stage: its entry in dvc.lock}.

    ledger: lock entries of the stages whose outputs it reads. By default the clone's own entries,
    updated with those that gdpo-pipeline stored for this commit; `StageFailed` if they were made
    with other code or parameters. commit: the caller's; `StageFailed` if the clone is at another.
    """
    check_commit(ROOT, commit)
    edges = graph(ROOT)
    if stage not in edges:
        raise StageFailed(f"there is no stage {stage} in dvc.yaml; there is {', '.join(edges)}")
    if ledger is None:
        take_pipelines_ledger(ROOT)
        check_inputs(f"stage {stage}", [stage], edges, ROOT)
    else:
        write_ledger(ROOT, ledger)
    pull(stage, sorted(edges[stage]), ROOT)
    repro(stage, ROOT, share=True)
    push(stage, ROOT)
    return {stage: read_ledger(ROOT)[stage]}
