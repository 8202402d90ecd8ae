"""Preference fine-tuning of the policy's LoRA (UNet only) on groups of candidates (paper Sec. 3.2).

    for every batch of groups:
        m = errors of the policy
        r = errors of the reference, stored with the rollouts
        A = advantages of the configured reward
        L = mean of the objective (gdpo: -log sigmoid(-omega/2 sum_i A_i (m_i - r_i)))
        one AdamW step on L

With cached rollouts a step consists of the policy's forward and backward passes only. A group is
one forward pass, as in the rollout stage, so m and r come from the same kernels: of G latents, or
with `rollout.input: lr` of the one that all candidates share. A step accumulates the gradients of
its groups (passes.py). In a run of several processes (gdpo.train.world), each group belongs to
one process.

    rollouts: online    A group is sampled when a step needs it. In the first epoch it equals the
                        one that the rollout stage stores; later epochs sample new ones.
    sampler: policy     The policy samples the group, so the objective's "old policy" is the current
                        policy.
    omega: null         The strength is set by a rule before the first step (strength.py).

The control run shuffles the advantages inside each group, so its gains are not due to preference.
A step synchronises with the device twice: for the gradient norm and for the values to log.

    python -m tasks finetune [--run control]
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from gdpo.config import Config
from gdpo.data.shards import Pair
from gdpo.hooks import Hooks
from gdpo.model.checkpoints import Adapters
from gdpo.model.naosd import NAOSD
from gdpo.preference.group import Group, Skipped, reward_of
from gdpo.preference.objectives import objective_loss
from gdpo.preference.order import group_at, noise_index, training_seed
from gdpo.preference.passes import Passes
from gdpo.preference.rollout import rollout
from gdpo.preference.step_values import (
    check_error,
    check_reference,
    check_values,
    logit_and_distance,
    named,
)
from gdpo.preference.strength import probe, strength_of, warn_of_excess
from gdpo.preference.validation import PolicyValidation
from gdpo.seeds import numpy_generator
from gdpo.train.loop import Loop, Stateful, Tensors, cosine, grad_norm
from gdpo.train.world import current

History = list[dict[str, float]]
LEARNT = (
    "loss",
    "implicit_accuracy",
    "weighted_error_difference",
    "weighted_square",
    "error_change",
    "policy_error",
    "distance",
)


def finetune(
    model: NAOSD,
    groups: Sequence[Group],
    config: Config,
    *,
    control: bool,
    folder: Path,
    fingerprint: str,
    hooks: Hooks,
    pairs: Sequence[Pair] = (),
    validation: Sequence[Pair] = (),
) -> tuple[Adapters, History]:
    """Train the policy's adapters; return them and the logged values of every step.

    model: the reference (NAOSD merged), without roles. groups: the cached rollouts, each read when
    a step needs it and finite, as `Rollouts` checks on reading. pairs: with
    `rollouts: online`, the pairs from which groups are sampled instead. control: use shuffled
    advantages. folder: holds the checkpoint. validation: pairs of `finetune.validation`
    (validation.py).
    Errors: `Stopped` after a checkpoint when asked to stop. `Diverged` when a value is not finite
    or the policy's error explodes. ValueError if there are no groups or pairs, if no pair yields a
    group, naming a group with values that are not finite, or if the stored errors belong to another
    reference.
    """
    settings = config.finetune
    online = settings.rollouts == "online"
    if not (pairs if online else groups):
        raise ValueError("there are no rollouts to train on; run the select and rollout stages")
    run = _Run(model, pairs if online else groups, config, control)
    state: dict[str, Stateful] = {"policy": Tensors(run.policy), "adam": run.optimizer}
    loop = Loop(
        folder,
        settings.steps,
        state,
        fingerprint,
        settings.checkpoint_every,
        hooks,
        verify=run.verify,
    )
    step = PolicyValidation(model, validation, config).beside(run.step) if validation else run.step
    history = loop.run(step)
    if not control:
        first = history[: -(-len(run.source) // settings.batch)]
        warn_of_excess([entry["loss"] for entry in first], settings, named(run.strength, config))
    tensors = {
        f"unet.{name}": parameter.detach().cpu().clone() for name, parameter in run.policy.items()
    }
    return Adapters("gdpo", tensors, settings.lora), history


class _Run:
    """One fine-tuning run: the policy, its optimiser, and the step function."""

    def __init__(
        self, model: NAOSD, source: Sequence[Group] | Sequence[Pair], config: Config, control: bool
    ) -> None:
        self.model, self.source, self.config, self.control = model, source, config, control
        settings = config.finetune
        self.seed = training_seed(config.seed, settings.repeat)
        model.vae.requires_grad_(False)
        model.unet_roles.add("policy", settings.lora, seed=self.seed)
        self.policy = model.unet_roles.parameters("policy")
        for parameter in self.policy.values():
            # Every process needs gradients to add up, even one whose groups are all skipped.
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer = torch.optim.AdamW(
            self.policy.values(),
            lr=settings.optimizer.lr,
            weight_decay=settings.optimizer.weight_decay,
        )
        self.device = next(model.parameters()).device
        self.world = current()
        self.passes = Passes(model, config)
        self._seen: tuple[Group, int] | None = None  # the last group and its noise index
        self._idle = 0  # consecutive positions without a usable group
        self.strength = strength_of(
            settings,
            config.rollout.group,
            config.rollout.sigma,
            lambda: probe(
                self._scored,
                self.passes,
                list(self.policy.values()),
                settings.optimizer.lr,
                self.world,
            ),
        )

    def step(self, step: int) -> dict[str, float]:
        """One optimiser step over `finetune.batch` groups; return the values to log."""
        settings = self.config.finetune
        if settings.optimizer.schedule == "cosine":
            for group in self.optimizer.param_groups:
                group["lr"] = settings.optimizer.lr * cosine(step, settings.steps)
        self.optimizer.zero_grad(set_to_none=False)
        with self.world.collective():
            rows = [
                self._position(step * settings.batch + i) for i in self.world.share(settings.batch)
            ]
        self.world.add_gradients(self.policy.values())
        norm = grad_norm(list(self.policy.values()), settings.optimizer.clip)
        totals = self.world.add(
            dict(zip(self._names(), torch.stack(rows).sum(0).tolist(), strict=True))
        )
        skipped = totals.pop("skipped")
        trained = settings.batch - skipped
        values = {name: total / max(trained, 1) for name, total in totals.items()}
        values |= {"skipped": skipped, "grad_norm": norm}
        square, distance = values.pop("weighted_square"), values.pop("distance")
        values |= logit_and_distance(square, distance, values, self.strength, self.config)
        check_values(values, self.strength, self.config)
        if step == 0:
            check_reference(values)
        self._idle = 0 if trained else self._idle + settings.batch
        if self._idle >= min(len(self.source), settings.steps * settings.batch):
            raise ValueError(
                "every pair was left out, for the reasons logged above; check models/naosd, "
                "rollout.metrics and rollout.precision"
            )
        # Without a gradient AdamW would still decay the weights and move by its momentum.
        if trained:
            self.optimizer.step()
        return values

    @torch.no_grad()
    def verify(self) -> None:
        """Raise NotFinite if the last update made the policy's error explode.

        The error is that on the last group of each process, summed over the processes.
        """
        errors = {"policy": 0.0, "reference": 0.0}
        if self._seen is not None:
            group, noise = self._seen
            errors["policy"] = float(self.passes.errors(group, noise)[0].mean())
            errors["reference"] = sum(group.reference_error[noise]) / len(group.seeds)
        totals = self.world.add(errors)
        check_error(totals["policy"], totals["reference"], self.strength, self.config)

    def _names(self) -> list[str]:
        """Names of a row's values: first those computed on the device, then those of the group."""
        metrics = [
            f"{name}{what}"
            for name in ("reward", *self.config.rollout.metrics)
            for what in ("", "_std")
        ]
        return [*LEARNT, *metrics, "frac_reward_zero_std", "skipped"]

    def _position(self, position: int) -> torch.Tensor:
        """Add one group's gradient to the parameters; return its values in the order of `_names`.

        The values stay on the device, so that the CPU does not wait for them here.
        """
        if (scored := self._scored(position)) is None:
            return torch.tensor([0.0] * (len(self._names()) - 1) + [1.0], dtype=torch.float64).to(
                self.device
            )
        group, noise, reward, advantage = scored
        if self.control:
            # By group and not by step: the control learns one wrong preference per group, as
            # consistent as the right one, instead of noise that averages out.
            order = numpy_generator(self.seed, "shuffle", group.id).permutation(len(advantage))
            advantage = [advantage[i] for i in order]
        learnt = self._learn(group, advantage, noise)
        scores = torch.tensor(
            [reward, *(group.metrics[name] for name in self.config.rollout.metrics)],
            dtype=torch.float64,
        )
        spread = torch.stack([scores.mean(1), scores.std(1)], 1).flatten().tolist()
        of_group = torch.tensor([*spread, float(not any(advantage)), 0.0], dtype=torch.float64)
        return torch.cat([learnt, of_group.to(self.device, non_blocking=True)])

    def _scored(self, position: int) -> tuple[Group, int, list[float], list[float]] | None:
        """(group, noise index, rewards, advantages) at a position; None if it is left out."""
        index, epoch = group_at(self.seed, position, len(self.source))
        group, noise = self._group(index, epoch)
        if isinstance(group, Skipped):
            logging.getLogger(__name__).warning(
                "%s is left out of this step: %s", group.id, group.reason
            )
            return None
        try:
            reward, advantage = reward_of(group.metrics, group.detail_share, self.config.reward)
        except ValueError as error:
            raise ValueError(f"group {group.id}: {error}") from error
        return group, noise, reward, advantage

    def _group(self, index: int, epoch: int) -> tuple[Group | Skipped, int]:
        """(group, index into its noise seeds): the stored group, or one sampled now.

        A group sampled now has the seeds and errors of this epoch's noise only, so its index is 0.
        """
        source = self.source[index]
        noise = noise_index(epoch, self.config.finetune.repeat, self.config.rollout.noises)
        if isinstance(source, Group):
            return source, noise
        role = "policy" if self.config.finetune.sampler == "policy" else None
        sampled = rollout(
            self.model, [source], self.config, epoch=epoch, role=role, noise_indices=[noise]
        )
        return next(sampled), 0

    def _learn(self, group: Group, advantage: list[float], noise_index: int) -> torch.Tensor:
        """Forward and backward pass of one group; return the values of `LEARNT`."""
        settings = self.config.finetune
        self._seen = group, noise_index
        known = torch.tensor([group.reference_error[noise_index], advantage], dtype=torch.float64)
        reference, advantages = known.to(self.device, non_blocking=True)[:, None]
        on_policy = settings.sampler == "policy"

        def loss_of(policy: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
            # With `sampler: policy` the policy sampled the candidates, so it is the old policy.
            old, distance = (
                (policy.detach(), torch.zeros_like(moved)) if on_policy else (reference, moved)
            )
            return objective_loss(
                settings,
                self.strength,
                policy,
                reference,
                old,
                distance,
                advantages,
                self.config.rollout.sigma,
            )

        loss, policy, moved = self.passes.backward(
            group,
            noise_index,
            loss_of,
            weight=1 / settings.batch,
            distance=settings.objective == "nft" and not on_policy,
        )
        change = policy - reference
        weighted = (advantages * change).sum()
        values = [loss, (weighted < 0).double(), weighted, weighted.square(), change.mean()]
        return torch.stack([*values, policy.mean(), moved.mean()])
