"""Fine-tune, evaluate, publish: the flow `gdpo-train`.

    prefect deployment run gdpo-train/a100      on a GPU worker, from rollouts that are in the DVC remote
    prefect deployment run gdpo-train/local     everything that is not up to date, here, without a bucket

On the GPU pool only the stages below run; what they read is pulled, and refused if it was made with other code or
parameters: `gdpo-pipeline/head` makes it. The clone's ledger at the end is left in the bucket, by the id of this run: the
evaluation that follows a training may run in another clone.
"""

from uuid import UUID

from prefect import flow, runtime

from flows.inputs import check_inputs, graph
from flows.publish import leave_ledger, publish
from flows.repro import check_commit, pull, push, repro
from flows.workplace import ROOT

STAGES = ("finetune", "evaluate", "report")


@flow(name="gdpo-train")
def train(share: bool = True, commit: str | None = None) -> None:
    """Run the stages that train and judge, and publish. share: inputs from, and outputs to, the DVC remote and the bucket."""
    check_commit(ROOT, commit)
    edges = graph(ROOT)
    if not share:
        for stage in edges:
            repro(stage, ROOT)
        publish(ROOT, share=False)
        return
    mine = [stage for stage in edges if stage.partition("@")[0] in STAGES]
    inputs = check_inputs("training", mine, edges, ROOT)
    pull("gdpo-train", inputs, ROOT)
    for stage in mine:
        repro(stage, ROOT, share=True)
        push(stage, ROOT)
    publish(ROOT, share=True)
    leave_ledger(ROOT, UUID(runtime.flow_run.id))
