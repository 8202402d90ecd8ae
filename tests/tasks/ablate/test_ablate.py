"""`gdpo-sr ablate` on tiny inputs: what is planned, run once, written, left out, refused, and
survived.
"""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from gdpo.config import Config
from gdpo.data.shards import write_shards
from gdpo.hooks import Hooks, Stopped
from gdpo.model.naosd import NAOSD
from gdpo.preference.group import Skipped
from gdpo.seeds import numpy_generator
from tasks import __main__ as cli
from tasks.ablate import pool as ablation_pool
from tasks.ablate import runs as ablation_runs
from tasks.ablate.rows import ABLATIONS, changed
from tasks.ablate.runs import Job, perform
from tasks.files import chunks as rollout_chunks
from tasks.stages import pretrain
from tasks.tools import ablate
from tests import tiny

REPO = Path(__file__).parents[3]
COST = {
    "groups": 3,
    "steps": 3,
    "batch": 2,
    "lr": 1e-3,
    "noises": 2,
    "pretrain_steps": 2,
    "processes": 2,
}
CHECKPOINTS = {"finetune": {"checkpoint_every": 1}, "pretrain": {"checkpoint_every": 1}}
ROWS = {"5": 8, "6": 5, "7": 4, "9": 4, "11": 4, "options": 8}  # NAOSD among them


def configured(**changes: Any) -> Config:
    return Config.model_validate(
        {**tiny.settings(**CHECKPOINTS).model_dump(), "ablate": {**COST, **changes}}
    )


@pytest.fixture(scope="module")
def finished(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root as `dvc repro select` leaves it, and params.yaml; not to be written to."""
    root = tiny.workplace(tmp_path_factory.mktemp("finished") / "root", tiny_base)
    write_shards(root / "data/shards/evaluation", (tiny.pair(i) for i in range(10, 12)), 1.0)
    pretrain.run(tiny.settings(pretrain={"steps": 1}), root, Hooks())
    (root / "params.yaml").write_text(json.dumps(configured().model_dump()))
    return root


@pytest.fixture
def root(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the working directory."""
    root = Path(shutil.copytree(finished, tmp_path / "root", symlinks=True))
    monkeypatch.chdir(root)
    return root


@contextmanager
def in_this_process(do: Callable[[Job, Path], None]) -> Iterator[list[Job]]:
    """Jobs are done by `do`, with one thread; the list of those that were."""
    did: list[Job] = []

    def run_all(
        jobs: Sequence[Job], root: Path, processes: int, done: Callable[[Job], None]
    ) -> None:
        for job in jobs:
            if not (root / job.output).exists():
                do(job, root)
                did.append(job)
            done(job)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation_pool, "run_all", run_all)
        yield did
    torch.set_num_threads(threads)


def really(job: Job, root: Path) -> None:
    perform(job, root, Hooks())


def fabricated(job: Job, root: Path) -> None:
    """The rollouts as they are; of all other runs, scores drawn from the fingerprint."""
    if job.kind == "rollouts":
        return really(job, root)
    rng = numpy_generator(job.fingerprint)
    scores = [{m: rng.normal(5, 1, 2).tolist() for m in job.sources["metrics"]} for _ in range(3)]
    images = [
        {"id": f"{i}", "source": "made", "detail_share": 0.5, "scores": one}
        for i, one in enumerate(scores)
    ]
    path = root / job.output
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"images": images, "last": None}))
    return None


@pytest.fixture
def here() -> Iterator[list[Job]]:
    """Fabricated runs in this process."""
    with in_this_process(fabricated) as did:
        yield did


@pytest.fixture(scope="module")
def straight(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Job]]:
    """A root after `ablate 7` in one process, left in peace, and what was done."""
    root = Path(
        shutil.copytree(finished, tmp_path_factory.mktemp("straight") / "root", symlinks=True)
    )
    with pytest.MonkeyPatch.context() as patch, in_this_process(really) as did:
        patch.chdir(root)
        assert cli.main(["ablate", "7"]) == 0
    return root, did


def reports(root: Path, name: str = "reports/ablate") -> dict[str, bytes]:
    return {key.partition("/")[2]: content for key, content in tiny.tree(root / name).items()}


