"""GDPO fine-tuning from cached rollouts: the policy's forward and backward, nothing else (paper Sec. 3.2).

    for every batch of groups:
        m = noise errors of the policy;  r = the reference's, stored with the rollouts;  A = stored advantages
        L = mean -log sigmoid(-omega/2 sum_i A_i (m_i - r_i));  AdamW on the policy's LoRA (UNet only)

A group is one forward pass of G latents, as in the rollout stage, so m and r come from the same kernels; groups are
accumulated within a step, and shared out whole over the processes of a run (gdpo.world). The control run shuffles the
advantages inside each group: whatever it gains is not preference.

    python -m tasks finetune [--run control]
"""

from pathlib import Path

import torch

from gdpo.config import Config
from gdpo.model.checkpoints import Adapters
from gdpo.model.naosd import NAOSD
from gdpo.preference.errors import noise_errors
from gdpo.preference.objectives import gdpo_logit, gdpo_loss
from gdpo.preference.rollout import Group
from gdpo.training import Hooks, Loop, Stateful, Tensors, cosine, grad_norm, numpy_generator
from gdpo.world import current

History = list[dict[str, float]]


def shuffled(groups: list[Group], seed: int) -> list[list[float]]:
    """The advantages of every group, permuted inside it by the generator of (seed, "shuffle", group id)."""
    found = []
    for group in groups:
        order = numpy_generator(seed, "shuffle", group.id).permutation(len(group.advantage))
        found.append([group.advantage[i] for i in order])
    return found


def finetune(
    model: NAOSD, groups: list[Group], config: Config, *, control: bool, folder: Path, fingerprint: str, hooks: Hooks
) -> tuple[Adapters, History]:
    """Train the policy's adapters; returns them and the values of every step.

    model: the reference (NAOSD merged), without roles. control: use shuffled advantages. folder: of the checkpoint.
    Errors: `Stopped` after a checkpoint when asked to stop; `Diverged` when a value is not finite; ValueError without groups.
    """
    if not groups:
        raise ValueError("there are no rollouts to train on; run the select and rollout stages")
    settings = config.finetune
    run = _Run(model, groups, config, control)
    state: dict[str, Stateful] = {"policy": Tensors(run.policy), "adam": run.optimizer}
    history = Loop(folder, settings.steps, state, fingerprint, settings.checkpoint_every, hooks).run(run.step)
    tensors = {f"unet.{name}": parameter.detach().cpu().clone() for name, parameter in run.policy.items()}
    return Adapters("gdpo", tensors, settings.lora), history


class _Run:
    """One fine-tuning run: the policy, its optimiser, and the step function."""

    def __init__(self, model: NAOSD, groups: list[Group], config: Config, control: bool) -> None:
        self.model, self.groups, self.config = model, groups, config
        settings = config.finetune
        self.advantages = shuffled(groups, config.seed) if control else [group.advantage for group in groups]
        model.vae.requires_grad_(False)
        model.unet_roles.add("policy", settings.lora, seed=config.seed)
        self.policy = model.unet_roles.parameters("policy")
        self.optimizer = torch.optim.AdamW(
            self.policy.values(), lr=settings.optimizer.lr, weight_decay=settings.optimizer.weight_decay
        )
        self.device = next(model.parameters()).device
        self.world = current()

    def step(self, step: int) -> dict[str, float]:
        """One optimiser step over `finetune.batch` groups; returns the values to log."""
        settings = self.config.finetune
        if settings.optimizer.schedule == "cosine":
            for group in self.optimizer.param_groups:
                group["lr"] = settings.optimizer.lr * cosine(step, settings.steps)
        self.optimizer.zero_grad(set_to_none=True)
        with self.world.together():
            rows = [self._group(*self._visit(step * settings.batch + i)) for i in self.world.share(settings.batch)]
        self.world.add_gradients(self.policy.values())
        norm = grad_norm(list(self.policy.values()), settings.optimizer.clip)
        self.optimizer.step()
        totals = self.world.add({name: sum(row[name] for row in rows) for name in rows[0]})
        return {**{name: total / settings.batch for name, total in totals.items()}, "grad_norm": norm}

    def _visit(self, position: int) -> tuple[int, int]:
        """(index of the group, which of its stored noises) at a position of the endless, per-epoch shuffled order."""
        epoch, offset = divmod(position, len(self.groups))
        order = numpy_generator(self.config.seed, "groups", epoch).permutation(len(self.groups))
        return int(order[offset]), epoch % self.config.rollout.noises

    def _group(self, index: int, visit: int) -> dict[str, float]:
        """Forward and backward of one group; its share of the step's gradient stays in the parameters."""
        group, settings = self.groups[index], self.config.finetune
        latents = type(group.latents)(group.latents.mean.to(self.device), group.latents.std.to(self.device))
        prompt = self.model.embed([group.prompt])
        with self.model.unet_roles.use("policy"):
            policy = noise_errors(
                self.model, latents, prompt, self.config.rollout, seed=self.config.seed, group=group.id, visit=visit
            )[None]
        reference = torch.tensor([group.reference_error[visit]], dtype=torch.float64, device=self.device)
        advantage = torch.tensor([self.advantages[index]], dtype=torch.float64, device=self.device)
        loss = gdpo_loss(policy, reference, advantage, settings.omega)
        (loss / settings.batch).backward()
        with torch.no_grad():
            logit = gdpo_logit(policy, reference, advantage, settings.omega)
            return {
                "loss": loss.item(),
                "implicit_accuracy": float(logit.item() > 0),
                "logit": logit.item(),
                "error_change": (policy - reference).mean().item(),
                "reward_spread": float(torch.tensor(group.reward).std()),
                "zero_spread": float(not any(group.advantage)),
            }
