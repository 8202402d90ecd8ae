"""The callbacks of a long run: logging its progress, and asking whether to stop.

Stages without training use them too, so they are apart from the training loop.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Hooks:
    """The callbacks of a loop.

    log: gets step and values. should_stop: requests a stop. The other two keep a second copy of a
    training's checkpoint and get the fingerprint of the run's inputs, a number of steps and the
    path of the checkpoint. saved: the checkpoint of that step was written. fetch: replaces the
    checkpoint at the path by the copy if that has more steps, but no more than the number.
    """

    log: Callable[[int, dict[str, float]], None] = lambda step, values: None
    should_stop: Callable[[], bool] = lambda: False
    saved: Callable[[str, int, Path], None] = lambda fingerprint, step, path: None
    fetch: Callable[[str, int, Path], None] = lambda fingerprint, steps, path: None


class Stopped(Exception):
    """Raised after `should_stop` returned true and the loop wrote a checkpoint.

    step: the number of finished steps.
    """

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after a checkpoint at step {step}")
        self.step = step
