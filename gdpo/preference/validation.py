"""Validation of the policy during fine-tuning, on photographs of neither training nor evaluation.

    every N steps    K super-resolutions of each validation pair, by the policy that enters the step
    validation_M     their mean metric M
    validation_reward    their mean reward as `evaluate` defines it (gdpo.evaluate.benchmark):
                         0 for NAOSD, in its standard deviations over noises

The batches of a training come from the frozen reference, so their rewards show no progress; these
do. Noises have keys of their own and no gradient is taken, so the training's bytes are the same
with and without validation.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from gdpo.config import Config
from gdpo.data.shards import Pair
from gdpo.evaluate.benchmark import REWARD, VALIDATION, Upscaler, evaluate_image, rewards, stack
from gdpo.evaluate.statistics import Scores
from gdpo.model.naosd import NAOSD
from gdpo.model.sampling import super_resolve
from gdpo.seeds import Key
from gdpo.train.world import current

REFERENCE, POLICY = "reference", "policy"


class PolicyValidation:
    """The validation of one fine-tuning run; `model` has the role "policy".

    The reference is scored at once. Errors: ValueError naming a photograph and a metric that is not
    finite for it.
    """

    def __init__(self, model: NAOSD, pairs: Sequence[Pair], config: Config) -> None:
        self.model, self.pairs, self.config = model, pairs, config
        self.settings = config.finetune.validation
        self.world = current()
        # One process works and the others wait: the adapters are the same in all of them.
        self._reference = self.world.from_main(lambda: self._scores(REFERENCE, None))

    def beside(
        self, step_fn: Callable[[int], dict[str, float]]
    ) -> Callable[[int], dict[str, float]]:
        """`step_fn` with the values of the policy that each `finetune.validation.every`th step left
        behind, and at step 0 those of the reference, where the policy starts.
        """

        def step(number: int) -> dict[str, float]:
            logged = step_fn(number)
            if (number + 1) % self.settings.every == 0:
                return {**logged, **self.world.from_main(lambda: self._values("policy"))}
            return logged | (self._values(None) if number == 0 else {})

        return step

    def _values(self, role: str | None) -> dict[str, float]:
        """Mean reward and metrics of a role, by their logged names."""
        own = self._reference[REFERENCE] if role is None else self._scores(POLICY, role)[POLICY]
        scores = {**self._reference, POLICY: own}
        shares = np.array([pair.detail_share for pair in self.pairs])
        reward = rewards(scores, shares, self.config.reward, REFERENCE)[POLICY]
        shown = {REWARD: reward, **scores[POLICY]}
        return {f"{VALIDATION}{name}": float(values.mean()) for name, values in shown.items()}

    def _scores(self, name: str, role: str | None) -> Scores:
        upscalers = {name: self._upscaler(role)}
        results = [
            evaluate_image(
                pair,
                upscalers,
                self.config.rollout.metrics,
                seed=self.config.seed,
                noises=self.settings.noises,
                batch=self.config.rollout.batch,
            ).scores
            for pair in self.pairs
        ]
        return {name: stack(results)[name]}

    def _upscaler(self, role: str | None) -> Upscaler:
        rollout = self.config.rollout

        def upscale(lr: torch.Tensor, keys: list[Key]) -> torch.Tensor:
            with self.model.unet_roles.use(role):
                return super_resolve(
                    self.model,
                    lr,
                    keys,
                    color_fix=rollout.color_fix,
                    precision=rollout.precision,
                )

        return upscale
