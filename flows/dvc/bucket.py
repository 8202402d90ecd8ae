"""The bucket of runs, models and lock entries.

The Prefect variable `gdpo_store` names it; `python -m flows.setup` sets it. Endpoint and
credentials come from the environment.
"""

from prefect.variables import Variable

from flows.dvc.faults import StageFailed

STORE_VARIABLE = "gdpo_store"


def store_url() -> str:
    """The bucket, s3://BUCKET. `StageFailed` if the server is not set up."""
    store = Variable.get(STORE_VARIABLE)
    if not isinstance(store, str):
        raise StageFailed(
            f"the Prefect variable {STORE_VARIABLE} is not set: python -m flows.setup"
        )
    return store


def checkpoints_url() -> str:
    """Where trainings keep copies of their checkpoints (tasks/run/copies.py)."""
    return f"{store_url()}/results/checkpoints"
