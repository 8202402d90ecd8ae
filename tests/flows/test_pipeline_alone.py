"""The pipeline's command and its wait, without a server."""

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.schemas.objects import State, StateType

from flows import pipeline as module
from flows.dvc.run import StageFailed
from flows.pipeline import _Fleet


def test_a_server_that_is_away_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prefect raises a RuntimeError; any other RuntimeError is a bug and keeps its traceback."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def refuse(*_: object) -> None:
        raise RuntimeError("Failed to reach API") from httpx.ConnectError("refused")

    monkeypatch.setattr(module, "pipeline", refuse)
    assert module.main() == 1
    line = capsys.readouterr().err
    assert line.startswith("PREFECT_API_URL: ") and line.endswith("does not answer (refused)\n")

    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(module, "pipeline", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        module.main()


class _Runs:
    """A client whose flow run is in the states `types`, the last of them for ever."""

    def __init__(self, *types: StateType) -> None:
        self.types = list(types)

    def __enter__(self) -> "_Runs":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read_flow_run(self, run: UUID) -> Any:
        kind = self.types.pop(0) if len(self.types) > 1 else self.types[0]
        return SimpleNamespace(state=State(type=kind))


@pytest.mark.parametrize("kind", [StateType.SCHEDULED, StateType.PENDING, StateType.CANCELLING])
def test_the_wait_for_a_worker_has_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: StateType
) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.001)
    monkeypatch.setitem(module.LIMITS_S, kind, 0.02)
    fleet, run = _Fleet(tmp_path, "commit"), uuid4()
    fleet.running[run] = "pretrain"
    runs = _Runs(StateType.RUNNING, kind)
    monkeypatch.setattr(module, "get_client", lambda **_: runs)
    with pytest.raises(StageFailed, match=f"stage pretrain: {kind.value.lower()} for .* no worker"):
        module._wait(run, fleet)
    runs = _Runs(*[kind, StateType.RUNNING] * 20, StateType.COMPLETED)
    monkeypatch.setitem(module.LIMITS_S, kind, 60.0)
    assert module._wait(run, fleet).is_completed()
