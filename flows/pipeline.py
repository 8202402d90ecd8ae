"""The whole pipeline as a Prefect flow: every stage of dvc.yaml after those it depends on.

    python -m flows.pipeline                     all stages here, one after another; starts a
                                                 temporary Prefect server if none is configured
    prefect deployment run gdpo-pipeline/head    the same graph, with one flow run of `gdpo-stage`
                                                 per stage in the workers' pools

With fan-out, a stage starts when the stages whose outputs it reads have completed. Matrix parts run
in parallel, as many as there are workers. This process keeps dvc.lock and sends each flow run the
lock entries it needs. The data goes through the DVC remote and never through this process.

It retries for ten minutes when the Prefect server or the bucket cannot be reached. When it is
cancelled or gives up, it cancels the flow runs it started.
"""

import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast
from uuid import UUID

import httpx
from prefect import flow, get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.futures import PrefectFuture
from prefect.states import Cancelling

from flows.dvc.faults import is_network_fault
from flows.dvc.graph import graph
from flows.dvc.lock import leave_ledger
from flows.dvc.run import StageFailed, commit_of, repro
from flows.heartbeat import Heartbeat
from flows.publish import publish
from flows.workplace import ROOT, Ledger, read_ledger, write_ledger
from tasks.commands import STAGES

POLL_S = 2.0
PATIENCE_S = 600.0
CRASHED_S = 180.0
T = TypeVar("T")


@flow(name="gdpo-pipeline")
def pipeline(
    root: Path | None = None,
    fan_out: bool = False,
    cpu: str = "gdpo-stage/cpu",
    gpu: str = "gdpo-stage/a100",
) -> None:
    """Run the stages that are not up to date, then publish the results.

    root: the repository; by default the one this package is installed from. fan_out: run each stage
    as a flow run of the deployment `cpu` or `gpu` instead of in this process.
    """
    root = (root or ROOT).resolve()
    edges = graph(root)
    if fan_out:
        commit = commit_of(root)
        _fan_out(root, edges, commit, cpu, gpu)
        leave_ledger(root, commit, commit)
    else:
        for stage in edges:
            repro(stage, root)
    publish(root, share=fan_out)


def _needs_gpu(stage: str) -> bool:
    """Whether a stage of dvc.yaml, such as degrade-evaluation or rollout@00, runs a network."""
    command = stage.partition("@")[0].partition("-")[0]
    return command in STAGES and STAGES[command].needs_gpu


def _fan_out(root: Path, edges: dict[str, set[str]], commit: str, cpu: str, gpu: str) -> None:
    fleet = _Fleet(root, commit)
    futures: dict[str, PrefectFuture[None]] = {}
    try:
        for stage, inputs in edges.items():
            deployment = gpu if _needs_gpu(stage) else cpu
            waits = [futures[name] for name in inputs]
            futures[stage] = dispatch.submit(
                stage, sorted(inputs), deployment, fleet, wait_for=waits
            )  # type: ignore[call-overload]
        for future in futures.values():
            future.wait()
    except BaseException:
        fleet.cancel()
        raise
    failed = [stage for stage, future in futures.items() if not future.state.is_completed()]
    if failed:
        others = f" (not made either: {', '.join(failed[1:])})" if failed[1:] else ""
        raise StageFailed(f"{futures[failed[0]].state.message}{others}")


