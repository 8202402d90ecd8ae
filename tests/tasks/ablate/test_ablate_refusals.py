"""What `ablate` refuses or leaves out, in one line that names it."""

import json
import multiprocessing
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gdpo.config import Config
from gdpo.preference.group import Skipped
from tasks import __main__ as cli
from tasks.ablate import pool as ablation_pool
from tasks.ablate.rows import changed
from tasks.ablate.runs import Job
from tasks.files import chunks as rollout_chunks
from tasks.tools import ablate
from tests.tasks.ablate.runs import (
    fabricated,
    in_this_process,
    reports,
)


@pytest.fixture
def root(selected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the working directory."""
    root = Path(shutil.copytree(selected, tmp_path / "root", symlinks=True))
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def here() -> Iterator[list[Job]]:
    """Fabricated runs in this process."""
    with in_this_process(fabricated) as did:
        yield did


def test_groups_without_finite_scores_are_left_out_by_name(
    root: Path, here: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout = rollout_chunks.rollout

    def broken(model: Any, pairs: Any, config: Config) -> Iterator[Any]:
        for found, pair in zip(rollout(model, pairs, config), pairs, strict=True):
            yield (
                Skipped(pair.id, "metric psnr_y of its candidates is not finite")
                if pair.id in bad
                else found
            )

    monkeypatch.setattr(rollout_chunks, "rollout", broken)
    bad = {"pair1"}
    assert cli.main(["ablate", "7"]) == 0
    skipped = json.loads(reports(root)["results.json"])["skipped"]["noise"]
    assert [pair["id"] for pair in skipped] == ["pair1"]
    assert (
        "Left out of the rollouts by noise: pair1 (metric psnr_y of its"
        in reports(root)["index.md"].decode()
    )


def test_no_finite_group_at_all_is_one_line(
    root: Path, here: list[Job], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        rollout_chunks,
        "rollout",
        lambda model, pairs, config: (Skipped(p.id, "NaN") for p in pairs),
    )
    assert cli.main(["ablate", "7"]) == 1
    assert (
        "no rollout has finite scores (pair0: NaN); nothing to train on" in capsys.readouterr().err
    )


def test_a_row_that_cannot_be_is_one_line_that_names_it(sample_config: Config) -> None:
    """What the configuration says of GDPO need not fit a row; what a table needs is there whatever
    the reward is.
    """
    pairs = changed(sample_config, {"finetune": {"pairs": 3}})
    assert ablate.needed_runs(pairs, ["7"], {"metrics": {}}).rows["7"].keys() == {
        "GDPO-SR (G=4)",
        "GDPO-SR (G=6)",
        "GDPO-SR (G=8)",
    }
    without = changed(
        sample_config,
        {"reward": {"fidelity": ["ssim_y"]}, "rollout": {"metrics": ["ssim_y", "niqe"]}},
    )
    assert (
        "psnr_y"
        in ablate.needed_runs(without, ["9"], {"metrics": {}})
        .rows["9"]["PSNR"][0][0]
        .config.rollout.metrics
    )
    one_side = changed(sample_config, {"reward": {"perception": []}})
    with pytest.raises(
        ValueError, match=r"^ablate 6, row ARF w/ NR: .*fidelity and perception are both empty"
    ) as error:
        ablate.needed_runs(one_side, ["6"], {"metrics": {}})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["models/naosd", "data/shards/train", "data/selected"])
def test_what_is_missing_is_one_line_that_says_which_command_makes_it(
    root: Path, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(root / path)
    assert cli.main(["ablate", "5"]) == 1
    stderr = capsys.readouterr().err
    assert (
        stderr.startswith(f"gdpo-sr: {path}")
        and "`dvc repro select` makes" in stderr
        and stderr.count("\n") == 1
    )


def test_unknown_tables_and_parameters_are_refused(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["ablate", "8"])
    assert (
        ended.value.code == 2
        and "no ablation '8'; there is 5, 6, 7, 9, 11, fig7, options" in capsys.readouterr().err
    )
    assert cli.main(["ablate", "5", "--set", "ablate.repeats=2"]) == 2
    assert "ablate.repeats" in capsys.readouterr().err


def test_without_a_gpu_it_says_so(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["ablate", "5", "--set", "allow_cpu=false"]) == 3
    assert capsys.readouterr().err.startswith("gdpo-sr: ablate needs a GPU")


def test_one_run_per_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert ablation_pool.places(7) == ["3", "5"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert ablation_pool.places(7) == ["0", "1"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert ablation_pool.places(2) == [None, None]


def test_a_worker_that_failed_or_is_gone_is_one_line() -> None:
    ours, theirs = multiprocessing.Pipe()
    theirs.send("rollouts: damaged")
    with pytest.raises(ValueError, match="rollouts: damaged"):
        ablation_pool._check(ours)
    theirs.close()
    with pytest.raises(
        ValueError,
        match=r"a process of ablate ended early .*; the same command continues",
    ):
        ablation_pool._check(ours)