def test_the_sample_profile_plans_22_configurations_with_controls(sample_config: Config) -> None:
    needed = ablate.needed_runs(sample_config, list(ABLATIONS), {"metrics": {}})
    assert (
        len(needed.then)
        == 22 * sample_config.ablate.repeats * 2
        == len({job.fingerprint for job in needed.then})
    )
    kinds = [
        (job.kind, job.config.rollout.candidates, job.config.rollout.input) for job in needed.first
    ]
    sets = [
        ("rollouts", mode, input_)
        for mode, input_ in (
            ("noise", "reencoded"),
            ("action", "reencoded"),
            ("guidance", "reencoded"),
            ("t_add", "reencoded"),
            ("noise", "lr"),
        )
    ]
    assert (
        kinds[:6] == [*sets, ("naosd", "noise", "reencoded")]
        and [kind[0] for kind in kinds[6:]] == ["pretrain"] * 12
    )
    assert [job.config.rollout.group for job in needed.first[:6]] == [8, 6, 6, 6, 8, 6]
    gdpo = [table[ABLATIONS[key].gdpo] for key, table in needed.rows.items() if key != "fig7"]
    assert all(one == gdpo[0] for one in gdpo)


def test_a_fingerprint_names_what_a_run_depends_on(sample_config: Config) -> None:
    needed = ablate.needed_runs(sample_config, ["options"], {"metrics": {}})
    runs = needed.rows["options"]
    gdpo, half = runs["GDPO"][0][0], runs["half the rollouts"][0][0]
    assert gdpo.config == half.config and gdpo.fingerprint != half.fingerprint
    assert len({job.fingerprint for job in (*runs["GDPO"][0], *runs["GDPO"][1])}) == 6
    other = ablate.needed_runs(
        sample_config, ["options"], {"metrics": {}, "naosd": "another"}
    ).rows["options"]["GDPO"][0][0]
    assert other.fingerprint != gdpo.fingerprint
    slower = sample_config.model_copy(
        update={"ablate": sample_config.ablate.model_copy(update={"processes": 7})}
    )
    assert (
        ablate.needed_runs(slower, ["options"], {"metrics": {}})
        .rows["options"]["GDPO"][0][0]
        .fingerprint
        == gdpo.fingerprint
    )


def test_every_table_is_written_and_its_runs_are_shared(
    root: Path, here: list[Job], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["ablate"]) == 0
    names = {
        f"{table.name}.{suffix}"
        for table in ABLATIONS.values()
        for suffix in ("md", "csv", "html", "svg")
    }
    assert set(reports(root)) == {*names, "index.md", "results.json"}
    content = json.loads(reports(root)["results.json"])
    assert (
        content["images"] == 3
        and content["photographs"] == 1
        and content["fine_tunings"] == len(here) - 5 - 1 - 12
    )
    for key, count in ROWS.items():
        found = content["tables"][key]["records"]
        assert len({record["row"] for record in found}) == count
        control = [r["to_control"] for r in found if r["row"] != "NAOSD" and r["metric"]]
        assert all(len(difference["repeats"]) == 3 for difference in control)
    said = content["tables"]["options"]["sentence"]
    assert said.startswith(("Beyond the controls none is", "Against GDPO and beyond the controls"))
    assert len(content["tables"]["fig7"]["claims"]) == 18
    assert "Table 5: Signs of the differences to NAOSD" in capsys.readouterr().out
    assert content["distances"]["9"]["PSNR"] == [None, None]  # logged with rollout.input lr alone
    text = reports(root)["table-9.md"].decode()
    assert text.index("](table-9.svg)") < text.index("| Method |") and "PSNR+LPIPS" in text
    # Nothing is left to do, and the same bytes are written.
    before, done = reports(root), len(here)
    assert cli.main(["ablate", "--json"]) == 0
    assert len(here) == done and reports(root) == before
    assert json.loads(capsys.readouterr().out)["tables"].keys() == ABLATIONS.keys()