class _Fleet:
    """The flow runs in progress, and the lock entries of completed stages (in dvc.lock)."""

    def __init__(self, root: Path, commit: str) -> None:
        self.root, self.commit = root, commit
        self.running: dict[UUID, str] = {}
        self.cancelled = False
        self.alive = Heartbeat()
        self._ledger = threading.Lock()

    def entries(self, stages: list[str]) -> Ledger:
        """The lock entries of `stages`."""
        with self._ledger:
            known = read_ledger(self.root)
        return {stage: known[stage] for stage in stages}

    def add(self, entries: Ledger) -> None:
        """Write a completed stage's lock entry into dvc.lock."""
        with self._ledger:
            write_ledger(self.root, entries)

    def check(self) -> None:
        """`StageFailed` once the pipeline run is cancelled.

        `dispatch` calls this after it adds a flow run to `running`. If `cancel` came first and did
        not see that flow run, `dispatch` cancels it.
        """
        if self.cancelled:
            raise StageFailed("the pipeline run was cancelled")

    def cancel(self) -> None:
        """Cancel the flow runs in progress: Prefect does not do so across deployments."""
        self.cancelled = True
        for run in list(self.running):
            self.stop(run)

    def stop(self, run: UUID) -> None:
        """Cancel one flow run. An error is only logged, so that the others are cancelled too."""
        try:
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(
                    run, Cancelling(message="the pipeline run was cancelled, or gave up")
                )
        except Exception as error:
            get_run_logger().warning(
                "run %s (%s) could not be cancelled: %r", run, self.running.get(run), error
            )


@task(task_run_name="{stage} on {deployment}", cache_policy=NO_CACHE)
def dispatch(stage: str, inputs: list[str], deployment: str, fleet: _Fleet) -> None:
    """Start a flow run of `gdpo-stage` and wait for it.

    Raises `StageFailed` with the flow run's message if it does not complete.
    """
    fleet.check()
    parameters = {"stage": stage, "ledger": fleet.entries(inputs), "commit": fleet.commit}
    # Idempotency: if the answer to a request was lost, repeating the request returns the same flow
    # run instead of creating a second one.
    key = f"{runtime.flow_run.id}-{runtime.flow_run.run_count}-{stage}"
    try:
        run = retry_while_offline(
            lambda: cast(
                FlowRun,
                run_deployment(
                    deployment,
                    parameters=parameters,
                    timeout=0,
                    flow_run_name=stage,
                    idempotency_key=key,
                ),
            )
        )
    except ObjectNotFound as error:
        raise StageFailed(
            f"there is no deployment {deployment}: python -m flows.setup makes it"
        ) from error
    fleet.running[run.id] = stage
    try:
        fleet.check()
        get_run_logger().info("%s waits for a worker as run %s", stage, run.name)
        state = _wait(run.id, fleet)
    except BaseException:
        fleet.stop(run.id)
        raise
    finally:
        del fleet.running[run.id]
    if not state.is_completed():
        raise StageFailed(f"stage {stage}: {state.name}: {state.message}")
    fleet.add(retry_while_offline(state.result))


def _wait(run: UUID, fleet: _Fleet) -> "State[Ledger]":
    """Wait for a flow run's final state. Raises `StageFailed` if the pipeline is cancelled.

    Crashed is final only after three minutes: a flow run that is still running sets itself back to
    Running (flows/heartbeat.py).
    """
    crashed_at = None
    with get_client(sync_client=True) as client:
        while True:
            fleet.alive.update()
            state = retry_while_offline(lambda: client.read_flow_run(run).state)
            now = time.monotonic()
            crashed_at = (crashed_at or now) if state is not None and state.is_crashed() else None
            if (
                state is not None
                and state.is_final()
                and (crashed_at is None or now - crashed_at > CRASHED_S)
            ):
                return state
            fleet.check()
            time.sleep(POLL_S)


def retry_while_offline(call: Callable[[], T]) -> T:
    """Return `call()`, retried for ten minutes while the Prefect server or S3 is unreachable."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return call()
        except Exception as error:
            away = isinstance(error, httpx.TransportError) or is_network_fault(
                f"{type(error).__name__}: {error}"
            )
            if not away or time.monotonic() > end:
                raise
            get_run_logger().warning("%s: trying again", type(error).__name__)
        time.sleep(POLL_S)


def main() -> int:
    """Run the flow here and return the exit code."""
    # By default SIGTERM would end only this process and leave the stage's process running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        pipeline(Path.cwd())
    except StageFailed as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
