"""Fine-tune, evaluate, publish: the flow `gdpo-train`.

    prefect deployment run gdpo-train/a100     on a GPU worker, from rollouts in the DVC remote
    prefect deployment run gdpo-train/local    every stage that is not up to date, on the worker of
                                               the pool head, without a bucket
    prefect deployment run gdpo-train/vlcot    RealSR-R1, from the shards in the DVC remote

On the GPU pool only the stages from the system's `trained_from` (tasks/systems.py) on run. Their
inputs are pulled; inputs that were made with other code or parameters are refused.
`gdpo-pipeline/head` makes these inputs, and stores its lock entries in the bucket under the commit.
This flow stores its own lock entries under the id of its flow run, because the evaluation that
follows may run in another clone.
"""

from prefect import flow, runtime

from flows.dvc.graph import check_inputs, graph, stages_of
from flows.dvc.lock import fetch_pipeline_lock_entries, store_lock_entries
from flows.dvc.run import check_commit, commit_of, pull, push, repro
from flows.publish import publish
from flows.workplace import ROOT
from tasks.commands import trained_stages
from tasks.systems import Name


@flow(name="gdpo-train")
def train(
    share: bool = True,
    commit: str | None = None,
    system: Name = "gdpo",
) -> None:
    """Fine-tune, evaluate and publish.

    share: pull inputs from the DVC remote, push outputs to it, and publish to the bucket. commit:
    the caller's; `StageFailed` if the clone is at another. system: vlcot trains RealSR-R1.
    """
    check_commit(ROOT, commit)
    here = commit_of(ROOT)
    edges = stages_of(graph(ROOT), system)
    if not share:
        for stage in edges:
            repro(stage, ROOT)
        publish(ROOT, share=False, system=system)
        return
    own = trained_stages(system)
    mine = [stage for stage in edges if stage.partition("@")[0] in own]
    fetch_pipeline_lock_entries(ROOT)
    inputs = check_inputs("training", mine, edges, ROOT)
    pull("gdpo-train", inputs, ROOT)
    for stage in mine:
        repro(stage, ROOT, share=True)
        push(stage, ROOT)
    # Before publishing: the evaluation can then run even if the upload fails.
    store_lock_entries(ROOT, str(runtime.flow_run.id), here)
    publish(ROOT, share=True, system=system)
