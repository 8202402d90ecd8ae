"""Faults while a stage runs, or in what it reads and keeps. Each: (world, stage, rng) -> Outcome.

A fault strikes in a copy of the finished root in which the stage has not been run. What the stage
says then, the next run of the same command shows whether anything was lost: all outputs must have
the bytes of the undisturbed run.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.faults.world import KILL, LOG, TERM, World, said

Random = np.random.Generator
# Stages that keep work for the next run.
KEEPERS = (
    "pretrain",
    "select",
    "rollout",
    "finetune",
    "evaluate",
    "vlcot-tokenizer",
    "vlcot-coldstart",
    "vlcot-grpo",
    "vlcot-evaluate",
)
READERS = (
    "pretrain",
    "select",
    "rollout",
    "finetune",
    "evaluate",
    *(f"vlcot-{n}" for n in ("tokenizer", "data", "coldstart", "grpo", "evaluate")),
)
DATA = (".parquet", ".safetensors")


@dataclass
class Outcome:
    """What a trial showed. problems: none if the fault did no lasting harm."""

    code: int | str = ""
    message: str = ""
    problems: list[str] = field(default_factory=list)


def killed(world: World, stage: str, rng: Random) -> Outcome:
    """SIGKILL at a random point."""
    return _signalled(world, stage, rng, KILL, (-KILL, 0))


def terminated(world: World, stage: str, rng: Random) -> Outcome:
    """SIGTERM at a random point."""
    return _signalled(world, stage, rng, TERM, (143, 0, -TERM))


def _signalled(
    world: World, stage: str, rng: Random, number: int, allowed: tuple[int, ...]
) -> Outcome:
    root = world.copy("signal", stage)
    outcome = _ran(root, world.run(root, stage, float(rng.uniform(0.05, 0.95)), number), allowed)
    return _resumed(world, root, stage, outcome)


def disk_full(world: World, stage: str, rng: Random) -> Outcome:
    """The disk has room for a part of what the stage writes."""
    with _small_disk(world) as root:
        world.copy("disk", stage, root)
        log = world.folder / "disk.log"  # a full disk is no excuse for an empty one
        (root / LOG).unlink()
        log.touch()
        (root / LOG).symlink_to(log)
        own = [
            world.finished / path for path in (*world.stages[stage].outs, world.stages[stage].work)
        ]
        written = sum(
            f.stat().st_size for path in own for f in [path, *path.rglob("*")] if f.is_file()
        )
        free = os.statvfs(root).f_bavail * os.statvfs(root).f_frsize
        with (root / "filler").open("wb") as file:
            os.posix_fallocate(
                file.fileno(), 0, free - int(rng.uniform(0.02, 0.6) * written) // 4096 * 4096
            )
        outcome = _ran(root, world.run(root, stage), (1, 0))
        if outcome.code == 1 and "No space left" not in outcome.message:
            outcome.problems.append("the message does not name the cause")
        (root / "filler").unlink()
        return _resumed(world, root, stage, outcome)


@contextmanager
def _small_disk(world: World) -> Iterator[Path]:
    place = world.folder / "trials/disk"
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def kept_flipped(world: World, stage: str, rng: Random) -> Outcome:
    """A bit flipped in what a stopped run has kept (a checkpoint, a chunk, an image)."""
    return _kept(world, stage, rng, flip)


def kept_cut(world: World, stage: str, rng: Random) -> Outcome:
    """A file cut off of what a stopped run has kept."""
    return _kept(world, stage, rng, cut)


def _kept(world: World, stage: str, rng: Random, damage: Callable[[Path, Random], None]) -> Outcome:
    root = world.copy("kept", stage)
    world.run(root, stage, float(rng.uniform(0.5, 0.9)), TERM)
    work = root / world.stages[stage].work
    names = ("inputs.json", "metrics.jsonl")
    files = sorted(
        f for f in work.rglob("*") if f.is_file() and f.name not in names and f.stat().st_size
    )
    if not files:
        return Outcome("nothing kept")
    victim = files[int(rng.integers(len(files)))]
    damage(victim, rng)
    outcome = _ran(root, world.run(root, stage), (0, 1))
    if outcome.code == 1:
        if victim.name not in outcome.message:
            outcome.problems.append(f"the message does not name {victim.name}")
        victim.unlink(missing_ok=True)
    return _resumed(world, root, stage, outcome)


def input_flipped(world: World, stage: str, rng: Random) -> Outcome:
    """A bit flipped in a shard, rollout, token file or model that the stage reads."""
    return _input(world, stage, rng, flip)


def input_cut(world: World, stage: str, rng: Random) -> Outcome:
    """Such a file cut off."""
    return _input(world, stage, rng, cut)


def _input(
    world: World, stage: str, rng: Random, damage: Callable[[Path, Random], None]
) -> Outcome:
    root = world.copy("input", stage)
    deps = [root / dep for dep in world.stages[stage].deps if dep.startswith(("data/", "models/"))]
    files = sorted(f for dep in deps for f in [dep, *dep.rglob("*")] if f.suffix in DATA)
    victim = files[int(rng.integers(len(files)))]
    whole = victim.read_bytes()
    damage(victim, rng)
    outcome = _ran(root, world.run(root, stage), (0, 1))
    name = str(victim.relative_to(root))
    if outcome.code == 1 and victim.name not in outcome.message:
        outcome.problems.append(f"the message does not name {name}")
    victim.write_bytes(whole)
    if outcome.code == 0:
        # Then what was damaged must not have been read: resuming would not run the stage again.
        outcome.problems += [f"{name} damaged, {wrong}" for wrong in world.differences(root)]
        return outcome
    return _resumed(world, root, stage, outcome)


def read_only(world: World, stage: str, rng: Random) -> Outcome:
    """Everything that the stage reads lies on a file system that cannot be written to."""
    root = world.copy("readonly", stage)
    bound = []
    try:
        for dep in world.stages[stage].deps:
            if dep.startswith(("data/", "models/")) and (root / dep).is_dir():
                place = str(root / dep)
                subprocess.run(["mount", "--bind", place, place], check=True)
                bound.append(place)
                subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
        outcome = _ran(root, world.run(root, stage), (0,))
        outcome.problems += world.differences(root)
    finally:
        for place in bound:
            subprocess.run(["umount", place], check=True)
    return outcome


def clock_jumped(world: World, stage: str, rng: Random) -> Outcome:
    """A stopped run's clock was wrong: its files are from the future or from 1980."""
    root = world.copy("clock", stage)
    world.run(root, stage, float(rng.uniform(0.3, 0.8)), TERM)
    when = float(rng.choice([320e6, 4e9]))
    for path in root.rglob("*"):
        os.utime(path, (when, when), follow_symlinks=False)
    return _resumed(world, root, stage, Outcome())


