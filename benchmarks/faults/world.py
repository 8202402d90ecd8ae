"""The small pipeline that the campaign breaks: every stage of dvc.yaml in seconds.

world = World(folder)      all stages run once, undisturbed
root = world.copy("x")     a place of its own for a trial
world.differences(root)    outputs that differ from those of the undisturbed run
"""

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from benchmarks.record import REPO
from gdpo.images import write_png
from tests import tiny
from tests.tasks import vlcot_root
from tests.tasks.forks import Forks

OUTPUTS = ("data", "models", "reports")
SCRATCH = re.compile(r"\.(.+)\.\d+\.[a-z0-9_]{8}$")  # of gdpo.files.written_aside
LOG = "stderr.txt"
PHOTOS = 3


@dataclass(frozen=True)
class Stage:
    """One entry of dvc.yaml: the arguments of `python -m tasks`, its inputs and outputs."""

    name: str
    arguments: tuple[str, ...]
    deps: tuple[str, ...]
    outs: tuple[str, ...]

    @property
    def work(self) -> str:
        """Where it keeps what is unfinished."""
        return "/".join(["work", self.arguments[0], *self.arguments[2:]])


def settings() -> dict[str, Any]:
    """The parameters: tests/tiny.py's of both systems, from photographs on."""
    sections = {
        "select": {"rule": "difficulty", "worst": 0.9, "min_detail": 0.0, "min_hash_distance": 0},
        "finetune": {"checkpoint_every": 1},
        "pretrain": {"checkpoint_every": 1},
        "rollout": {"batch": 3},
        "evaluate": {
            "noises": 2,
            "models": {m: f"models/{m}" for m in ("naosd", "gdpo", "control")},
        },
    }
    config: dict[str, Any] = tiny.settings(**sections).model_dump() | {
        name: value
        for name, value in vlcot_root.settings().model_dump().items()
        if name in vlcot_root.SECTIONS
    }
    config["degrade"] |= {
        "train": [{"path": "photos/train"}],
        "evaluation": [{"path": "photos/held"}],
        "parts": ["00"],
        "crop": tiny.SIDE,
        "stride": tiny.SIDE,
        "evaluation_crop": tiny.SIDE,
        "shard_mb": 0.02,
    }
    return config


def stages(config: dict[str, Any]) -> list[Stage]:
    """The stages of dvc.yaml in its order, one for each value of a matrix."""

    def filled(text: str, item: dict[str, str]) -> str:
        for key, value in item.items():
            text = text.replace(f"${{item.{key}}}", value)
        return text.replace("${model.base}", "base")

    def values(text: Any) -> list[str]:
        if isinstance(text, list):
            return text
        section, key = text.strip("${}").split(".")
        return list(config[section][key])

    found = []
    for name, entry in (
        YAML(typ="safe", pure=True).load((REPO / "dvc.yaml").read_text())["stages"].items()
    ):
        matrix = {key: values(value) for key, value in entry.get("matrix", {}).items()}
        for chosen in product(*matrix.values()):
            item = dict(zip(matrix, chosen, strict=True))
            texts = [[filled(text, item) for text in entry[key]] for key in ("deps", "outs")]
            command = filled(entry["cmd"], item).split()[3:]
            found.append(Stage("@".join([name, *chosen]), tuple(command), *map(tuple, texts)))
    return found


