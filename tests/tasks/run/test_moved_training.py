"""Every training stage, killed on one host and finished on another, ends in the bytes of a run that
nobody disturbed; the two share nothing but the bucket.
"""

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gdpo.config import Config
from gdpo.hooks import Hooks
from tasks.run.copies import MINUTES, URL
from tasks.stages import pretrain, rollout
from tests import s3, tiny
from tests.tasks import vlcot_root
from tests.tasks.forks import Forks

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]

LONG = {"steps": 40, "checkpoint_every": 3}
GDPO = tiny.settings(pretrain=LONG, finetune=LONG)
VLCOT = vlcot_root.settings(
    vlcot={
        **vlcot_root.SECTIONS["vlcot"],
        "tokenizer": {**vlcot_root.SECTIONS["vlcot"]["tokenizer"], **LONG},
    },
    coldstart={**vlcot_root.SECTIONS["coldstart"], **LONG},
    grpo={**vlcot_root.SECTIONS["grpo"], **LONG, "steps": 12, "checkpoint_every": 2},
)
STAGES: dict[str, tuple[Config, str]] = {
    "pretrain": (GDPO, "models/naosd"),
    "finetune": (GDPO, "models/gdpo"),
    "vlcot-tokenizer": (VLCOT, "models/vlcot/tokenizer"),
    "vlcot-coldstart": (VLCOT, "models/vlcot/coldstart"),
    "vlcot-grpo": (VLCOT, "models/vlcot/vlcot"),
}


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3.server() as url:
        s3.client(url).create_bucket(Bucket="bucket")
        yield url


@pytest.fixture(scope="module")
def copying(bucket: str) -> dict[str, str]:
    """The environment of a process that keeps copies of checkpoints."""
    return {**s3.environment(bucket), URL: "s3://bucket/copies", MINUTES: "0"}


@pytest.fixture(scope="module")
def gdpo(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tiny.workplace(tmp_path_factory.mktemp("gdpo") / "root", tiny_base)
    pretrain.run(tiny.settings(), root, Hooks())
    rollout.run(tiny.settings(), root, Hooks())
    return root


@pytest.fixture(scope="module")
def vlcot(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vlcot_root.make(tmp_path_factory.mktemp("vlcot") / "root", tiny_base)


def copies(url: str) -> list[str]:
    found = s3.client(url).list_objects_v2(Bucket="bucket").get("Contents", [])
    return [entry["Key"] for entry in found]


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_training_goes_on_elsewhere(
    stage: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    bucket: str,
    copying: dict[str, str],
    forks: Forks,
) -> None:
    config, model = STAGES[stage]
    made = request.getfixturevalue("vlcot" if stage.startswith("vlcot") else "gdpo")
    one, two, straight = (
        Path(shutil.copytree(made, tmp_path / name, symlinks=True))
        for name in ("one", "two", "straight")
    )
    for root in (one, two, straight):
        (root / "params.yaml").write_text(json.dumps(config.model_dump()))
        shutil.rmtree(root / "work", ignore_errors=True)
    before = set(copies(bucket))
    process = forks.start(one, stage, **copying)
    deadline = time.monotonic() + 300
    while not set(copies(bucket)) - before:
        assert time.monotonic() < deadline, (one / "stderr.txt").read_text()
        time.sleep(0.05)
    os.kill(process, signal.SIGKILL)
    assert forks.wait() == -signal.SIGKILL, "it was over before it could be killed"
    shutil.rmtree(one)

    forks.start(two, stage, **copying)
    assert forks.wait() == 0
    said = (two / "stderr.txt").read_text()
    assert "gdpo-sr: going on from step " in said

    forks.start(straight, stage)
    assert forks.wait() == 0
    assert "going on from" not in (straight / "stderr.txt").read_text()
    assert not list(straight.glob("work/**/copies.json"))
    assert tiny.tree(two / model, two / "reports") == tiny.tree(
        straight / model, straight / "reports"
    )
