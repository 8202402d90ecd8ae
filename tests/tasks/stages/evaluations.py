"""Models and settings of an evaluation of tiny pairs."""

from collections.abc import Callable
from typing import Any

import pytest

from gdpo.config import Config
from gdpo.data.shards import Pair
from tasks.stages import evaluate

EVIL = "../../<script>'\"-00"
STRENGTH = {"naosd": 0.06, "gdpo": 0.02, "control": 0.06, "other": 0.1}
PAIR_NAMES = ("a", "b", "c")


def changed(config: Config, **values: Any) -> Config:
    """The configuration with keys of `evaluate` replaced, checked."""
    plain = config.model_dump()
    plain["evaluate"].update(values)
    return Config.model_validate(plain)


def with_reward(config: Config, weighting: str) -> Config:
    """The configuration with a reward of two metrics that need no file."""
    plain = config.model_dump()
    plain["rollout"]["metrics"] = ["psnr_y", "ssim_y"]
    plain["reward"] = {"fidelity": ["psnr_y"], "perception": ["ssim_y"], "weighting": weighting}
    return Config.model_validate(plain)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The images that are evaluated from now on."""
    seen: list[str] = []
    original: Callable[..., Any] = evaluate.evaluate_image

    def spy(pair: Pair, *rest: Any, **named: Any) -> Any:
        seen.append(pair.id)
        return original(pair, *rest, **named)

    monkeypatch.setattr(evaluate, "evaluate_image", spy)
    return seen