def test_fewer_candidates_are_the_first_of_the_same_set(straight: tuple[Path, list[Job]]) -> None:
    root, did = straight
    assert [job.config.rollout.group for job in did if job.kind == "rollouts"] == [8]
    rows = [job.config.rollout.group for job in did if job.kind == "finetune"]
    assert sorted(rows) == [4] * 6 + [6] * 6 + [8] * 6
    assert len({(root / job.output).read_bytes() for job in did if job.kind == "finetune"}) == 18
    assert not list((root / "work/ablate/checkpoints").iterdir())
    content = json.loads(reports(root)["results.json"])
    trained = [
        r
        for r in content["tables"]["7"]["records"]
        if r["row"] == "GDPO-SR (G=4)" and r["column"] == "PSNR"
    ]
    assert trained[0]["to_naosd"]["mean"] != 0 and trained[0]["to_control"]["mean"] != 0


def test_the_references_errors_are_made_anew_for_other_noises(root: Path) -> None:
    with in_this_process(really):
        needed = ablate.needed_runs(
            configured(), ["options"], ablation_runs.sources(configured(), root)
        )
        perform(needed.first[0], root, Hooks())
        gdpo, shared, consistent = (
            needed.rows["options"][name][0][0]
            for name in ("GDPO", "noise: shared", "target: consistent")
        )
        assert gdpo.made == shared.made == consistent.made
        model = NAOSD.from_pretrained(root / "models/naosd", base=root / "base")
        made = [ablation_runs._groups(job, root, model) for job in (gdpo, shared, consistent)]
    for own, same, other in zip(*made, strict=True):
        assert own.metrics == same.metrics and own.seeds == same.seeds and len(own.seeds) == 3
        first = [errors[0] for errors in own.reference_error]
        assert [errors[0] for errors in same.reference_error] == pytest.approx(first, rel=1e-4)
        assert (
            own.reference_error != same.reference_error
            and own.reference_error != other.reference_error
        )


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


def test_rollouts_go_on_with_the_chunk_they_were_at(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured()
    job = next(
        job
        for job in ablate.needed_runs(config, ["9"], ablation_runs.sources(config, root)).first
        if job.kind == "rollouts"
    )
    rollout, made = rollout_chunks.rollout, list[str]()

    def noted(model: Any, pairs: Any, config: Config) -> Any:
        made.extend(pair.id for pair in pairs)
        return rollout(model, pairs, config)

    monkeypatch.setattr(rollout_chunks, "rollout", noted)
    for _ in range(2):
        with pytest.raises(Stopped):
            perform(job, root, Hooks(should_stop=lambda: True))
        assert not (root / job.output).exists()
    perform(job, root, Hooks())
    ids = [row["id"] for row in pq.read_table(root / job.output).to_pylist()]
    assert made == ids == [pair.id for pair in ablation_runs._selected(config, root)]
    assert not (root / "work/ablate/checkpoints" / job.fingerprint).exists()


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
    said = capsys.readouterr().err
    assert (
        said.startswith(f"gdpo-sr: {path}")
        and "`dvc repro select` makes" in said
        and said.count("\n") == 1
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


def runs(root: Path) -> int:
    return len(list((root / "work/ablate/runs").glob("*/result.json")))


def start(root: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "2"}
    return subprocess.Popen(
        [sys.executable, "-m", "tasks", "ablate", "7"],
        cwd=root,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def stopped(root: Path, number: signal.Signals, after: int) -> tuple[int, str]:
    """Start it, send a signal after so many finished runs; its exit code and what it said."""
    process = start(root)
    deadline = time.monotonic() + 240
    while runs(root) < after:
        assert process.poll() is None and time.monotonic() < deadline, (
            "it ended, or did not get there in time"
        )
        time.sleep(0.01)
    process.send_signal(number)
    return process.wait(), process.communicate()[1]


@pytest.mark.processes
@pytest.mark.timeout(900)
def test_terminated_and_killed_it_ends_in_the_bytes_of_a_run_left_in_peace(
    root: Path, straight: tuple[Path, list[Job]]
) -> None:
    code, said = stopped(root, signal.SIGTERM, 1)
    assert (
        code == 143 and "finished runs are kept in work/ablate, the same command continues" in said
    )
    code, _ = stopped(root, signal.SIGKILL, runs(root) + 3)
    assert code == -signal.SIGKILL and not (root / "reports/ablate").exists() and runs(root) < 19
    with in_this_process(really) as did:
        assert cli.main(["ablate", "7"]) == 0
    assert 0 < len(did) < 16
    assert reports(root) == reports(straight[0])
