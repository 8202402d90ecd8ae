"""The ledger that a training leaves in the bucket, and who may take it."""

import json
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from flows import publish
from flows.publish import leave_ledger, take_ledger
from flows.repro import StageFailed
from flows.workplace import read_ledger, write_ledger
from tasks import store
from tests import s3

ENTRIES = {"made": {"cmd": "x", "outs": [{"path": "made", "md5": "0" * 32}]}}


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with s3.server() as url:
        for name, value in s3.environment(url).items():
            monkeypatch.setenv(name, value)
        s3.client(url).create_bucket(Bucket="gdpo-sr")
        monkeypatch.setattr(publish, "store_url", lambda: "s3://gdpo-sr")
        monkeypatch.setattr(publish, "commit_of", lambda root: (root / "commit").read_text())
        monkeypatch.setattr("flows.repro.commit_of", lambda root: (root / "commit").read_text())
        store._client.cache_clear()
        yield url
    store._client.cache_clear()


def clone(folder: Path, commit: str) -> Path:
    folder.mkdir()
    (folder / "commit").write_text(commit)
    return folder


def test_a_ledger_goes_to_a_clone_at_the_same_commit_and_to_no_other(bucket: str, tmp_path: Path) -> None:
    run = uuid4()
    training = clone(tmp_path / "training", "a" * 40)
    write_ledger(training, ENTRIES)
    leave_ledger.fn(training, run)
    left = s3.client(bucket).get_object(Bucket="gdpo-sr", Key=f"results/ledgers/{run}.json")["Body"].read()
    assert json.loads(left) == {"commit": "a" * 40, "stages": ENTRIES}

    same = clone(tmp_path / "same", "a" * 40)
    take_ledger.fn(same, run)
    assert read_ledger(same) == ENTRIES

    other = clone(tmp_path / "other", "b" * 40)
    with pytest.raises(StageFailed, match=f"this clone is at b+, run {run} was at a+: check out the same commit") as caught:
        take_ledger.fn(other, run)
    assert "\n" not in str(caught.value) and read_ledger(other) == {}


def test_a_training_that_left_none_is_one_line(bucket: str, tmp_path: Path) -> None:
    """Run with share=false, and followed by the automation's evaluation."""
    run = UUID(int=7)
    with pytest.raises(StageFailed, match=f"run {run} left no ledger to go on from, as with share=false") as caught:
        take_ledger.fn(clone(tmp_path / "night", "a"), run)
    assert "\n" not in str(caught.value)
