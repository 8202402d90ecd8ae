"""The ledgers that runs leave in the bucket, who may take them, and what of one is published."""

import json
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import publish
from flows.dvc import lock as ledger
from flows.dvc.lock import (
    evaluation_of,
    leave_ledger,
    note_evaluation,
    take_ledger,
    take_pipelines_ledger,
)
from flows.dvc.run import StageFailed
from flows.workplace import read_ledger, write_ledger
from tasks.store import s3 as store
from tests import s3

pytestmark = pytest.mark.processes

ENTRIES = {"made": {"cmd": "x", "outs": [{"path": "made", "md5": "0" * 32}]}}


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with s3.server() as url:
        for name, value in s3.environment(url).items():
            monkeypatch.setenv(name, value)
        s3.client(url).create_bucket(Bucket="gdpo-sr")
        monkeypatch.setattr(ledger, "store_url", lambda: "s3://gdpo-sr")
        monkeypatch.setattr(ledger, "commit_of", lambda root: (root / "commit").read_text())
        monkeypatch.setattr("flows.dvc.run.commit_of", lambda root: (root / "commit").read_text())
        store._client.cache_clear()
        yield url
    store._client.cache_clear()


def clone(folder: Path, commit: str) -> Path:
    folder.mkdir()
    (folder / "commit").write_text(commit)
    return folder


def test_a_ledger_goes_to_a_clone_at_the_same_commit_and_to_no_other(
    bucket: str, tmp_path: Path
) -> None:
    run = str(uuid4())
    training = clone(tmp_path / "training", "a" * 40)
    write_ledger(training, ENTRIES)
    leave_ledger.fn(training, run, "a" * 40)
    left = (
        s3.client(bucket)
        .get_object(Bucket="gdpo-sr", Key=f"results/ledgers/{run}.json")["Body"]
        .read()
    )
    assert json.loads(left) == {"commit": "a" * 40, "stages": ENTRIES}

    same = clone(tmp_path / "same", "a" * 40)
    take_ledger.fn(same, run)
    assert read_ledger(same) == ENTRIES

    other = clone(tmp_path / "other", "b" * 40)
    with pytest.raises(
        StageFailed, match=f"this clone is at b+, run {run} was at a+: check out the same commit"
    ) as caught:
        take_ledger.fn(other, run)
    assert "\n" not in str(caught.value) and read_ledger(other) == {}


def test_a_training_that_left_none_is_one_line(bucket: str, tmp_path: Path) -> None:
    """Run with share=false, and followed by the automation's evaluation."""
    run = str(uuid4())
    with pytest.raises(
        StageFailed, match=f"run {run} left no ledger to go on from, as with share=false"
    ) as caught:
        take_ledger.fn(clone(tmp_path / "night", "a"), run)
    assert "\n" not in str(caught.value)


def test_a_training_begins_with_the_ledger_of_the_pipeline_at_its_commit(
    bucket: str, tmp_path: Path
) -> None:
    worker = clone(tmp_path / "worker", "a" * 40)
    write_ledger(worker, {"own": {"cmd": "y"}, "made": {"cmd": "old"}})
    take_pipelines_ledger.fn(worker)  # there is none
    assert read_ledger(worker) == {"own": {"cmd": "y"}, "made": {"cmd": "old"}}
    head = clone(tmp_path / "head", "a" * 40)
    write_ledger(head, ENTRIES)
    leave_ledger.fn(head, "a" * 40, "a" * 40)
    elsewhere = clone(tmp_path / "elsewhere", "b" * 40)
    take_pipelines_ledger.fn(elsewhere)
    assert read_ledger(elsewhere) == {}
    take_pipelines_ledger.fn(worker)
    assert read_ledger(worker) == {"own": {"cmd": "y"}, **ENTRIES}


def test_an_evaluation_is_noted(bucket: str) -> None:
    assert evaluation_of.fn("7-run") is None
    note_evaluation.fn("7-run", "s3://gdpo-sr/runs/x/index.html")
    assert evaluation_of.fn("7-run") == "s3://gdpo-sr/runs/x/index.html"


def test_by_hand_it_is_laid_over_the_ledger_here(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    training = clone(tmp_path / "training", "a" * 40)
    write_ledger(training, ENTRIES)
    leave_ledger.fn(training, "7-run", "a" * 40)
    monkeypatch.setattr(ledger, "ROOT", clone(tmp_path / "head", "a" * 40))
    monkeypatch.setattr("sys.argv", ["ledger", "7-run"])
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        assert ledger.main() == 2
    assert (
        capsys.readouterr().err.startswith("PREFECT_API_URL is not set")
        and read_ledger(tmp_path / "head") == {}
    )
    with temporary_settings(
        {PREFECT_API_URL: "http://127.0.0.1:9/api"}
    ):  # nobody asks it: the bucket is known here
        by_hand(tmp_path, monkeypatch, capsys)


def by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ledger.main() == 0 and read_ledger(tmp_path / "head") == ENTRIES
    assert "git commit dvc.lock" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["ledger", "8-run"])
    assert ledger.main() == 1
    said = capsys.readouterr()
    assert (
        said.err.startswith("run 8-run left no ledger")
        and said.err.count("\n") == 1
        and not said.out
    )

    def away() -> str:
        raise httpx.ConnectError("All connection attempts failed")

    monkeypatch.setattr(ledger, "store_url", away)
    assert ledger.main() == 1
    assert (
        capsys.readouterr().err
        == "the Prefect server does not answer: All connection attempts failed\n"
    )


def test_what_dvc_yaml_no_longer_makes_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC keeps the entries of stages, and of parts, that are gone, and cannot pull their
    outputs.
    """

    def entry(*paths: str) -> dict[str, object]:
        return {"cmd": "x", "outs": [{"path": path, "md5": "0" * 32} for path in paths]}

    monkeypatch.setattr(
        publish,
        "graph",
        lambda root: {"evaluate@new": set(), "finetune@gdpo": set(), "report": set()},
    )
    write_ledger(
        tmp_path,
        {
            "report": entry("reports/index.html"),
            "evaluate@new": entry("reports/evaluate/new"),
            "evaluate@old": entry("reports/evaluate/old"),
            "degrade": entry("reports/degrade"),
            "finetune@gdpo": entry("models/gdpo", "data/else"),
        },
    )
    assert publish.shown(tmp_path) == ["models/gdpo", "reports/evaluate/new", "reports/index.html"]
