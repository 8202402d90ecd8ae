"""The whole pipeline as a Prefect flow: every stage of a system after those it depends on.

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
from math import inf
from pathlib import Path
from typing import TypeVar, cast
from uuid import UUID

import httpx
from prefect import flow, get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelling

from flows.dvc.faults import is_network_fault
from flows.dvc.graph import graph, stages_of
from flows.dvc.lock import store_lock_entries
from flows.dvc.run import StageFailed, commit_of, repro
from flows.heartbeat import Heartbeat
from flows.publish import publish
from flows.workplace import ROOT, LockEntries, read_lock_entries, write_lock_entries
from tasks.commands import STAGES, command_of
from tasks.run.exit_codes import STOPPED
from tasks.systems import Name

POLL_S = 2.0
PATIENCE_S = 600.0
CRASHED_S = 180.0
# How long a stage's flow run may stay in a state in which nothing runs; a running one sends
# heartbeats.
LIMITS_S = {
    StateType.SCHEDULED: 24 * 3600.0,
    StateType.PENDING: 3600.0,
    StateType.CANCELLING: 3600.0,
}
T = TypeVar("T")


@flow(name="gdpo-pipeline")
def pipeline(
    root: Path | None = None,
    fan_out: bool = False,
    cpu: str = "gdpo-stage/cpu",
    gpu: str = "gdpo-stage/a100",
    system: Name = "gdpo",
) -> None:
    """Run the stages that are not up to date, then publish the results.

    root: the repository; by default the one this package is installed from. fan_out: run each stage
    as a flow run of the deployment `cpu` or `gpu` instead of in this process. system: vlcot runs
    the stages of RealSR-R1.
    """
    root = (root or ROOT).resolve()
    edges = stages_of(graph(root), system)
    if fan_out:
        commit = commit_of(root)
        _fan_out(root, edges, commit, cpu, gpu)
        store_lock_entries(root, commit, commit)
    else:
        for stage in edges:
            repro(stage, root)
    publish(root, share=fan_out, system=system)


def _needs_gpu(stage: str) -> bool:
    """Whether a stage of dvc.yaml, such as degrade-evaluation or rollout@00, runs a network."""
    command = command_of(stage)
    return command in STAGES and STAGES[command].needs_gpu


def _fan_out(root: Path, edges: dict[str, set[str]], commit: str, cpu: str, gpu: str) -> None:
    fleet = _Fleet(root, commit)
    futures: dict[str, PrefectFuture[None]] = {}
    try:
        for stage, inputs in edges.items():
            deployment = gpu if _needs_gpu(stage) else cpu
            # `edges` is in topological order, so the futures of all inputs are there by now.
            waits = [futures[name] for name in inputs]
            futures[stage] = dispatch.submit(
                stage, sorted(inputs), deployment, fleet, return_state=False, wait_for=waits
            )
        # All of them, also after one has failed: branches that do not depend on it are finished.
        for future in futures.values():
            future.wait()
    # Also Prefect's TerminationSignal and KeyboardInterrupt, which are no `Exception`.
    except BaseException:
        fleet.cancel()
        raise
    failed = [stage for stage, future in futures.items() if not future.state.is_completed()]
    if failed:
        others = f" (not run either: {', '.join(failed[1:])})" if failed[1:] else ""
        raise StageFailed(f"{futures[failed[0]].state.message}{others}")


class _Fleet:
    """The flow runs in progress, and the lock entries of completed stages (in dvc.lock)."""

    def __init__(self, root: Path, commit: str) -> None:
        self.root, self.commit = root, commit
        self.running: dict[UUID, str] = {}
        self.cancelled = False
        self.heartbeat = Heartbeat()
        # Tasks run in threads and all rewrite one dvc.lock: without it an entry could be lost.
        self._lock_file = threading.Lock()

    def entries(self, stages: list[str]) -> LockEntries:
        """The lock entries of `stages`."""
        with self._lock_file:
            known = read_lock_entries(self.root)
        return {stage: known[stage] for stage in stages}

    def add(self, entries: LockEntries) -> None:
        """Write a completed stage's lock entry into dvc.lock."""
        with self._lock_file:
            write_lock_entries(self.root, entries)

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
        # A copy: the tasks' threads remove their runs from the dict meanwhile.
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
    parameters = {"stage": stage, "lock_entries": fleet.entries(inputs), "commit": fleet.commit}
    # Idempotency: if the answer to a request was lost, repeating the request returns the same flow
    # run instead of creating a second one. The run count is in the key because a retried pipeline
    # run needs new flow runs: the old key would return the one that failed.
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
            f"no deployment {deployment} on the server; python -m flows.setup creates it"
        ) from error
    fleet.running[run.id] = stage
    # From here on the flow run exists on another host, and nothing but this process ends it.
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


def _wait(run: UUID, fleet: _Fleet) -> "State[LockEntries]":
    """Wait for a flow run's final state. Raises `StageFailed` if the pipeline is cancelled.

    Crashed is final only after three minutes: a flow run that is still running sets itself back to
    Running (flows/heartbeat.py). `StageFailed` too if no worker takes, begins or ends it
    (`LIMITS_S`).
    """
    crashed_at, kind, since = None, None, time.monotonic()
    with get_client(sync_client=True) as client:
        while True:
            fleet.heartbeat.update()
            state = retry_while_offline(lambda: client.read_flow_run(run).state)
            now = time.monotonic()
            # A crash counts from when it was first seen; a run that reports itself Running again in
            # between starts afresh.
            crashed_at = (crashed_at or now) if state is not None and state.is_crashed() else None
            if (
                state is not None
                and state.is_final()
                and (crashed_at is None or now - crashed_at > CRASHED_S)
            ):
                return state
            # The limit is on the time in one state: a run that waits again begins to count again.
            if state is not None and state.type != kind:
                kind, since = state.type, now
            if kind is not None and now - since > LIMITS_S.get(kind, inf):
                what = "ended" if kind is StateType.CANCELLING else "begun"
                raise StageFailed(
                    f"stage {fleet.running[run]}: {kind.value.lower()} for {LIMITS_S[kind]:.0f} s: "
                    f"no worker of its pool has {what} it; start one"
                )
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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))
    try:
        pipeline(Path.cwd())
    except StageFailed as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except (RuntimeError, httpx.TransportError) as error:
        # Prefect puts the fault of the connection behind an error of its own.
        fault = error if isinstance(error, httpx.TransportError) else error.__cause__
        if not isinstance(fault, httpx.TransportError):
            raise
        url = PREFECT_API_URL.value()
        sys.stderr.write(f"PREFECT_API_URL: {url} does not answer ({fault})\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
