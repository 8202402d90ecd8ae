"""A machine without a graphical interface: X11's and OpenGL's libraries hidden from the process."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tasks.photos import photo, write_png

ROOT = Path(__file__).parents[1]
FOLDERS = ("/usr/lib", "/usr/local/lib", "/lib64")
NAMES = ("libxcb*", "libX11*", "libXext*", "libGL*", "libEGL*", "libSM*", "libICE*", "libgtk*")


def in_a_namespace(*words: str) -> list[str]:
    return ["unshare", "--user", "--map-root-user", "--mount", *words]


def graphical() -> list[Path]:
    """The libraries of this machine that a server of one's own does not have."""
    found = {path for f in FOLDERS for name in NAMES for path in Path(f).glob(f"**/{name}.so*")}
    return sorted({path.resolve() for path in found if path.exists()})


@pytest.fixture
def hidden() -> list[str]:
    """The beginning of a command that hides them: an empty file is bound over each."""
    if shutil.which("unshare") is None or subprocess.run(in_a_namespace("true")).returncode:
        pytest.skip("no namespaces here")
    mounts = [f"mount --bind /dev/null {path}" for path in graphical()]
    return in_a_namespace("bash", "-ec", "\n".join([*mounts, 'exec "$@"']), "bash")


@pytest.mark.processes
def test_upscale_and_the_first_stage_need_no_windows(hidden: list[str], tmp_path: Path) -> None:
    write_png(tmp_path / "photo.png", photo(0, 24, 24))
    shutil.copy(ROOT / "tests/params.yaml", tmp_path / "params.yaml")
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("DISPLAY", None)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [*hidden, sys.executable, *words]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    for library in graphical()[:1]:
        loaded = run("-c", f"import ctypes; ctypes.CDLL({str(library)!r})")
        assert "OSError" in loaded.stderr, "it is hidden"
    for words in (("upscale", "photo.png", "-o", "large.png"), ("index",)):
        done = run("-m", "tasks", *words)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "large.png").is_file() and (tmp_path / "data/photos/00.parquet").is_file()
