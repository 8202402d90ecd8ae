"""Several processes in one step: shares, sums, and that what fails in one fails in all. Two forks
of this process, gloo.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from gdpo.checks import NotFinite
from gdpo.hooks import Hooks, Stopped
from gdpo.train.loop import Diverged, Loop, Tensors
from gdpo.train.world import World, current


def in_two(folder: Path, check: Callable[[World], None]) -> None:
    """Run `check` in two forks that form a world; each must come to its end."""
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            try:
                dist.init_process_group(
                    "gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2
                )
                check(current())
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]


@pytest.mark.parametrize(("batch", "size"), [(16, 4), (3, 2), (7, 3), (5, 5), (4, 1)])
def test_every_position_is_in_one_share_and_shares_are_even(batch: int, size: int) -> None:
    shares = [World(rank, size).share(batch) for rank in range(size)]
    assert [i for share in shares for i in share] == list(range(batch))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1 and min(map(len, shares)) >= 1


def test_alone_nothing_is_exchanged_or_changed() -> None:
    world = current()
    assert (world, world.is_main, dist.is_initialized()) == (World(), True, False)
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([1.0, 2.0])
    world.add_gradients([weight])
    assert weight.grad.tolist() == [1, 2] and world.add({"a": 0.1}) == {"a": 0.1}
    assert world.any_rank(True) and not world.any_rank(False)
    with pytest.raises(OSError, match="disk"), world.collective():
        raise OSError("disk")


def test_sums_are_over_both(tmp_path: Path) -> None:
    def check(world: World) -> None:
        weights = [
            torch.nn.Parameter(torch.zeros(2)),
            torch.nn.Parameter(torch.zeros(1, 2)),
            torch.nn.Parameter(torch.zeros(3)),
        ]
        for weight in weights[:2]:
            weight.grad = torch.full_like(weight, 1.0 + world.rank)
        world.add_gradients(weights)
        assert weights[0].grad is not None and weights[0].grad.tolist() == [3, 3]
        assert (
            weights[1].grad is not None
            and weights[1].grad.tolist() == [[3, 3]]
            and weights[2].grad is None
        )
        assert world.add({"a": 0.5, "b": float(world.rank)}) == {"a": 1, "b": 1}
        assert world.any_rank(world.rank == 1) and not world.any_rank(False)
        assert world.is_main == (world.rank == 0)

    in_two(tmp_path, check)


@pytest.mark.parametrize("error", [ValueError("shard 7: damaged"), NotFinite("z has NaN")])
def test_what_fails_in_one_fails_in_both(tmp_path: Path, error: ValueError) -> None:
    def check(world: World) -> None:
        with world.collective():
            pass
        with pytest.raises(type(error), match=str(error)), world.collective():
            if world.rank == 1:
                raise error

    in_two(tmp_path, check)


def loop(folder: Path, hooks: Hooks) -> Loop:
    state: Any = {"policy": Tensors({"w": torch.zeros(1)})}
    return Loop(folder, 9, state, "", 2, hooks)


def test_nan_in_one_stops_both_with_the_last_good_checkpoint(tmp_path: Path) -> None:
    def check(world: World) -> None:
        def step(number: int) -> dict[str, float]:
            with world.collective():
                if (world.rank, number) == (1, 3):
                    raise NotFinite("z has NaN")
            return {"loss": 1.0}

        with pytest.raises(
            Diverged, match=r"step 3: z has NaN; the last good checkpoint is .*checkpoint.pt"
        ):
            loop(tmp_path, Hooks()).run(step)

    in_two(tmp_path, check)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2


def test_asked_in_one_both_stop_after_the_same_step(tmp_path: Path) -> None:
    def check(world: World) -> None:
        done: list[int] = []
        hooks = Hooks(should_stop=lambda: world.rank == 1 and len(done) == 3)
        with pytest.raises(Stopped) as stopped:
            loop(tmp_path, hooks).run(lambda step: done.append(step) or {"loss": 1.0})
        assert stopped.value.step == 3 and loop(tmp_path, Hooks()).resume() == 3

    in_two(tmp_path, check)


def test_a_checkpoint_that_cannot_be_written_fails_in_both(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    def check(world: World) -> None:
        with pytest.raises((OSError, ValueError), match="file"):
            loop(tmp_path / "file", Hooks()).save(1)

    in_two(tmp_path, check)


def test_the_first_rank_computes_for_all(tmp_path: Path) -> None:
    def check(world: World) -> None:
        called: list[int] = []

        def compute() -> dict[str, int]:
            called.append(world.rank)
            return {"rank": world.rank}

        assert world.from_main(compute) == {"rank": 0}
        assert called == ([0] if world.is_main else [])

        def fail() -> None:
            raise OSError(f"disk of rank {world.rank}")

        with pytest.raises((OSError, ValueError), match="disk of rank 0"):
            world.from_main(fail)

    in_two(tmp_path, check)
    assert current().from_main(lambda: 3) == 3
