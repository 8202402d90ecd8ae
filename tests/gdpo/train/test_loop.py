"""Seeds, atomic writing, and the loop: a run stopped and resumed equals one that was not."""

import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gdpo.checks import check_tensor
from gdpo.files import written_aside
from gdpo.hooks import Hooks, Stopped
from gdpo.seeds import numpy_generator, seed_of, seeded_noise, torch_generator
from gdpo.train.loop import Diverged, Loop, Tensors, cosine, grad_norm


def test_seeds_are_the_same_on_every_machine() -> None:
    assert seed_of(0, "pretrain", 3, 1) == 7856489862106865138
    assert seed_of("a", "b") != seed_of("ab") != seed_of("b", "a")
    assert 0 <= seed_of(1) < 2**63
    assert (
        numpy_generator(0, "x").random()
        == numpy_generator(0, "x").random()
        != numpy_generator(0, "y").random()
    )


def test_generators_follow_their_key() -> None:
    a, b, other = (
        torch.randn(8, generator=torch_generator(*key)) for key in ((1, "x"), (1, "x"), (2, "x"))
    )
    assert torch.equal(a, b)
    assert not torch.equal(a, other)


def test_noise_of_a_sample_does_not_depend_on_its_batch() -> None:
    whole = seeded_noise([3, 1, 4, 15], (2, 3), 2)
    assert whole.shape == (2, 4, 2, 3)
    for i, seed in enumerate((3, 1, 4, 15)):
        assert torch.equal(whole[:, i], seeded_noise([seed], (2, 3), 2)[:, 0])


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep/out.txt"
    with written_aside(target) as part:
        part.write_text("first")
        assert not target.exists()
    with pytest.raises(RuntimeError), written_aside(target) as part:
        part.write_text("second, half")
        raise RuntimeError
    assert target.read_text() == "first"
    assert [path.name for path in target.parent.iterdir()] == ["out.txt"]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    for name in ("old", "new"):
        with written_aside(target) as part:
            part.mkdir()
            (part / name).touch()
    assert [path.name for path in target.iterdir()] == ["new"]
    with pytest.raises(KeyboardInterrupt), written_aside(target) as part:
        part.mkdir()
        raise KeyboardInterrupt
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


WRITER = """
import os, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from gdpo.files import written_aside
with written_aside(Path(sys.argv[1])) as part:
    part.write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""


def test_what_a_killed_writer_left_is_cleared_away(tmp_path: Path) -> None:
    """Only that of the same target and of nobody at work, whatever the process ids: those of a
    container come again.
    """
    target = tmp_path / "out"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE)
    assert writer.stdout is not None and writer.stdout.readline() == b"writing\n"
    (at_work,) = (path.name for path in tmp_path.iterdir())
    kept = [".other.7.abcdefgh", ".out.json.7.abcdefgh", ".out.notes"]
    for name in [*kept, f".out.{os.getpid()}.abcd_f12", ".out.1.abcdefgh"]:
        (tmp_path / name / "out").mkdir(parents=True)
    with written_aside(target) as part:
        part.write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "out", at_work])
    assert (tmp_path / at_work / "out").read_text() == "half"
    writer.kill()
    writer.wait()
    writer.stdout.close()
    with written_aside(target) as part:
        part.write_text("again")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "out"])


def test_no_writer_takes_away_the_folder_of_another(tmp_path: Path) -> None:
    """Many at once for the same target, each clearing up as it begins: all finish, and one of them
    is there whole.
    """

    def write(number: int) -> None:
        with written_aside(tmp_path / "out") as part:
            part.write_text(f"{number}" * 1000)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, [i % 10 for i in range(400)]))
    text = (tmp_path / "out").read_text()
    assert len(text) == 1000 and len(set(text)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_system_without_locks_is_written_to_and_never_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network file systems have none."""

    def none(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "no locks")

    monkeypatch.setattr("fcntl.flock", none)
    (tmp_path / ".out.1.abcdefgh").mkdir()
    with written_aside(tmp_path / "out") as part:
        part.write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.1.abcdefgh", "out"]