def two_at_once(world: World, stage: str, rng: Random) -> Outcome:
    """Two workers run the stage in one root."""
    root = world.copy("two", stage)
    codes = world.run_twice(root, stage)
    outcome = _ran(root, max(codes, key=abs), (0, 1))
    outcome.code = f"{codes[0]}, {codes[1]}"
    return _resumed(world, root, stage, outcome)


def flip(path: Path, rng: Random) -> None:
    """One bit."""
    data = bytearray(path.read_bytes())
    data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    path.chmod(0o644)
    path.write_bytes(data)


def cut(path: Path, rng: Random) -> None:
    """A part at the end."""
    data = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(data[: int(rng.integers(len(data)))])


def _ran(root: Path, code: int, allowed: tuple[int, ...]) -> Outcome:
    """The outcome of a run, which must have ended as it should, without a traceback."""
    text = said(root)
    lines = [line for line in text.splitlines() if line.startswith("gdpo-sr: ")]
    outcome = Outcome(code, lines[-1] if lines else "")
    if code not in allowed:
        outcome.problems.append(f"exit {code}: {text[-300:]}")
    if "Traceback" in text:
        outcome.problems.append(f"a traceback: {text[-300:]}")
    return outcome


def _resumed(world: World, root: Path, stage: str, outcome: Outcome) -> Outcome:
    """Run the stage again, undisturbed, unless its outputs are all there; compare."""
    outs = [root / out for out in world.stages[stage].outs]
    if not all(out.exists() for out in outs) or outcome.code != 0:
        code = world.run(root, stage)
        if code != 0:
            outcome.problems.append(f"resumed: exit {code}: {said(root)[-300:]}")
    outcome.problems += world.differences(root)
    return outcome


def everywhere(world: World) -> list[tuple[str, str]]:
    """Every trial of these faults, as (name of the fault, stage)."""
    names = list(world.stages)
    of = {
        prefix: [n for n in names if n.partition("@")[0] in prefix] for prefix in (KEEPERS, READERS)
    }
    found = [(fault, name) for fault in ("killed", "terminated", "disk_full") for name in names]
    found += [(fault, name) for fault in ("kept_flipped", "kept_cut") for name in of[KEEPERS]]
    found += [(fault, name) for fault in ("input_flipped", "input_cut") for name in of[READERS]]
    found += [("clock_jumped", name) for name in of[KEEPERS]]
    found += [("read_only", name) for name in of[READERS]]
    return found + [("two_at_once", name) for name in of[KEEPERS]]


def clear(world: World) -> None:
    """Remove the roots of finished trials."""
    shutil.rmtree(world.folder / "trials", ignore_errors=True)
