"""The stages pretrain, rollout and finetune on tiny inputs: what they write, refuse, and
survive.
"""

import hashlib
import json
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from gdpo.config import Config
from gdpo.data.shards import write_shards
from gdpo.hooks import Hooks, Stopped
from gdpo.model.base import WEIGHTS
from gdpo.model.checkpoints import read_adapters
from gdpo.model.naosd import NAOSD
from gdpo.preference.group import row_hash
from gdpo.pretrain.start import initial_model
from tasks.files.chunks import HOW
from tasks.run.fingerprint import fingerprint, made_by
from tasks.run.training import write_history
from tasks.stages import finetune, pretrain, rollout
from tests import tiny
from tests.tasks.forks import Forks

STAGES: dict[str, Callable[[Config, Path, Hooks], None]] = {
    "pretrain": pretrain.run,
    "finetune": finetune.run,
}
CHECKPOINT = {
    "pretrain": "work/pretrain/checkpoint.pt",
    "finetune": "work/finetune/gdpo/checkpoint.pt",
}


@pytest.fixture(scope="module")
def finished(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root after pretrain and rollout; not to be written to."""
    root = tiny.workplace(tmp_path_factory.mktemp("finished") / "root", tiny_base)
    pretrain.run(tiny.settings(), root, Hooks())
    rollout.run(tiny.settings(), root, Hooks())
    return root


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "root", symlinks=True))


def outputs(root: Path) -> dict[str, bytes]:
    return tiny.tree(root / "models", root / "reports")


def history(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_pretrain_leaves_a_model_and_its_history(finished: Path) -> None:
    assert set(outputs(finished)) == {
        "models/naosd/model.json",
        "models/naosd/naosd.safetensors",
        "reports/pretrain/metrics.jsonl",
        "reports/data-docs/rollout/00/index.html",
        "reports/data-docs/rollout/00/groups.html",
    }
    assert [row["step"] for row in history(finished / "reports/pretrain/metrics.jsonl")] == list(
        range(6)
    )
    assert not (finished / CHECKPOINT["pretrain"]).exists()
    model = NAOSD.from_pretrained(finished / "models/naosd")
    assert (model.t_add, model.t_diff, model.prompt) == (250, 100, "sharp")
    card = json.loads((finished / "models/naosd/model.json").read_text())
    weights = (finished / "models/naosd/naosd.safetensors").read_bytes()
    assert card["base"] == "../../base" and card["adapters"] == [
        {
            "file": "naosd.safetensors",
            "rank": 2,
            "alpha": 4,
            "sha256": hashlib.sha256(weights).hexdigest(),
        }
    ]


def test_the_same_parameters_give_the_same_bytes(root: Path) -> None:
    before = outputs(root)
    pretrain.run(tiny.settings(), root, Hooks())
    assert outputs(root) == before


def test_pretrain_starts_from_the_adapters_of_init(root: Path) -> None:
    shutil.copytree(root / "models/naosd", root / "init")
    pretrain.run(
        tiny.settings(pretrain={"init": "init", "steps": 1, "optimizer": {"lr": 1e-12}}),
        root,
        Hooks(),
    )
    before, after = (
        load_file(root / name / "naosd.safetensors") for name in ("init", "models/naosd")
    )
    assert all(torch.allclose(before[name], after[name], atol=1e-8) for name in before)


def test_without_steps_the_adapters_of_init_are_the_model(root: Path) -> None:
    """Released weights need no training; the base's own folder stands for fresh adapters."""
    shutil.copytree(root / "models/naosd", root / "init")
    pretrain.run(tiny.settings(pretrain={"init": "init", "steps": 0}), root, Hooks())
    before, after = (root / name / "naosd.safetensors" for name in ("init", "models/naosd"))
    assert after.read_bytes() == before.read_bytes()
    assert history(root / "reports/pretrain/metrics.jsonl") == []
    assert NAOSD.from_pretrained(root / "models/naosd").prompt == "sharp"
    assert initial_model(tiny.settings(pretrain={"init": "base"})) is None
    for init, problem in (("base", "pretrain.steps is 0"), ("models/naosd", "itself writes")):
        with pytest.raises(ValueError, match=problem):
            tiny.settings(pretrain={"init": init, "steps": 0})


def test_kept_weights_are_model_folders(root: Path) -> None:
    pretrain.run(tiny.settings(pretrain={"keep_every": 4}), root, Hooks())
    [kept] = (root / "work/pretrain").glob("kept-*/step-*")
    assert kept.name == "step-000004"
    assert NAOSD.from_pretrained(kept).t_add == 250


def test_an_init_that_does_not_fit_is_named(root: Path) -> None:
    shutil.copytree(root / "models/naosd", root / "init")
    other = {"init": "init", "lora": {"rank": 3, "alpha": 4}}
    with pytest.raises(
        ValueError,
        match=r"pretrain.lora must be \{'rank': 2, 'alpha': 4\}, that of pretrain.init init",
    ):
        pretrain.run(tiny.settings(pretrain=other), root, Hooks())
    with pytest.raises(ValueError, match=r"nowhere/model.json: no such file"):
        pretrain.run(tiny.settings(pretrain={"init": "nowhere"}), root, Hooks())


def test_finetune_leaves_a_chain_and_the_control_another(root: Path) -> None:
    naosd = outputs(root)
    for name in ("gdpo", "control"):
        finetune.run(tiny.settings(), root, Hooks(), name)
        chain = read_adapters(root / "models" / name)
        assert [adapters.name for adapters in chain] == ["naosd", "gdpo"]
        assert not any(key.startswith("vae.") for key in chain[1].tensors)
        rows = history(root / f"reports/finetune/{name}/metrics.jsonl")
        assert rows[0]["loss"] == pytest.approx(0.6931471805599453, abs=1e-9)
        assert not list((root / "work").rglob("checkpoint.pt"))
        NAOSD.from_pretrained(root / "models" / name)
    assert {key: value for key, value in outputs(root).items() if key in naosd} == naosd
    trained = [
        load_file(root / "models" / name / "gdpo.safetensors") for name in ("gdpo", "control")
    ]
    assert any(not torch.equal(trained[0][name], trained[1][name]) for name in trained[0])
    reference = load_file(root / "models/naosd/naosd.safetensors")
    chained = load_file(root / "models/gdpo/naosd.safetensors")
    assert all(torch.equal(reference[name], chained[name]) for name in reference)


def cut(path: str) -> Callable[[Path], None]:
    return lambda root: os.truncate(root / path, (root / path).stat().st_size // 2)


def remove(path: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        gone = root / path
        gone.unlink() if gone.is_symlink() or gone.is_file() else shutil.rmtree(gone)

    return change


def foreign_manifest(root: Path) -> None:
    pq.write_table(pa.table({"id": ["pair0", "stranger"]}), root / "data/selected/manifest.parquet")


@pytest.mark.parametrize(
    ("stage", "change", "says"),
    [
        (
            pretrain,
            remove("data/shards/train"),
            r"data/shards/train: no shards here; run the degrade stage",
        ),
        (
            pretrain,
            cut("data/shards/train/00000.parquet"),
            r"00000.parquet: damaged or missing shard",
        ),
        (pretrain, remove("base"), r"base/unet/.*safetensors: no such file; model.base must be"),
        (rollout, remove("data/selected"), r"manifest.parquet: no such file; run the select stage"),
        (
            rollout,
            foreign_manifest,
            r"manifest.parquet: patch stranger is not in data/shards/train",
        ),
        (rollout, cut("data/selected/manifest.parquet"), r"manifest.parquet: damaged manifest"),
        (rollout, remove("models/naosd"), r"models/naosd: no such model folder"),
        (rollout, cut("models/naosd/naosd.safetensors"), r"naosd.safetensors: unreadable adapters"),
        (
            finetune,
            remove("data/rollouts"),
            r"data/rollouts: no rollouts here; run the rollout stage",
        ),
    ],
)
def test_missing_and_damaged_inputs_are_named(
    root: Path, stage: Any, change: Callable[[Path], None], says: str
) -> None:
    change(root)
    before = outputs(root)
    with pytest.raises(ValueError, match=says):
        stage.run(tiny.settings(), root, Hooks())
    assert outputs(root) == before


ONLINE = {"rollouts": "online"}


def test_online_trains_on_the_groups_that_the_stage_stores(root: Path) -> None:
    """In the first epoch, and where the stage too made one pair at a time."""
    one = {"batch": 3}
    settings = {"steps": 2, "batch": 2}
    rollout.run(tiny.settings(rollout=one), root, Hooks())
    found = []
    for changes in ({}, ONLINE):
        finetune.run(tiny.settings(rollout=one, finetune={**settings, **changes}), root, Hooks())
        found.append(history(root / "reports/finetune/gdpo/metrics.jsonl"))
    for cached, online in zip(*found, strict=True):
        assert cached == pytest.approx(online, rel=1e-6, abs=1e-6)


def test_online_needs_the_pairs_and_no_rollouts(root: Path) -> None:
    config = tiny.settings(finetune={"steps": 1, **ONLINE})
    shutil.rmtree(root / "data/rollouts")
    finetune.run(config, root, Hooks())
    assert (root / "models/gdpo/model.json").is_file()
    for gone, stage in (("data/selected", "select"), ("data/shards", "degrade")):
        shutil.move(root / gone, root / "gone")
        with pytest.raises(
            ValueError,
            match=rf"{gone}.*run the {stage} stage, or `dvc pull select degrade` \(finetune.rollo",
        ):
            finetune.run(config, root, Hooks())
        shutil.move(root / "gone", root / gone)


def test_an_online_run_does_not_go_on_with_other_pairs(root: Path) -> None:
    config = tiny.settings(finetune={**ONLINE, "steps": 3})

    def first_step() -> int:
        with pytest.raises(Stopped) as stopped:
            finetune.run(config, root, Hooks(should_stop=lambda: True))
        return stopped.value.step

    assert [first_step(), first_step()] == [1, 2]
    pq.write_table(pa.table({"id": ["pair1", "pair0"]}), root / "data/selected/manifest.parquet")
    assert first_step() == 1


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_of_other_parameters_or_inputs_is_not_resumed(root: Path, stage: str) -> None:
    run = STAGES[stage]
    config, other = (tiny.settings(**{stage: {"optimizer": {"lr": lr}}}) for lr in (1e-3, 5e-4))

    def stop(config: Config) -> None:
        seen: list[int] = []
        with pytest.raises(Stopped):
            run(
                config,
                root,
                Hooks(log=lambda step, _: seen.append(step), should_stop=lambda: len(seen) == 3),
            )
        assert (root / CHECKPOINT[stage]).exists()

    def first_step(config: Config) -> int:
        """The step that a run computes first: those before are only logged again, at once."""
        computed: list[int] = []
        with pytest.raises(Stopped) as stopped:
            run(
                config,
                root,
                Hooks(log=lambda step, _: computed.append(step), should_stop=lambda: True),
            )
        return stopped.value.step - 1

    stop(config)
    assert first_step(config) == 3
    assert first_step(other) == 0
    assert first_step(config) == 4  # taken back
    write_shards(root / "data/shards/train", (tiny.pair(i) for i in range(6)), 1.0)
    groups = root / "data/rollouts/00/00000.parquet"
    table = pq.read_table(groups)
    rows = table.to_pylist()
    rows[0]["seeds"][0] += 1
    rows[0]["sha256"] = row_hash(rows[0])
    pq.write_table(pa.Table.from_pylist(rows, table.schema), groups, **HOW)
    assert first_step(config) == 0


def stopped_after(count: int, config: Config, root: Path) -> int:
    """Stop pretrain after `count` more steps; returns the number of its first step."""
    computed: list[int] = []
    times = iter([False] * (count - 1) + [True])
    with pytest.raises(Stopped) as stopped:
        pretrain.run(
            config,
            root,
            Hooks(log=lambda step, _: computed.append(step), should_stop=lambda: next(times)),
        )
    return stopped.value.step - count


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"checkpoint_every": 2}, {"checkpoint_every": 3}),
        ({"gpus": 1}, {"gpus": 2}),
        ({"steps": 4}, {"steps": 6}),
    ],
)
def test_a_checkpoint_serves_where_the_result_is_the_same(
    root: Path, before: dict[str, Any], after: dict[str, Any]
) -> None:
    finished = outputs(root)
    assert stopped_after(3, tiny.settings(pretrain=before), root) == 0
    assert stopped_after(1, tiny.settings(pretrain=after), root) == 3
    pretrain.run(tiny.settings(pretrain=after), root, Hooks())
    assert outputs(root) == finished


