"""Files are written aside: their mode, a full disk, and places that cannot be written to."""

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from gdpo.files import check_writable, written_aside


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_weights_have_the_mode_that_the_umask_gives(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with written_aside(tmp_path / "model") as part:
            (part / "unet").mkdir(parents=True)
            save_file({"a": torch.zeros(1)}, part / "unet" / "weights.safetensors")
        with written_aside(tmp_path / "one.safetensors") as part:
            save_file({"a": torch.zeros(1)}, part)
    finally:
        os.umask(before)
    for name in ("model/unet/weights.safetensors", "one.safetensors"):
        assert (tmp_path / name).stat().st_mode & 0o777 == mode, name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "one.safetensors"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError("Error writing bytes to file. Detail: [errno 28] No space left on device"),
        SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ),
        RuntimeError("unexpected pos 417216 vs 417108"),
    ],
)
def test_a_full_disk_is_an_error_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Each library has its own words; what was there stays, and no part is left."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=4096))
    target = tmp_path / "checkpoint.pt"
    target.write_bytes(b"before")
    with pytest.raises(OSError) as caught, written_aside(target):
        raise error
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(target))
    assert target.read_bytes() == b"before" and list(tmp_path.iterdir()) == [target]


def test_another_error_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a bug"), written_aside(tmp_path / "a"):
        raise RuntimeError("a bug")


def test_what_cannot_be_written_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_writable(tmp_path / "new/deeper/a.png")
    (tmp_path / "file").write_text("")
    (tmp_path / "gone").symlink_to("nowhere")
    for name in ("file/a.png", "file/deeper/a.png", "gone/a.png"):
        with pytest.raises(ValueError, match="is not a folder that can be written to"):
            check_writable(tmp_path / name)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(ValueError, match=f"{tmp_path} is not a folder"):
        check_writable(tmp_path / "a.png")


def test_without_locks_of_files_writing_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, which has no fcntl."""
    monkeypatch.setattr("gdpo.files._FCNTL", None)
    for text in ("one", "two"):
        with written_aside(tmp_path / "a.txt") as part:
            part.write_text(text)
    assert (tmp_path / "a.txt").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