@pytest.mark.parametrize("name", ["old", "out.old", "lock"])
def test_a_folder_of_any_name_is_replaced(tmp_path: Path, name: str) -> None:
    """What lies beside it in the scratch folder has another name."""
    for content in ("first", "second"):
        with written_aside(tmp_path / name) as part:
            part.mkdir()
            (part / content).touch()
    assert [path.name for path in (tmp_path / name).iterdir()] == ["second"]


class Training:
    """A least-squares fit with momentum, so that a resume without the optimiser's state would
    show.
    """

    def __init__(
        self, folder: Path, steps: int = 9, every: int = 4, fingerprint: str = "a", **hooks: Any
    ) -> None:
        self.weight = torch.nn.Parameter(torch.zeros(3, 3))
        self.adam = torch.optim.AdamW([self.weight], lr=0.1)
        state: dict[str, Any] = {"weight": Tensors({"w": self.weight}), "adam": self.adam}
        self.loop = Loop(folder, steps, state, fingerprint, every, Hooks(**hooks))
        self.visited: list[int] = []

    def step(self, step: int) -> dict[str, float]:
        self.visited.append(step)
        x = torch.randn(4, 3, generator=torch_generator(0, "x", step))
        loss = (x @ self.weight - x).square().mean()
        self.adam.zero_grad()
        loss.backward()
        norm = grad_norm([self.weight], 1.0)
        self.adam.step()
        return {"loss": loss.item(), "grad_norm": norm}

    def run(self) -> list[dict[str, float]]:
        return self.loop.run(self.step)


@pytest.mark.parametrize("stop_after", [1, 4, 6, 9])
def test_stopped_and_resumed_equals_uninterrupted(tmp_path: Path, stop_after: int) -> None:
    straight = Training(tmp_path / "straight")
    history = straight.run()
    assert [row["step"] for row in history] == list(range(9))

    seen: list[int] = []
    first = Training(
        tmp_path / "cut",
        log=lambda step, _: seen.append(step),
        should_stop=lambda: len(seen) == stop_after,
    )
    with pytest.raises(Stopped) as stopped:
        first.run()
    assert stopped.value.step == stop_after

    logged: list[tuple[int, dict[str, float]]] = []
    second = Training(tmp_path / "cut", log=lambda *row: logged.append(row))
    assert second.run() == history
    assert second.visited == list(range(stop_after, 9))
    # A resumed run logs the earlier steps again.
    assert logged == [(int(row["step"]), row) for row in history]
    assert torch.equal(second.weight, straight.weight)


def test_a_killed_run_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    straight = Training(tmp_path / "straight")
    history = straight.run()

    def kill(step: int, _: dict[str, float]) -> None:
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Training(tmp_path / "cut", log=kill).run()
    second = Training(tmp_path / "cut")
    assert second.run() == history
    assert second.visited == list(range(4, 9))
    assert torch.equal(second.weight, straight.weight)


def test_a_checkpoint_of_another_run_is_not_resumed(tmp_path: Path) -> None:
    Training(tmp_path, steps=5).run()
    assert (tmp_path / "checkpoint.pt").exists()
    other = Training(tmp_path, steps=5, fingerprint="b")
    other.run()
    assert other.visited == [0, 1, 2, 3, 4]
    back = Training(tmp_path, steps=5)  # the first run's checkpoint was set aside, not lost
    back.run()
    assert back.visited == [4]


def test_a_run_may_go_on_to_more_steps_but_not_to_fewer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    history = Training(tmp_path / "straight").run()
    Training(tmp_path / "longer", steps=5).run()
    longer = Training(tmp_path / "longer")
    assert longer.run() == history and longer.visited == list(range(4, 9))
    fewer = Training(tmp_path / "longer", steps=3)
    fewer.run()
    assert fewer.visited == [0, 1, 2]
    assert "at step 8, beyond the 3 of this run" in caplog.text