class World:
    """The finished pipeline in `folder`/finished, and processes that run stages elsewhere."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder, self.finished = folder, folder / "finished"
        self.forks = Forks()
        self.stages = {stage.name: stage for stage in stages(settings())}
        self.cpu: dict[str, float] = {}  # seconds of processor time, undisturbed
        self._make(say)
        self.hashes = hashes(self.finished)

    def _make(self, say: Callable[[str], None]) -> None:
        root = self.finished
        root.mkdir(parents=True)
        tiny.write_base(self.folder / "base")
        (root / "base").symlink_to(self.folder / "base")
        for i in range(PHOTOS + 1):
            rng = np.random.default_rng(i)
            blocks = np.kron(rng.integers(0, 256, (8, 12, 3)), np.ones((8, 8, 1)))
            noise = rng.normal(0, 8, blocks.shape)
            place = f"train/p{i}" if i < PHOTOS else "held/c"
            write_png(root / f"photos/{place}.png", (blocks + noise).clip(0, 255).astype(np.uint8))
        (root / "params.yaml").write_text(json.dumps(settings()))
        for name, stage in self.stages.items():
            code = self.run(root, name)
            assert code == 0, (name, (root / LOG).read_text())
            say(f"undisturbed: {stage.name}, {self.cpu[name]:.2f} s of processor time")

    def run(self, root: Path, name: str, at: float | None = None, number: int = 0) -> int:
        """Run a stage in `root`; its exit code.

        at, number: send this signal when the process has used the share `at` of the processor time
        that the undisturbed run took.
        """
        stage, used = self.stages[name], 0.0
        (root / LOG).write_text("")
        process = self.forks.start(root, *stage.arguments)
        pending = at is not None
        while (now := processor_seconds(process)) is not None:
            used = now
            if pending and at is not None and used >= at * self.cpu[name]:
                os.kill(process, number)
                pending = False
            time.sleep(0.005)
        code = self.forks.wait()
        if at is None and name not in self.cpu:
            self.cpu[name] = used
        return code

    def run_twice(self, root: Path, name: str) -> tuple[int, int]:
        """Two processes of one stage in one root, at once."""
        (root / LOG).write_text("")
        for server in (self.forks, self.second):
            server.start(root, *self.stages[name].arguments)
        return self.forks.wait(), self.second.wait()

    @cached_property
    def second(self) -> Forks:
        """Starts the second of two processes at once."""
        return Forks()

    def copy(self, name: str, without: str, place: Path | None = None) -> Path:
        """A copy of the finished root in which the stage `without` has not been run."""
        root = place or self.folder / "trials" / name
        shutil.copytree(self.finished, root, symlinks=True, dirs_exist_ok=True)
        stage = self.stages[without]
        for out in (*stage.outs, stage.work):
            path = root / out
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return root

    def differences(self, root: Path) -> list[str]:
        """Outputs that are missing, too many or of other bytes; scratch files; processes."""
        found = hashes(root)
        wrong = sorted(
            name
            for name in found.keys() | self.hashes.keys()
            if found.get(name) != self.hashes.get(name)
        )
        left = [
            str(path.relative_to(root)) for path in root.rglob(".*") if SCRATCH.fullmatch(path.name)
        ]
        return [
            *wrong,
            *(f"left: {name}" for name in left),
            *(f"runs: {line}" for line in running(root)),
        ]

    def close(self) -> None:
        """End the processes."""
        self.forks.close()
        if "second" in self.__dict__:
            self.second.close()


def hashes(root: Path) -> dict[str, str]:
    """SHA-256 of every output file by its path."""
    return {
        str(path.relative_to(root)): sha256(path.read_bytes()).hexdigest()
        for folder in OUTPUTS
        for path in sorted((root / folder).rglob("*"))
        if path.is_file() and not any(SCRATCH.fullmatch(part) for part in path.parts)
    }


def processor_seconds(process: int) -> float | None:
    """Processor time that a process has used; None when it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    if fields[0] == "Z":
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def running(root: Path) -> list[str]:
    """Command lines of processes that work in `root`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_text().replace("\0", " ").strip()
            if line and (entry / "cwd").resolve() == root.resolve():
                found.append(line)
        except OSError:
            continue
    return found


def said(root: Path) -> str:
    """What the last command in `root` wrote to stderr."""
    path = root / LOG
    return path.read_text() if path.is_file() else ""


TERM, KILL = signal.SIGTERM, signal.SIGKILL
