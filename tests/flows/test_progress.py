"""Progress is shown where the server takes it, and never ends a stage."""

import json
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from flows import progress
from flows.progress import Progress


class Server:
    """Stands for Prefect's: takes artifacts, or fails with `fault`."""

    def __init__(self) -> None:
        self.fault: BaseException | None = None
        self.shown: list[float] = []
        self.asked = 0

    def create(self, percent: float, description: str) -> UUID:
        self.update(uuid4(), percent)
        return uuid4()

    def update(self, artifact: UUID, percent: float) -> None:
        self.asked += 1
        if self.fault is not None:
            raise self.fault
        self.shown.append(percent)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    found = Server()
    monkeypatch.setattr(progress, "create_progress_artifact", found.create)
    monkeypatch.setattr(progress, "update_progress_artifact", found.update)
    return found


def step(root: Path, number: int) -> None:
    path = root / "work/finetune/gdpo/metrics.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({"step": number, "of": 4}) + "\n")


def test_a_server_that_is_away_costs_one_warning(tmp_path: Path, server: Server) -> None:
    warnings: list[str] = []
    with Progress("finetune@gdpo", tmp_path, warnings.append) as shown:
        shown.update()
        assert not server.asked  # no step yet
        step(tmp_path, 0)
        server.fault = ConnectionError("https://user:secret@head is away")
        for _ in range(3):
            shown.update()
        server.fault = None
        shown.update()
        server.fault = ConnectionError("away again")
        step(tmp_path, 1)
        shown.update()
        server.fault = None
        step(tmp_path, 2)
        shown.update()
        server.fault = ConnectionError("and at the end")
    assert server.shown == [25.0, 75.0] and server.asked == 7
    assert warnings == ["progress is not shown (ConnectionError); the stage continues"]


class TerminationSignal(BaseException):
    """As Prefect's: not an Exception."""


@pytest.mark.parametrize("kind", [TerminationSignal, KeyboardInterrupt])
def test_signals_go_through(tmp_path: Path, server: Server, kind: type[BaseException]) -> None:
    with pytest.raises(kind), Progress("finetune@gdpo", tmp_path, print) as shown:
        step(tmp_path, 0)
        server.fault = kind()
        shown.update()


def test_a_stage_that_fails_is_not_shown_as_done(tmp_path: Path, server: Server) -> None:
    with pytest.raises(ZeroDivisionError), Progress("finetune@gdpo", tmp_path, print) as shown:
        step(tmp_path, 0)
        shown.update()
        raise ZeroDivisionError
    with Progress("finetune@gdpo", tmp_path, print) as shown:
        step(tmp_path, 1)
        shown.update()
    assert server.shown == [25.0, 50.0, 100.0]
