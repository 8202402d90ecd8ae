"""The flow for real, once, on a repository of two quick stages and a temporary server."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import Artifact
from prefect.testing.utilities import prefect_test_harness

from flows.pipeline import pipeline
from flows.repro import StageFailed
from tasks import summary
from tests.tasks.fabricated import SMALL

# A temporary server may take its time on a busy machine.
pytestmark = [pytest.mark.prefect, pytest.mark.timeout(300)]

SUMMARY = SMALL


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=150):
        yield


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("DVC_STAGE", raising=False)
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=tmp_path, check=True)
    (tmp_path / "made.json").write_text(json.dumps(SUMMARY))
    (tmp_path / "dvc.yaml").write_text("""
stages:
  last:
    {cmd: cp copy.json reports/evaluate/sample/summary.json, deps: [copy.json], outs: [reports/evaluate/sample/summary.json]}
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
    assert "GDPO-SR beats NAOSD on the reward" in str(found["gdpo-evaluation"].description)
    assert (repository / "reports/index.html").as_uri() in str(found["gdpo-report"].data)

    (repository / "made.json").unlink()
    with pytest.raises(StageFailed, match="dvc repro --single-item first ended with code"):
        pipeline(repository)


def test_the_printed_summary_has_both_tables_and_the_report(tmp_path: Path) -> None:
    text = summary.text(SUMMARY, tmp_path)
    for expected in ("GDPO-SR", "GDPO-SR − Control", "95 % interval", f"Report: {tmp_path / 'reports/index.html'}"):
        assert expected in text