def test_a_checkpoint_that_another_run_wrote_meanwhile_is_not_taken(tmp_path: Path) -> None:
    Training(tmp_path / "other", fingerprint="b").run()
    Training(tmp_path).run()
    os.replace(tmp_path / "other/checkpoint.pt", tmp_path / "checkpoint.pt")
    training = Training(tmp_path)
    training.run()
    assert training.visited == list(range(9))


@pytest.mark.parametrize("damage", ["cut", "text", "other"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    Training(tmp_path).run()
    path = tmp_path / "checkpoint.pt"
    if damage == "other":
        torch.save({"step": 3}, path)
    else:
        path.write_bytes(path.read_bytes()[:300] if damage == "cut" else b"no checkpoint")
    with pytest.raises(
        ValueError, match=r"checkpoint\.pt: unreadable checkpoint .* delete it to start again"
    ):
        Training(tmp_path).run()


def test_one_flipped_bit_of_a_checkpoint_is_never_trained_on(tmp_path: Path) -> None:
    """Wherever it is: in the weights torch reads it as it finds it."""
    straight = Training(tmp_path / "straight")
    straight.run()
    Training(tmp_path / "run").run()
    path = tmp_path / "run/checkpoint.pt"
    whole = path.read_bytes()
    refused = 0
    for place in range(0, len(whole), len(whole) // 60):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        training = Training(tmp_path / "run")
        try:
            training.run()
        except ValueError as error:
            assert "unreadable checkpoint" in str(error)
            refused += 1
        else:
            assert torch.equal(training.weight, straight.weight)
    assert refused > 20


def test_a_checkpoint_holds_no_code(tmp_path: Path) -> None:
    class Surprise:
        def __reduce__(self) -> tuple[Any, ...]:
            return print, ("ran",)

    Training(tmp_path).run()
    torch.save({"fingerprint": Surprise()}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="unreadable checkpoint"):
        Training(tmp_path).run()


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    Training(tmp_path).run()
    training = Training(tmp_path)
    training.loop.state = {"weight": Tensors({"renamed": training.weight}), "adam": training.adam}
    with pytest.raises(ValueError, match=r"disagree about the tensors \['renamed', 'w'\]"):
        training.run()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_divergence_keeps_the_last_checkpoint(tmp_path: Path, value: float) -> None:
    good = Training(tmp_path)
    good.loop.run(lambda step: good.step(step) if step < 6 else {"loss": 1.0})
    before = (tmp_path / "checkpoint.pt").read_bytes()
    bad = Training(tmp_path)
    with pytest.raises(
        Diverged, match=r"step 8: loss is not finite; the last good checkpoint is .*checkpoint\.pt"
    ):
        bad.loop.run(lambda step: {"loss": value})
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_nan_found_by_an_argument_check_is_divergence_too(tmp_path: Path) -> None:
    def step_fn(step: int) -> dict[str, float]:
        check_tensor("policy_error_BG", torch.full((1, 2), float("nan")), "BG")
        return {}

    with pytest.raises(
        Diverged,
        match=r"step 0: policy_error_BG has values that are NaN.*; there is no checkpoint yet",
    ):
        Training(tmp_path).loop.run(step_fn)


def test_cosine_warms_up_and_ends_at_zero() -> None:
    assert [cosine(step, 100, warmup=4) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert cosine(0, 100) == 1.0
    assert cosine(50, 100) == pytest.approx(0.5)
    assert cosine(100, 100) == pytest.approx(0.0)
    assert np.diff([cosine(step, 20) for step in range(20)]).max() < 0


def test_the_gradient_norm_is_that_before_clipping() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    for parameter in parameters:
        parameter.grad = torch.tensor([3.0, 4.0])
    assert grad_norm(parameters, 1.0) == pytest.approx(50**0.5)
    assert torch.cat([p.grad for p in parameters if p.grad is not None]).norm() == pytest.approx(
        1.0, rel=1e-4
    )
