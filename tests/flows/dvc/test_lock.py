"""Lock entries that runs store in the bucket: who may take them, and which part is published."""

import json
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import publish
from flows.dvc import lock
from flows.dvc.lock import (
    evaluation_of,
    fetch_lock_entries,
    fetch_pipeline_lock_entries,
    note_evaluation,
    store_lock_entries,
)
from flows.dvc.run import StageFailed
from flows.workplace import read_lock_entries, write_lock_entries
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
        monkeypatch.setattr(lock, "store_url", lambda: "s3://gdpo-sr")
        monkeypatch.setattr(lock, "commit_of", lambda root: (root / "commit").read_text())
        monkeypatch.setattr("flows.dvc.run.commit_of", lambda root: (root / "commit").read_text())
        store._client.cache_clear()
        yield url
    store._client.cache_clear()


def clone(folder: Path, commit: str) -> Path:
    folder.mkdir()
    (folder / "commit").write_text(commit)
    return folder


def test_lock_entries_go_to_a_clone_at_the_same_commit_and_to_no_other(
    bucket: str, tmp_path: Path
) -> None:
    run = str(uuid4())
    training = clone(tmp_path / "training", "a" * 40)
    write_lock_entries(training, ENTRIES)
    store_lock_entries.fn(training, run, "a" * 40)
    left = (
        s3.client(bucket)
        .get_object(Bucket="gdpo-sr", Key=f"results/lock/{run}.json")["Body"]
        .read()
    )
    assert json.loads(left) == {"commit": "a" * 40, "stages": ENTRIES}

    same = clone(tmp_path / "same", "a" * 40)
    fetch_lock_entries.fn(same, run)
    assert read_lock_entries(same) == ENTRIES

    other = clone(tmp_path / "other", "b" * 40)
    with pytest.raises(
        StageFailed, match=f"this clone is at b+, run {run} was at a+: check out the same commit"
    ) as caught:
        fetch_lock_entries.fn(other, run)
    assert "\n" not in str(caught.value) and read_lock_entries(other) == {}


def test_a_training_that_left_none_is_one_line(bucket: str, tmp_path: Path) -> None:
    """Run with share=false, and followed by the automation's evaluation."""
    run = str(uuid4())
    with pytest.raises(
        StageFailed, match=f"flow run {run} stored no lock entries, as with share=false"
    ) as caught:
        fetch_lock_entries.fn(clone(tmp_path / "night", "a"), run)
    assert "\n" not in str(caught.value)


def test_a_training_begins_with_the_lock_entries_of_the_pipeline_at_its_commit(
    bucket: str, tmp_path: Path
) -> None:
    worker = clone(tmp_path / "worker", "a" * 40)
    write_lock_entries(worker, {"own": {"cmd": "y"}, "made": {"cmd": "old"}})
    fetch_pipeline_lock_entries.fn(worker)  # there is none
    assert read_lock_entries(worker) == {"own": {"cmd": "y"}, "made": {"cmd": "old"}}
    head = clone(tmp_path / "head", "a" * 40)
    write_lock_entries(head, ENTRIES)
    store_lock_entries.fn(head, "a" * 40, "a" * 40)
    elsewhere = clone(tmp_path / "elsewhere", "b" * 40)
    fetch_pipeline_lock_entries.fn(elsewhere)
    assert read_lock_entries(elsewhere) == {}
    fetch_pipeline_lock_entries.fn(worker)
    assert read_lock_entries(worker) == {"own": {"cmd": "y"}, **ENTRIES}


def test_an_evaluation_is_noted(bucket: str) -> None:
    assert evaluation_of.fn("7-run") is None
    note_evaluation.fn("7-run", "s3://gdpo-sr/runs/x/index.html")
    assert evaluation_of.fn("7-run") == "s3://gdpo-sr/runs/x/index.html"


def test_by_hand_it_is_merged_into_the_lock_here(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    training = clone(tmp_path / "training", "a" * 40)
    write_lock_entries(training, ENTRIES)
    store_lock_entries.fn(training, "7-run", "a" * 40)
    monkeypatch.setattr(lock, "ROOT", clone(tmp_path / "head", "a" * 40))
    monkeypatch.setattr("sys.argv", ["lock", "7-run"])
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        assert lock.main() == 2
    assert (
        capsys.readouterr().err.startswith("PREFECT_API_URL is not set")
        and read_lock_entries(tmp_path / "head") == {}
    )
    # The server is not contacted: the bucket is known here.
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        by_hand(tmp_path, monkeypatch, capsys)


def by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lock.main() == 0 and read_lock_entries(tmp_path / "head") == ENTRIES
    assert "commit it" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["lock", "8-run"])
    assert lock.main() == 1
    captured = capsys.readouterr()
    assert (
        captured.err.startswith("flow run 8-run stored no lock entries")
        and captured.err.count("\n") == 1
        and not captured.out
    )

    def away() -> str:
        raise httpx.ConnectError("All connection attempts failed")

    monkeypatch.setattr(lock, "store_url", away)
    assert lock.main() == 1
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
    write_lock_entries(
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
