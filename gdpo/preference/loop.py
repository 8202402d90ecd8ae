"""Preference fine-tuning of the policy's LoRA (UNet only) on groups of candidates (paper Sec. 3.2).

    for every batch of groups:
        m = errors of the policy
        r = errors of the reference, stored with the rollouts
        A = advantages of the configured reward
        L = mean of the objective (gdpo: -log sigmoid(-omega/2 sum_i A_i (m_i - r_i)))
        one AdamW step on L

With cached rollouts a step consists of the policy's forward and backward passes only. A group is
one forward pass of G latents, as in the rollout stage, so m and r come from the same kernels. A
step accumulates the gradients of its groups. In a run of several processes (gdpo.train.world), each
group belongs to one process.

    rollouts: online    A group is sampled when it is visited. In the first epoch it equals the one
                        that the rollout stage stores; later epochs sample new ones.
    sampler: policy     The policy samples the group, so the objective's "old policy" is the current
                        policy.
    micro_batch         The derivatives of the objective with respect to the group's errors are
                        computed first. The backward passes then take a few candidates each; the
                        gradient is the same.

The control run shuffles the advantages inside each group, so its gains are not due to preference.
A step synchronises with the device twice: for the gradient norm and for the values to log.

    python -m tasks finetune [--run control]
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from gdpo.checks import NotFinite
from gdpo.config import Config
from gdpo.data.shards import Pair
from gdpo.model.checkpoints import Adapters
from gdpo.model.naosd import NAOSD
from gdpo.preference.errors import NoiseTarget, noise_target, predict, squared
from gdpo.preference.group import Group, Skipped, reward_of
from gdpo.preference.objectives import objective_loss
from gdpo.preference.rollout import rollout
from gdpo.seeds import numpy_generator, seed_of
from gdpo.train.loop import Hooks, Loop, Stateful, Tensors, cosine, grad_norm
from gdpo.train.world import current

History = list[dict[str, float]]
# Multiple of the reference's error at which training stops: no usable learning rate comes near it.
EXPLODED = 10.0
# Relative difference at step 0 above which the stored errors belong to another reference. The
# untrained policy equals the reference, and other kernels or another machine's bf16 differ by less.
FOREIGN = 0.01
LEARNT = ("loss", "implicit_accuracy", "weighted_error_difference", "error_change", "policy_error")
EMBEDDED = 256  # size of the cache of prompt embeddings


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
) -> tuple[Adapters, History]:
    """Train the policy's adapters; return them and the logged values of every step.

    model: the reference (NAOSD merged), without roles. groups: the cached rollouts, each read when
    a step needs it and finite, as `Rollouts` checks on reading. pairs: with
    `rollouts: online`, the pairs from which groups are sampled instead. control: use shuffled
    advantages. folder: holds the checkpoint.
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
    history = loop.run(run.step)
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
        self.seed = (
            seed_of(config.seed, "repeat", settings.repeat) if settings.repeat else config.seed
        )
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
        self._embedded: dict[str, torch.Tensor] = {}
        self._seen: tuple[Group, int] | None = None  # the last group and its noise index
        self._idle = 0  # consecutive positions without a usable group

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
        self._check(values)
        reference = values["policy_error"] - values["error_change"]
        # At step 0 the policy is the reference, so any difference lies in the stored errors.
        if step == 0 and abs(values["error_change"]) > FOREIGN * reference:
            raise ValueError(
                "the rollouts' reference errors are "
                f"{-values['error_change'] / values['policy_error']:+.1%} off those of this "
                "model: made with other weights, precision or software; run the rollout stage again"
            )
        self._idle = 0 if trained else self._idle + settings.batch
        if self._idle >= min(len(self.source), settings.steps * settings.batch):
            raise ValueError(
                "no pair gave a group: see what was left out; check models/naosd, rollout.metrics "
                "and rollout.precision"
            )
        if trained:
            self.optimizer.step()
        return values

    def _check(self, values: dict[str, float]) -> None:
        """Raise NotFinite before the optimiser step if a value is not finite or the error exploded.

        The loop then stops with its last checkpoint.
        """
        for name, value in values.items():
            if not abs(value) < float("inf"):
                raise NotFinite(f"{name} is not finite")
        _check_error(values["policy_error"], values["policy_error"] - values["error_change"])

    @torch.no_grad()
    def verify(self) -> None:
        """Raise NotFinite if the last update made the policy's error explode.

        The error is that on the last group of each process, summed over the processes.
        """
        errors = {"policy": 0.0, "reference": 0.0}
        if self._seen is not None:
            group, noise = self._seen
            batch = noise_target(self.model, self._on_device(group), self.config.rollout, noise)
            with self.model.unet_roles.use("policy"):
                eps_hat = predict(
                    self.model, batch, self._prompt(group.prompt), self.config.rollout
                )
            errors["policy"] = float(squared(eps_hat - batch.target.double(), batch).mean())
            errors["reference"] = sum(group.reference_error[noise]) / len(group.seeds)
        totals = self.world.add(errors)
        _check_error(totals["policy"], totals["reference"])

    def _noise_index(self, position: int) -> tuple[int, int, int]:
        """(index of the group, epoch, noise index) at a position of the training order.

        The order is infinite, and shuffled anew in each epoch.
        """
        epoch, offset = divmod(position, len(self.source))
        order = numpy_generator(self.seed, "groups", epoch).permutation(len(self.source))
        return (
            int(order[offset]),
            epoch,
            (epoch + self.config.finetune.repeat) % self.config.rollout.noises,
        )

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
        index, epoch, noise_index = self._noise_index(position)
        group, noise = self._group(index, epoch, noise_index)
        if isinstance(group, Skipped):
            logging.getLogger(__name__).warning(
                "%s is left out of this step: %s", group.id, group.reason
            )
            return torch.tensor([0.0] * (len(self._names()) - 1) + [1.0], dtype=torch.float64).to(
                self.device
            )
        try:
            reward, advantage = reward_of(group.metrics, group.detail_share, self.config.reward)
        except ValueError as error:
            raise ValueError(f"group {group.id}: {error}") from error
        if self.control:
            order = numpy_generator(self.seed, "shuffle", group.id).permutation(len(advantage))
            advantage = [advantage[i] for i in order]
        learnt = self._learn(group, advantage, noise)
        scores = torch.tensor(
            [reward, *(group.metrics[name] for name in self.config.rollout.metrics)],
            dtype=torch.float64,
        )
        spread = torch.stack([scores.mean(1), scores.std(1)], 1).flatten().tolist()
        known = torch.tensor([*spread, float(not any(advantage)), 0.0], dtype=torch.float64)
        return torch.cat([learnt, known.to(self.device, non_blocking=True)])

    def _group(self, index: int, epoch: int, noise_index: int) -> tuple[Group | Skipped, int]:
        """(group, index into its noise seeds): the stored group, or one sampled now.

        A group sampled now has the seeds and errors of this noise_index only, so its index is 0.
        """
        found = self.source[index]
        if isinstance(found, Group):
            return found, noise_index
        role = "policy" if self.config.finetune.sampler == "policy" else None
        return next(
            rollout(
                self.model, [found], self.config, draw=epoch, role=role, noise_indices=[noise_index]
            )
        ), 0

    def _learn(self, group: Group, advantage: list[float], noise_index: int) -> torch.Tensor:
        """Forward and backward pass of one group; return the values of `LEARNT`."""
        settings = self.config.finetune
        self._seen = group, noise_index
        batch = noise_target(self.model, self._on_device(group), self.config.rollout, noise_index)
        prompt = self._prompt(group.prompt)
        known = torch.tensor([group.reference_error[noise_index], advantage], dtype=torch.float64)
        reference, advantages = known.to(self.device, non_blocking=True)[:, None]
        size = len(advantage)
        chunk = min(settings.micro_batch or size, size)
        # With micro-batches this pass only gives the errors; `_backward` repeats it with gradient.
        with torch.set_grad_enabled(chunk == size):
            parts = [
                self._errors(batch.part(slice(i, i + chunk)), prompt) for i in range(0, size, chunk)
            ]
        policy, distance = (torch.cat(column)[None] for column in zip(*parts, strict=True))
        if chunk < size:
            policy, distance = policy.requires_grad_(), distance.requires_grad_()
        # With `sampler: policy` the current policy sampled the candidates, so it is the old policy.
        old = policy.detach() if settings.sampler == "policy" else reference
        loss = objective_loss(
            settings, policy, reference, old, distance, advantages, self.config.rollout.sigma
        )
        if chunk == size:
            (loss / settings.batch).backward()
        else:
            self._backward(loss / settings.batch, policy, distance, batch, prompt, chunk)
        with torch.no_grad():
            change = policy - reference
            weighted = (advantages * change).sum()
            return torch.stack(
                [loss, (weighted < 0).double(), weighted, change.mean(), policy.mean()]
            )

    def _on_device(self, group: Group) -> Group:
        return Group(**{**vars(group), "latents": group.latents.to(self.device)})

    def _errors(
        self, batch: NoiseTarget, prompt: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(m, d), one value per candidate of the batch.

        m: the policy's errors. d: for `nft`, the mean squared difference of the policy's and the
        old policy's predictions; otherwise 0.
        """
        with self.model.unet_roles.use("policy"):
            eps_hat = predict(self.model, batch, prompt, self.config.rollout)
        error = squared(eps_hat - batch.target.double(), batch)
        if self.config.finetune.objective != "nft" or self.config.finetune.sampler == "policy":
            return error, torch.zeros_like(error)
        # For cached rollouts the old policy is the reference: no role.
        with self.model.unet_roles.use(None), torch.no_grad():
            old = predict(self.model, batch, prompt, self.config.rollout)
        return error, squared(eps_hat - old, batch)

    def _backward(
        self,
        loss: torch.Tensor,
        policy: torch.Tensor,
        distance: torch.Tensor,
        batch: NoiseTarget,
        prompt: torch.Tensor,
        chunk: int,
    ) -> None:
        """Backward pass of a group in micro-batches of `chunk` candidates.

        By the chain rule, dL/dm_i and dL/dd_i of the whole group are computed first. The errors are
        then recomputed for a few candidates at a time, and their gradients weighted by those.
        """
        found = torch.autograd.grad(loss, [policy, distance], allow_unused=True)
        slopes = [torch.zeros_like(policy[0]) if slope is None else slope[0] for slope in found]
        for i in range(0, len(slopes[0]), chunk):
            members = slice(i, i + chunk)
            both = zip(self._errors(batch.part(members), prompt), slopes, strict=True)
            torch.stack(
                [(errors * slope[members]).sum() for errors, slope in both]
            ).sum().backward()

    def _prompt(self, text: str) -> torch.Tensor:
        """The embedding of a prompt, cached: without tags all groups share one prompt."""
        if text not in self._embedded:
            if len(self._embedded) == EMBEDDED:
                self._embedded.clear()
            with torch.no_grad():
                self._embedded[text] = self.model.embed([text])
        return self._embedded[text]


def _check_error(policy: float, reference: float) -> None:
    """Raise NotFinite unless the policy's error is a number, at most `EXPLODED` times the
    reference's.
    """
    if not policy <= EXPLODED * reference:
        times = f"{policy / reference:.0f} times" if reference else "beyond"
        raise NotFinite(f"the policy's error exploded to {times} the reference's")
