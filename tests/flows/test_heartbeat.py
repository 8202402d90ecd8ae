"""A run that is alive takes back that it is marked crashed, and nothing else."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.states import Cancelling, Completed, Crashed, Running, State

from flows import heartbeat, pipeline
from flows.dvc import run as repro
from flows.heartbeat import Heartbeat


class Client:
    """Stands for Prefect's: a run whose states are `states`, one after another and then the last
    for ever.
    """

    def __init__(self, *states: State[Any]) -> None:
        self.states = list(states)
        self.asked = 0
        self.away = False

    def __call__(self, sync_client: bool) -> "Client":
        return self

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read_flow_run(self, run: str) -> Any:
        self.asked += 1
        if self.away:
            raise ConnectionError("away")
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return type("Run", (), {"state": state})

    def set_flow_run_state(self, run: str, state: State[Any], force: bool) -> None:
        assert force  # Prefect takes back no final state otherwise
        self.states = [state]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The time, which passes where somebody sleeps."""
    now = {"s": 1000.0}

    class Time:
        monotonic = staticmethod(lambda: now["s"])

        @staticmethod
        def sleep(seconds: float) -> None:
            now["s"] += seconds

    monkeypatch.setattr(heartbeat, "time", Time)
    monkeypatch.setattr(pipeline, "time", Time)
    monkeypatch.setattr(heartbeat, "emit_event", lambda *_, **__: None)
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "00000000-0000-0000-0000-000000000007")
    return now


@pytest.mark.parametrize("state", [Running(), Cancelling(), Completed()])
def test_only_a_crash_is_taken_back(
    state: State[Any], clock: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(state)
    monkeypatch.setattr(heartbeat, "get_client", client)
    run = Heartbeat()
    clock["s"] += heartbeat.EVERY_S
    run.update()
    assert client.states == [state] and client.asked == 1
    client.states = [Crashed(message="no sign of life")]
    run.update()
    assert client.asked == 1  # not so often
    clock["s"] += heartbeat.EVERY_S
    run.update()
    assert client.states[0].is_running()


def test_a_server_that_is_away_is_asked_again(
    clock: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(Crashed())
    client.away = True
    monkeypatch.setattr(heartbeat, "get_client", client)
    run = Heartbeat()
    clock["s"] += heartbeat.EVERY_S
    run.update()
    client.away = False
    clock["s"] += heartbeat.EVERY_S
    run.update()
    assert client.asked == 2 and client.states[0].is_running()


def test_a_crash_that_is_taken_back_is_a_heartbeat_first(
    clock: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The automation counts from it, also if the host dies before the next one."""
    client, events = Client(Crashed()), []

    def emit(event: str, resource: dict[str, str]) -> None:
        assert client.states[0].is_crashed()
        events.append((event, resource["prefect.resource.id"]))

    monkeypatch.setattr(heartbeat, "get_client", client)
    monkeypatch.setattr(heartbeat, "emit_event", emit)
    run = Heartbeat()
    for _ in range(2):  # the second time it is Running
        clock["s"] += heartbeat.EVERY_S
        run.update()
    name = "prefect.flow-run.00000000-0000-0000-0000-000000000007"
    assert events == [("prefect.flow-run.heartbeat", name)]


def test_without_a_run_nobody_is_asked(
    clock: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT__FLOW_RUN_ID")
    client = Client(Crashed())
    monkeypatch.setattr(heartbeat, "get_client", client)
    run = Heartbeat()
    clock["s"] += 1000
    run.update()
    assert client.asked == 0


class Waiting:
    """Stands for the pipeline that waits."""

    def __init__(self) -> None:
        self.heartbeat, self.looked = self, 0

    def update(self) -> None:
        self.looked += 1

    def check(self) -> None:
        pass


def test_a_pipeline_waits_for_a_crashed_run_to_be_alive(
    clock: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sends heartbeats all the time."""
    done, crashed = Completed(message="done"), Crashed()
    for states, final, seconds in (
        ([Running(), crashed, crashed, Running(), crashed, Running(), done], done, 12.0),
        ([Running(), crashed], crashed, 2 + pipeline.CRASHED_S + 2),
        ([done], done, 0.0),
    ):
        client, fleet = Client(*states), Waiting()
        monkeypatch.setattr(pipeline, "get_client", client)
        begun = clock["s"]
        assert pipeline._wait("run", fleet) is final
        assert clock["s"] - begun == seconds and fleet.looked == client.asked


def test_every_dvc_command_of_a_worker_says_that_its_run_is_alive(
    clock: dict[str, float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran = []

    def run_dvc(
        args: list[str],
        root: Path,
        on_line: object,
        on_tick: Callable[[], None],
        **_: object,
    ) -> None:
        clock["s"] += heartbeat.EVERY_S
        on_tick()
        ran.append(args[0])

    client = Client(Crashed())
    monkeypatch.setattr(heartbeat, "get_client", client)
    monkeypatch.setattr(repro, "run_dvc", run_dvc)
    monkeypatch.setattr(repro, "get_run_logger", lambda: logging.getLogger("test"))
    repro.pull.fn("stage", ["other"], tmp_path)
    repro.repro.fn("stage", tmp_path)
    repro.push.fn("stage", tmp_path)
    assert ran == ["pull", "repro", "push"] and client.asked == 3
