"""The flow on a repository of two quick stages and a temporary server: here, cancelled, and with a
server that is away.
"""

import json
import logging
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import Artifact, FlowRun

from flows import pipeline as module
from flows.dvc.run import StageFailed
from flows.pipeline import _Fleet, pipeline, retry_while_offline
from flows.stage import run_stage
from tasks.report import summary
from tests.tasks.fabricated import SMALL

# A temporary server may take its time on a busy machine.
pytestmark = [pytest.mark.prefect, pytest.mark.timeout(300)]

SUMMARY = SMALL


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    # It imports the server: CPU seconds that no quick test needs.
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=150):
        yield


@pytest.fixture
def repository(initialised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("DVC_STAGE", raising=False)
    shutil.copytree(initialised, tmp_path, dirs_exist_ok=True)
    (tmp_path / "made.json").write_text(json.dumps(SUMMARY))
    shutil.copy(Path(__file__).parents[2] / "tests/params.yaml", tmp_path)
    (tmp_path / "dvc.yaml").write_text("""
stages:
  last:
    cmd: cp copy.json reports/evaluate/sample/summary.json
    deps: [copy.json]
    outs: [reports/evaluate/sample/summary.json]
  first: {cmd: cp made.json copy.json, deps: [made.json], outs: [copy.json]}
""")
    (tmp_path / "reports/evaluate/sample").mkdir(parents=True)
    return tmp_path


def artifacts() -> dict[str | None, Artifact]:
    with get_client(sync_client=True) as client:
        return {artifact.key: artifact for artifact in client.read_artifacts()}


def test_the_flow_runs_the_stages_and_leaves_table_and_link(server: None, repository: Path) -> None:
    pipeline(repository)
    assert json.loads((repository / "reports/evaluate/sample/summary.json").read_text()) == SUMMARY
    found = artifacts()
    table = json.loads(str(found["gdpo-evaluation"].data))
    assert [row["Model"] for row in table] == ["Bicubic", "NAOSD", "GDPO-SR", "Control"]
    assert "GDPO-SR is better than NAOSD" in str(found["gdpo-evaluation"].description)
    assert (repository / "reports/index.html").as_uri() in str(found["gdpo-report"].data)

    (repository / "made.json").unlink()
    with pytest.raises(StageFailed, match="dvc repro --single-item first ended with code"):
        pipeline(repository)


class Cancelled(BaseException):
    """As Prefect's TerminationSignal: not an Exception."""


def children() -> list[FlowRun]:
    """The runs of gdpo-stage."""
    with get_client(sync_client=True) as client:
        (found,) = [flow for flow in client.read_flows() if flow.name == "gdpo-stage"]
        return [run for run in client.read_flow_runs() if run.flow_id == found.id]


def test_cancelling_the_pipeline_cancels_the_runs_it_started(
    server: None, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No worker takes them: they wait, as behind a busy GPU."""
    for command in (
        ["add", "-A"],
        ["-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "x"],
    ):
        subprocess.run(["git", *command], cwd=repository, check=True)
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="nobody", type="process"))
        flow = client.create_flow(run_stage)
        client.create_deployment(
            flow, name="cpu", work_pool_name="nobody", enforce_parameter_schema=False
        )

    def raise_cancelled(*_: object) -> None:
        raise Cancelled

    def interrupt() -> None:
        while not children():
            time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(module, "POLL_S", 0.2)
    old = signal.signal(signal.SIGUSR1, raise_cancelled)
    sender = threading.Thread(target=interrupt, daemon=True)
    sender.start()
    try:
        with pytest.raises(Cancelled):
            pipeline(repository, fan_out=True)
    finally:
        signal.signal(signal.SIGUSR1, old)
    (run,) = children()
    assert run.name == "first" and run.state is not None and run.state.name == "Cancelled"


class Client:
    """Stands for Prefect's: a context that refuses to cancel what is in `refused`."""

    def __init__(self, refused: UUID) -> None:
        self.refused = refused
        self.cancelled: list[UUID] = []

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def set_flow_run_state(self, run: UUID, state: Any) -> None:
        if run == self.refused:
            raise httpx.ConnectError("away")
        self.cancelled.append(run)


@pytest.fixture
def quiet(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> pytest.LogCaptureFixture:
    """No run: a plain logger, and no pause between two tries."""
    monkeypatch.setattr(module, "get_run_logger", lambda: logging.getLogger("test"))
    monkeypatch.setattr(module, "POLL_S", 0.0)
    return caplog


def test_one_run_that_cannot_be_cancelled_does_not_save_the_others(
    tmp_path: Path, quiet: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [uuid4(), uuid4(), uuid4()]
    client = Client(refused=runs[0])
    monkeypatch.setattr(module, "get_client", lambda sync_client: client)
    fleet = _Fleet(tmp_path, "commit")
    fleet.running = dict(zip(runs, "abc", strict=True))
    fleet.cancel()
    assert client.cancelled == runs[1:]
    assert f"run {runs[0]} (a) could not be cancelled" in quiet.text


def test_a_run_that_is_made_while_the_pipeline_is_cancelled_is_cancelled_too(
    tmp_path: Path, quiet: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, fleet = Client(refused=uuid4()), _Fleet(tmp_path, "commit")
    made = FlowRun(flow_id=uuid4(), name="first")

    def run_deployment(*_: object, **__: object) -> FlowRun:
        fleet.cancel()  # the request is on its way: nobody knows of the run
        assert not client.cancelled
        return made

    monkeypatch.setattr(module, "get_client", lambda sync_client: client)
    monkeypatch.setattr(module, "run_deployment", run_deployment)
    with pytest.raises(StageFailed, match="the pipeline run was cancelled"):
        module.dispatch.fn("first", [], "gdpo-stage/cpu", fleet)
    assert client.cancelled == [made.id] and not fleet.running
    with pytest.raises(StageFailed, match="the pipeline run was cancelled"):
        module.dispatch.fn("last", [], "gdpo-stage/cpu", fleet)
    assert len(client.cancelled) == 1  # none was made


def test_a_server_that_is_away_is_waited_for_but_not_for_ever(
    quiet: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults: list[Exception] = [
        httpx.ReadTimeout(""),
        OSError("s3://x: the store refused (SlowDown)"),
        httpx.ConnectError(""),
    ]

    def call() -> int:
        if faults:
            raise faults.pop(0)
        return 7

    assert retry_while_offline(call) == 7
    faults = [StageFailed("stage first: Failed")]
    with pytest.raises(StageFailed):
        retry_while_offline(call)
    faults = [httpx.ConnectError("") for _ in range(3)]
    monkeypatch.setattr(module, "PATIENCE_S", -1.0)
    with pytest.raises(httpx.ConnectError):
        retry_while_offline(call)
    assert len(faults) == 2


def test_the_printed_summary_has_both_tables_and_the_report(tmp_path: Path) -> None:
    text = summary.text(SUMMARY, tmp_path)
    for expected in (
        "GDPO-SR",
        "GDPO-SR − Control",
        "95 % interval",
        f"Report: {tmp_path / 'reports/index.html'}",
    ):
        assert expected in text
