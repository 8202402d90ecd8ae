"""The documentation: its code runs, the site is whole and needs no network. The commands on its
pages: tests/test_readme.py.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.commands import STAGES, TOOLS

ROOT = Path(__file__).parents[1]


def block(page: str, language: str, number: int = 0) -> str:
    """A fenced block of a page."""
    text = (ROOT / "docs" / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.M | re.S)[number]


@pytest.mark.processes
@pytest.mark.parametrize(("code", "queued"), [(143, True), (0, False), (1, False)])
def test_the_script_for_slurm_asks_for_more_time_after_a_checkpoint(
    tmp_path: Path, code: int, queued: bool
) -> None:
    (tmp_path / "job").write_text(block("how-to/slurm.md", "sh"))
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").write_text(f"PATH={tmp_path}:$PATH\n")
    stage = f"trap 'echo $@ > stopped; exit {code}' TERM\ntouch started\nsleep 60 & wait\n"
    for name, body in (("python", stage), ("scontrol", 'echo "$@" > queued\n')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7"}
    job = subprocess.Popen(["bash", "job", "pretrain"], cwd=tmp_path, env=environment)
    while not (tmp_path / "started").exists():
        assert job.poll() is None
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=30) == code
    assert (tmp_path / "stopped").read_text() == "-m tasks pretrain\n"
    assert (tmp_path / "queued").exists() == queued
    if queued:
        assert (tmp_path / "queued").read_text() == "requeue 7\n"


@pytest.mark.processes
def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nbclient", reason="the extra docs is not installed")
    pytest.importorskip("ipykernel", reason="the extra docs is not installed")
    notebook = ROOT / "docs/tutorials/first-picture.ipynb"
    # In a process of its own: jupyter's packages warn, and here warnings are errors.
    run = (
        "import sys, nbformat, nbclient; book = nbformat.read(sys.argv[1], 4);"
        "nbclient.NotebookClient(book, timeout=300).execute();"
        "print(nbformat.writes(book))"
    )
    done = subprocess.run(
        [sys.executable, "-c", run, notebook], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    outputs = [cell.get("outputs", []) for cell in json.loads(done.stdout)["cells"]]
    kinds = [key for shown in outputs for one in shown for key in one.get("data", {})]
    assert kinds.count("image/png") == 2
    assert all(cell.get("outputs", []) == [] for cell in json.loads(notebook.read_text())["cells"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it."""
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    pytest.importorskip("material", reason="the extra docs is not installed")
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.processes
def test_the_reference_has_every_key_and_every_command(site: Path) -> None:
    keys = (site / "reference/configuration.html").read_text()
    for key in ("degrade.degradation.first.blur_sigma", "finetune.optimizer.lr", "track"):
        section, _, rest = key.rpartition(".") if key == "track" else key.partition(".")
        assert f"<code>{rest}</code>" in keys and (not section or f'id="{section}"' in keys)
    text = (site / "reference/command-line.html").read_text()
    for name in (*STAGES, *TOOLS):
        assert f'id="{name}"' in text and f"usage: gdpo-sr {name}" in text


@pytest.mark.processes
def test_pages_ask_for_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        text = page.read_text()
        loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=\"?([^\" >]+)", text)
        loaded += re.findall(r"<link[^>]* rel=\"?(?:stylesheet|icon|preconnect)[^>]*", text)
        assert not [one for one in loaded if re.search(r"(https?:)?//", one)], page
