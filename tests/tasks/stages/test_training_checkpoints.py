"""Which checkpoint a training stage resumes from, and which it sets aside or refuses."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gdpo.config import Config
from gdpo.data.shards import write_shards
from gdpo.hooks import Hooks, Stopped
from gdpo.preference.group import row_hash
from tasks.files.chunks import PARQUET_OPTIONS
from tasks.run.fingerprint import made_by
from tasks.stages import finetune, pretrain
from tests import tiny
from tests.tasks.stages.training import CHECKPOINT, ONLINE, STAGES, cut, outputs


@pytest.fixture
def root(after_training: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(after_training, tmp_path / "root", symlinks=True))


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
    pq.write_table(pa.Table.from_pylist(rows, table.schema), groups, **PARQUET_OPTIONS)
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
