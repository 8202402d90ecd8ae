"""Copies of checkpoints in a bucket: what is there, what is fetched, and that nothing of it harms a
training. The S3 server is a real one (moto, over HTTP).
"""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gdpo.hooks import Hooks, Stopped
from gdpo.train.loop import Loop, Tensors
from tasks.run import copies as module
from tasks.run.copies import Copies, copies, forget
from tests import s3
from tests.tasks.store.bucket import address  # noqa: F401 - a fixture

URL = "s3://bucket/results/checkpoints"
STEPS = 6


class Host:
    """A training on a host of its own: the weight is the sum of the steps + 1."""

    def __init__(self, folder: Path, fingerprint: str = "inputs", stop: int = STEPS + 1) -> None:
        self.folder, self.fingerprint, self.stop = folder, fingerprint, stop
        self.weight = torch.zeros(1)
        self.done: list[int] = []

    def train(self, hooks: dict[str, Any]) -> "Host":
        loop = Loop(
            self.folder,
            STEPS,
            {"weight": Tensors({"weight": self.weight})},
            self.fingerprint,
            2,
            Hooks(should_stop=lambda: len(self.done) >= self.stop, **hooks),
        )
        loop.run(self._step)
        return self

    def _step(self, step: int) -> dict[str, float]:
        self.done.append(step)
        self.weight += step + 1
        return {"loss": 1.0}

    def run(self) -> "Host":
        with copies(self.folder) as hooks:
            return self.train(hooks)