@pytest.mark.parametrize("changed", ["code", "torch", "steps of a cosine"])
def test_a_checkpoint_that_would_give_another_result_is_set_aside(
    root: Path, changed: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    steps = {"steps": 6}
    if changed == "steps of a cosine":
        steps["optimizer"] = {"lr": 1e-3, "schedule": "cosine"}
    assert stopped_after(2, tiny.settings(pretrain={**steps, "steps": 4}), root) == 0
    if changed in ("code", "torch"):
        present = made_by("tasks.stages.pretrain")
        monkeypatch.setattr(
            "tasks.run.fingerprint.made_by", lambda _: {**present, changed: "another"}
        )
    assert stopped_after(1, tiny.settings(pretrain=steps), root) == 0
    (line,) = caplog.messages
    assert f"other {changed.replace('steps of a cosine', 'pretrain.steps (4, now 6)')}" in line
    assert len(list((root / "work/pretrain").glob("unused-*/checkpoint.pt"))) == 1


@pytest.mark.parametrize("stage", STAGES)
def test_a_damaged_checkpoint_is_named_and_deleting_it_helps(root: Path, stage: str) -> None:
    run, config = STAGES[stage], tiny.settings(**{stage: {"steps": 2}})
    with pytest.raises(Stopped):
        run(config, root, Hooks(should_stop=lambda: True))
    cut(CHECKPOINT[stage])(root)
    with pytest.raises(ValueError, match=f"{CHECKPOINT[stage]}: unreadable checkpoint"):
        run(config, root, Hooks())
    (root / CHECKPOINT[stage]).unlink()
    run(config, root, Hooks())


def test_fingerprints_name_settings_and_every_byte(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a").write_text("1")
    first = fingerprint({"x": 1, "y": 2}, [folder])
    assert fingerprint({"y": 2, "x": 1}, [folder]) == first
    assert fingerprint({"x": 1, "y": 3}, [folder]) != first
    (folder / "a").write_text("2")
    assert fingerprint({"x": 1, "y": 2}, [folder]) != first
    (folder / "a").rename(folder / "b")
    (folder / "b").write_text("1")
    assert fingerprint({"x": 1, "y": 2}, [folder]) != first


def test_histories_have_whole_steps_and_all_digits(tmp_path: Path) -> None:
    write_history(tmp_path / "h", [{"step": 0.0, "loss": 1 / 3}, {"step": 1.0, "loss": 5e-5}])
    assert (tmp_path / "h/metrics.jsonl").read_text() == (
        '{"step": 0, "loss": 0.3333333333333333}\n{"step": 1, "loss": 5e-05}\n'
    )


# Real processes, real signals.


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline, "the stage did not get there in time"
        time.sleep(0.002)


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.processes
@pytest.mark.parametrize("stage", STAGES)
def test_terminated_and_killed_it_ends_in_the_same_bytes(
    root: Path, tmp_path: Path, forks: Forks, stage: str
) -> None:
    """SIGTERM early: 143 and a checkpoint. SIGKILL later, between checkpoints. The third start
    finishes.
    """
    config = tiny.settings(
        **{stage: {"steps": 24, "checkpoint_every": 5, "optimizer": {"lr": 1e-4}}}
    )
    (root / "params.yaml").write_text(json.dumps(config.model_dump()))
    straight = Path(shutil.copytree(root, tmp_path / "straight", symlinks=True))
    forks.start(straight, stage)
    assert forks.wait() == 0

    live = (root / CHECKPOINT[stage]).with_name("metrics.jsonl")
    before = outputs(root)
    process = forks.start(root, stage)
    wait_for(lambda: lines(live) >= 3)
    os.kill(process, signal.SIGTERM)
    assert forks.wait() == 143
    steps = torch.load(root / CHECKPOINT[stage], weights_only=True)["step"]
    assert 3 <= steps < 24 and outputs(root) == before
    said = (root / "stderr.txt").read_text()
    assert (
        f"stopped at step {steps}, checkpoint in {CHECKPOINT[stage]}; the same command resumes"
        in said
    )

    changed = (root / CHECKPOINT[stage]).stat().st_mtime_ns
    process = forks.start(root, stage)
    wait_for(lambda: (root / CHECKPOINT[stage]).stat().st_mtime_ns != changed)
    os.kill(process, signal.SIGKILL)
    assert forks.wait() == -signal.SIGKILL
    assert outputs(root) == before

    forks.start(root, stage)
    assert forks.wait() == 0
    assert outputs(root) == outputs(straight)
    assert not (root / CHECKPOINT[stage]).exists()
    assert lines(live) == 24


@pytest.mark.parametrize("stage", STAGES)
def test_every_file_is_hashed_once(root: Path, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: Counter[str] = Counter()
    digest = hashlib.file_digest

    def counted(file: Any, name: str) -> Any:
        hashed[file.name] += 1
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    STAGES[stage](tiny.settings(), root, Hooks())
    weights = {str(root / "base" / name) for name in WEIGHTS}
    assert weights <= hashed.keys() and set(hashed.values()) == {1}
    # The stored hashes of the groups stand for them.
    assert not any(name.startswith(str(root / "data/rollouts")) for name in hashed)
