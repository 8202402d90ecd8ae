"""Fine-tune, evaluate, publish: the flow `gdpo-train`.

    prefect deployment run gdpo-train/a100      on a GPU worker, from rollouts that are in the DVC
                                                remote
    prefect deployment run gdpo-train/local     everything that is not up to date, here, without a
                                                bucket

On the GPU pool only the stages below run; what they read is pulled, and refused if it was made with
other code or parameters: `gdpo-pipeline/head` makes it, and leaves its ledger in the bucket by the
commit. So does this, by the id of its run: the evaluation that follows may run in another clone.
"""

from prefect import flow, runtime

from flows.dvc.graph import check_inputs, graph
from flows.dvc.lock import leave_ledger, take_pipelines_ledger
from flows.dvc.run import check_commit, commit_of, pull, push, repro
from flows.publish import publish
from flows.workplace import ROOT

STAGES = ("finetune", "evaluate", "report")


@flow(name="gdpo-train")
def train(share: bool = True, commit: str | None = None) -> None:
    """Run the stages that train and judge, and publish. share: inputs from, and outputs to, the DVC
    remote and the bucket.
    """
    check_commit(ROOT, commit)
    here = commit_of(ROOT)
    edges = graph(ROOT)
    if not share:
        for stage in edges:
            repro(stage, ROOT)
        publish(ROOT, share=False)
        return
    mine = [stage for stage in edges if stage.partition("@")[0] in STAGES]
    take_pipelines_ledger(ROOT)
    inputs = check_inputs("training", mine, edges, ROOT)
    pull("gdpo-train", inputs, ROOT)
    for stage in mine:
        repro(stage, ROOT, share=True)
        push(stage, ROOT)
    leave_ledger(
        ROOT, str(runtime.flow_run.id), here
    )  # before the rest: a bucket that fails later costs no evaluation
    publish(ROOT, share=True)