@pytest.fixture
def bucket(address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:  # noqa: F811
    monkeypatch.setenv(module.URL, URL)
    monkeypatch.setenv(module.MINUTES, "0")
    yield address
    wait_for_threads()  # before the server ends


def wait_for_threads() -> None:
    deadline = time.monotonic() + 60
    while any(thread.name == module.THREAD for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def keys(url: str) -> list[str]:
    found = s3.client(url).list_objects_v2(Bucket="bucket").get("Contents", [])
    return [entry["Key"].rpartition("/")[2] for entry in found]


def stopped(host: Host) -> Host:
    with pytest.raises(Stopped):
        host.run()
    return host


def test_another_host_goes_on_where_a_stopped_one_was(bucket: str, tmp_path: Path) -> None:
    stopped(Host(tmp_path / "one", stop=3))
    assert keys(bucket) == ["00000003.pt"]  # the copy of step 2 is gone
    two = Host(tmp_path / "two").run()
    assert two.done == [3, 4, 5] and float(two.weight) == sum(range(1, STEPS + 1))
    wait_for_threads()  # the process would end here, and with it a copy that is under way
    forget(tmp_path / "two")
    assert keys(bucket) == []
    forget(tmp_path / "two")  # once more is no error


def test_of_two_the_checkpoint_with_more_steps_counts(bucket: str, tmp_path: Path) -> None:
    stopped(Host(tmp_path / "one", stop=3))
    stopped(Host(tmp_path / "two", stop=2))  # steps 3 and 4
    assert keys(bucket) == ["00000005.pt"]
    assert Host(tmp_path / "one").run().done == [5]


def test_other_inputs_begin_anew(bucket: str, tmp_path: Path) -> None:
    stopped(Host(tmp_path / "one", stop=3))
    assert Host(tmp_path / "two", "others").run().done == list(range(STEPS))


@pytest.mark.parametrize("damage", ["flipped", "other run", "no checkpoint", "beyond the end"])
def test_a_copy_that_is_not_what_it_should_be_is_left_out(
    damage: str, bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped(Host(tmp_path / "one", stop=3))
    client = s3.client(bucket)
    (entry,) = client.list_objects_v2(Bucket="bucket")["Contents"]
    found = client.get_object(Bucket="bucket", Key=entry["Key"])
    key, content, metadata = entry["Key"], bytearray(found["Body"].read()), found["Metadata"]
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    elif damage == "other run":
        torch.save({"step": 3, "fingerprint": "others"}, tmp_path / "file")
        content, metadata = bytearray((tmp_path / "file").read_bytes()), {}
    elif damage == "no checkpoint":
        content, metadata = bytearray(b"<html>"), {}
    else:
        key = key.replace("00000003", "00000099")
    client.put_object(Bucket="bucket", Key=key, Body=bytes(content), Metadata=metadata)
    if damage == "beyond the end":
        client.delete_object(Bucket="bucket", Key=entry["Key"])
    two = Host(tmp_path / "two").run()
    assert two.done == list(range(STEPS)) and float(two.weight) == sum(range(1, STEPS + 1))
    stderr = capsys.readouterr().err
    assert ("cannot be used" in stderr) == (damage != "beyond the end")


def test_a_store_that_is_away_costs_lines_and_no_secrets(
    address: str,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(module.URL, URL)
    monkeypatch.setenv(module.MINUTES, "0")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with s3.proxy(address, lambda method, path: 503) as away:
        s3.use(monkeypatch, away)
        monkeypatch.setattr("tasks.store.s3.ATTEMPTS", 1)
        host = stopped(Host(tmp_path / "one", stop=3))
    stderr = capsys.readouterr().err
    assert host.done == [0, 1, 2] and (tmp_path / "one/checkpoint.pt").is_file()
    assert "the bucket was not searched for a copy" in stderr
    assert "the checkpoint of step 3 was not copied" in stderr
    assert s3.SECRET not in stderr and "Traceback" not in stderr


def test_a_store_that_hangs_delays_no_step_and_the_end_by_little(
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(module, "LAST_COPY_S", 0.2)
    released = threading.Event()
    monkeypatch.setattr(Copies, "_copy", lambda *_: released.wait(60))
    begun = time.monotonic()
    host = stopped(Host(tmp_path / "one", stop=5))
    released.set()
    assert host.done == [0, 1, 2, 3, 4] and time.monotonic() - begun < 30
    assert f"the last checkpoint was not copied to {URL} in 0.2 s" in capsys.readouterr().err


def test_between_two_copies_lie_so_many_minutes(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is made at once, the others wait; the last waiting one is made at the stop."""
    copied: list[int] = []
    first = threading.Event()

    def copy(self: Copies, fingerprint: str, step: int, file: Any) -> None:
        copied.append(step)
        first.set()

    monkeypatch.setenv(module.MINUTES, "60")
    monkeypatch.setattr(Copies, "_copy", copy)
    host = Host(tmp_path / "one", stop=5)
    step = host._step

    def patient(number: int) -> dict[str, float]:
        if number == 2:
            assert first.wait(60)
        return step(number)

    monkeypatch.setattr(host, "_step", patient)
    stopped(host)
    assert copied == [2, 5]


def test_a_failed_copy_is_made_later(bucket: str, tmp_path: Path) -> None:
    copying = Copies(URL, 0.0, tmp_path)
    tried: list[int] = []
    done = threading.Event()

    def copy(fingerprint: str, step: int, file: Any) -> None:
        tried.append(step)
        if len(tried) == 1:
            raise OSError("not now")
        done.set()

    copying._copy = copy
    (tmp_path / "checkpoint.pt").write_bytes(b"x")
    copying.saved("inputs", 2, tmp_path / "checkpoint.pt")
    assert done.wait(60) and tried == [2, 2]
    copying.close(copy=False)


def test_without_a_bucket_nothing_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(module.URL, raising=False)
    assert Host(tmp_path / "one").run().done == list(range(STEPS))
    assert list((tmp_path / "one").iterdir()) == [] or not (tmp_path / "one" / module.NOTE).exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (module.MINUTES, "soon", "GDPO_CHECKPOINT_MINUTES: must be a number of minutes, got soon"),
        (module.MINUTES, "nan", "must be a number of minutes, got nan"),
        (module.URL, "file:///x", "file:///x: must look like s3://bucket/prefix"),
    ],
)
def test_a_wrong_variable_is_named(
    name: str,
    value: str,
    message: str,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message), copies(tmp_path):
        pass
