"""The commands of docs/operations.md, as far as a machine can tell: from a bare host to workers,
updates, garbage.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.settings.models.root import Settings
from ruamel.yaml import YAML

from tests import s3
from tests.guide import git, guide, shell

pytestmark = pytest.mark.processes


def hosts(root: Path, tmp_path: Path, repository: Path, storage: str = "http://127.0.0.1:1") -> str:
    """Run the guide from a bare host to GPU workers; returns the stand-ins' log."""
    blocks = [*guide(root, "A host"), guide(root, "The head node")[0], guide(root, "Workers")[0]]
    text = (
        "\n".join(blocks)
        .replace("REPOSITORY", str(repository))
        .replace("https://s3.example.org", storage)
    )
    (tmp_path / "etc/systemd/system").mkdir(parents=True)
    (tmp_path / "srv").mkdir()
    return shell(text, tmp_path)


def test_the_guide_leads_from_a_bare_host_to_workers(
    root: Path, tmp_path: Path, repository: Path
) -> None:
    with s3.server() as url:
        log = hosts(root, tmp_path, repository, url)
        client = s3.client(url)
        assert client.get_bucket_versioning(Bucket="gdpo-sr")["Status"] == "Enabled"
        rules = client.get_bucket_lifecycle_configuration(Bucket="gdpo-sr")["Rules"]
        ends = [
            r["AbortIncompleteMultipartUpload"]
            for r in rules
            if "AbortIncompleteMultipartUpload" in r
        ]
        assert ends == [{"DaysAfterInitiation": 1}] and len(rules) == 2
    for name in ("worker.env", "server.env"):
        assert (tmp_path / "etc/gdpo-sr" / name).stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "etc/gdpo-sr/admin.env").exists()
    assert (tmp_path / "srv/gdpo-sr/head").resolve().name == "head-0"
    for n in range(8):  # every clone shares the cache, the first one too
        assert (
            f"dir = {tmp_path}/srv/gdpo-sr/cache"
            in (tmp_path / f"srv/gdpo-sr/a100-{n}/.dvc/config.local").read_text()
        )
    assert {path.name for path in (tmp_path / "etc/systemd/system").iterdir()} == set(
        os.listdir(root / "deploy/systemd")
    )
    started = re.findall(r"^systemctl enable --now (.*)|^make .* (setup)", log, flags=re.MULTILINE)
    assert [unit or target for unit, target in started] == [
        "gdpo-server",
        "setup",
        "gdpo-worker@head-0",
        " ".join(f"gdpo-gpu-worker@{n}" for n in range(8)),
    ]


def test_a_bucket_is_made_again_without_harm_and_a_wrong_name_is_said(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(url: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, root / "deploy/bucket.py", url], capture_output=True, text=True
        )

    with s3.server() as address:
        s3.use(monkeypatch, address)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
        assert [make("s3://gdpo-sr").returncode for _ in range(2)] == [0, 0]
        assert make("gdpo-sr").returncode == 2
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")  # nobody listens there
    away = make("s3://gdpo-sr")
    assert away.returncode == 1
    assert away.stderr.startswith("s3://gdpo-sr: ") and away.stderr.count("\n") == 1


def test_the_settings_that_the_guide_writes_are_prefects(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "".join([*guide(root, "A host"), *guide(root, "The head node")])
    for name, value in re.findall(r"^(?:echo ')?(PREFECT_\w+)=([^'\n]+)", text, flags=re.MULTILINE):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    found = Settings()
    assert found.server.api.auth_string and found.api.auth_string
    assert (
        found.server.api.auth_string.get_secret_value() == found.api.auth_string.get_secret_value()
    )
    assert found.server.api.host not in ("127.0.0.1", "0.0.0.0")
    assert found.server.ui.api_url == found.api.url
    assert found.server.database.connection_url
    assert found.server.database.connection_url.get_secret_value().startswith(
        "postgresql+asyncpg://"
    )


def test_the_update_of_the_guide_works_though_a_run_rewrote_the_lock(
    root: Path, tmp_path: Path, repository: Path
) -> None:
    clones = [tmp_path / "srv/gdpo-sr" / name for name in ("head-0", "cpu-0", "a100-0")]
    for clone in clones:
        git("clone", "-q", str(repository), str(clone), at=tmp_path)
        (clone / "dvc.lock").write_text("schema: '2.0'\nstages: {made: {cmd: here}}\n")
    (tmp_path / "srv/gdpo-sr/head").symlink_to("head-0")
    (tmp_path / "srv/gdpo-sr/cache").mkdir()
    (repository / "dvc.lock").write_text("schema: '2.0'\nstages: {made: {cmd: elsewhere}}\n")
    git("commit", "-qam", "two", at=repository)
    with pytest.raises(subprocess.CalledProcessError):
        git("pull", "--ff-only", at=clones[0])  # what the guide said before
    (update,) = guide(root, "Backups, upgrades")
    shell(update, tmp_path)
    for clone in clones:
        assert git("rev-parse", "HEAD", at=clone) == git("rev-parse", "HEAD", at=repository)
        assert git("status", "--porcelain", at=clone) == ""


def test_collecting_garbage_keeps_what_other_clones_have_not_pushed(
    root: Path, tmp_path: Path, repository: Path
) -> None:
    for n in range(3):
        clone = tmp_path / f"srv/gdpo-sr/a100-{n}"
        git("clone", "-q", str(repository), str(clone), at=tmp_path)
        (clone / "out").write_text(f"made in clone {n}")
        shell(
            f"cd /srv/gdpo-sr/a100-{n} && make .venv && .venv/bin/dvc cache dir --local "
            "/srv/gdpo-sr/cache && dvc add out",
            tmp_path,
        )
    cache = tmp_path / "srv/gdpo-sr/cache/files/md5"
    (cache / "00").mkdir()
    (cache / "00/11223344556677889900aabbccddee").write_text("nobody's")
    (collect,) = guide(root, "What to do when")
    shell(collect.replace("dvc gc ", "dvc gc --force "), tmp_path)  # asks a person
    assert sorted(path.read_text() for path in cache.rglob("*/*")) == [
        f"made in clone {n}" for n in range(3)
    ]


def test_the_wide_worker_sees_as_many_gpus_as_the_paper_profile_asks_for(
    root: Path, tmp_path: Path
) -> None:
    (tmp_path / "log").write_text("useradd\n")
    shell(guide(root, "Workers")[1], tmp_path)
    (drop_in,) = (tmp_path / "etc/systemd/system/gdpo-gpu-worker@0.service.d").iterdir()
    variable, _, gpus = (
        drop_in.read_text().splitlines()[-1].removeprefix("Environment=").partition("=")
    )
    paper = YAML(typ="safe").load((root / "profiles/paper.yaml").read_text())
    assert drop_in.suffix == ".conf" and variable == "CUDA_VISIBLE_DEVICES"
    assert len(gpus.split(",")) == max(paper[stage]["gpus"] for stage in ("pretrain", "finetune"))
