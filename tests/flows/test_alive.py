"""A run that is alive takes back that it is marked crashed, and nothing else."""

from typing import Any

import pytest
from prefect.states import Cancelling, Completed, Crashed, Running, State

from flows import alive, pipeline
from flows.alive import Alive


class Client:
    """Stands for Prefect's: a run whose states are `states`, one after another and then the last for ever."""

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

    monkeypatch.setattr(alive, "time", Time)
    monkeypatch.setattr(pipeline, "time", Time)
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "00000000-0000-0000-0000-000000000007")
    return now


@pytest.mark.parametrize("state", [Running(), Cancelling(), Completed()])
def test_only_a_crash_is_taken_back(state: State[Any], clock: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(state)
    monkeypatch.setattr(alive, "get_client", client)
    run = Alive()
    clock["s"] += alive.EVERY_S
    run.update()
    assert client.states == [state] and client.asked == 1
    client.states = [Crashed(message="no sign of life")]
    run.update()
    assert client.asked == 1  # not so often
    clock["s"] += alive.EVERY_S
    run.update()
    assert client.states[0].is_running()


def test_a_server_that_is_away_is_asked_again(clock: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(Crashed())
    client.away = True
    monkeypatch.setattr(alive, "get_client", client)
    run = Alive()
    clock["s"] += alive.EVERY_S
    run.update()
    client.away = False
    clock["s"] += alive.EVERY_S
    run.update()
    assert client.asked == 2 and client.states[0].is_running()


def test_without_a_run_nobody_is_asked(clock: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT__FLOW_RUN_ID")
    client = Client(Crashed())
    monkeypatch.setattr(alive, "get_client", client)
    run = Alive()
    clock["s"] += 1000
    run.update()
    assert client.asked == 0


class Waiting:
    """Stands for the pipeline that waits."""

    class alive:
        update = staticmethod(lambda: None)

    check = staticmethod(lambda: None)


def test_a_pipeline_waits_a_minute_for_a_crashed_run_to_be_alive(
    clock: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    done, crashed = Completed(message="done"), Crashed()
    for states, final, seconds in (
        ([Running(), crashed, crashed, Running(), crashed, Running(), done], done, 12.0),
        ([Running(), crashed], crashed, 64.0),
        ([done], done, 0.0),
    ):
        client = Client(*states)
        monkeypatch.setattr(pipeline, "get_client", client)
        begun = clock["s"]
        assert pipeline._wait("run", Waiting()) is final  # type: ignore[arg-type]
        assert clock["s"] - begun == seconds
