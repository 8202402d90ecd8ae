"""RealSR-R1's stages on tiny inputs: settings, pairs, and a root after all of them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gdpo.config import Config, Degradation
from gdpo.data.degrade import draw
from gdpo.data.shards import Pair, write_shards
from gdpo.hooks import Hooks
from gdpo.seeds import numpy_generator
from tasks.stages import (
    vlcot_coldstart,
    vlcot_data,
    vlcot_evaluate,
    vlcot_grpo,
    vlcot_report,
    vlcot_tokenizer,
)
from tests import tiny

Run = Callable[[Config, Path, Hooks], None]
STAGES: dict[str, Run] = {
    "tokenizer": vlcot_tokenizer.run,
    "data": vlcot_data.run,
    "coldstart": vlcot_coldstart.run,
    "grpo": vlcot_grpo.run,
    "evaluate": vlcot_evaluate.run,
    "report": vlcot_report.run,
}
# What a stage writes, and where its unfinished work lies.
MADE = {
    "tokenizer": ("models/vlcot/tokenizer", "work/vlcot-tokenizer"),
    "data": ("data/vlcot/00", "work/vlcot-data/00"),
    "coldstart": ("models/vlcot/coldstart", "work/vlcot-coldstart"),
    "grpo": ("models/vlcot/vlcot", "work/vlcot-grpo/vlcot"),
    "evaluate": ("reports/vlcot/evaluate/sample", "work/vlcot-evaluate/sample"),
}
SECTIONS: dict[str, dict[str, Any]] = {
    "vlcot": {
        "stages": [8, 16, 32],
        "prompt_side": 16,
        "evidence": True,
        "ranges": "released",
        "width": 32,
        "layers": 2,
        "heads": 2,
        "positions": 400,
        "tokenizer": {"codes": 16, "images": 4, "steps": 3, "batch": 2, "checkpoint_every": 1},
        "decoding": {"temperature": 0.7, "guidance": 1.0},
    },
    "coldstart": {"steps": 3, "batch": 2, "lr": 1e-3, "checkpoint_every": 1},
    "grpo": {
        "steps": 3,
        "batch": 1,
        "group": 2,
        "limit": 370,
        "grammar": "strict",  # so that every chain has an image and the rewards differ
        "metrics": ["psnr_y"],
        "lr": 1e-3,
        "checkpoint_every": 1,
    },
}


def settings(**sections: dict[str, object]) -> Config:
    merged = {name: {**value, **sections.get(name, {})} for name, value in SECTIONS.items()}
    config = tiny.settings()
    return Config.model_validate({**config.model_dump(exclude=set(merged)), **merged})


def pairs(count: int, tags: str | None = None) -> list[Pair]:
    return [
        replace(
            tiny.pair(i), degradation=draw(Degradation(), numpy_generator("vlcot", i)), tags=tags
        )
        for i in range(count)
    ]


def make(root: Path, base: Path) -> Path:
    """Run all stages below `root`."""
    root.mkdir()
    (root / "base").symlink_to(base)
    write_shards(root / "data/shards/train/00", pairs(5), 1.0)
    write_shards(root / "data/shards/evaluation", pairs(2), 1.0)
    for name, run in STAGES.items():
        if name == "evaluate":
            vlcot_grpo.run(settings(), root, Hooks(), "control")
        run(settings(), root, Hooks())
    return root
