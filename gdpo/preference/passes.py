"""Forward and backward passes of the policy on one group: its errors, and the gradient of a loss.

    micro_batch     The derivatives of the loss with respect to the group's errors are computed
                    first. The backward passes then take a few inputs each; the gradient is the
                    same.

A group has G inputs, or with `rollout.input: lr` one that all candidates share.
"""

from collections.abc import Callable

import torch

from gdpo.config import Config
from gdpo.model.naosd import NAOSD
from gdpo.preference.errors import NoiseTarget, noise_target, predict, squared
from gdpo.preference.group import Group

EMBEDDED = 256  # size of the cache of prompt embeddings
# The loss of a group from m and d, each (1, G).
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Passes:
    """The passes of one fine-tuning run; `model` has the role "policy"."""

    def __init__(self, model: NAOSD, config: Config) -> None:
        self.model, self.config = model, config
        self.device = next(model.parameters()).device
        self._embedded: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def errors(
        self, group: Group, noise_index: int, *, distance: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(m, d) of a group, each (G,), in one forward pass; d as in `_errors`."""
        return self._errors(*self._given(group, noise_index), distance)

    def backward(
        self, group: Group, noise_index: int, loss_of: Loss, *, weight: float, distance: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Add weight times the gradient of `loss_of(m, d)`; return (loss, m, d), m and d (1, G)."""
        batch, prompt = self._given(group, noise_index)
        inputs = len(batch.z_noisy)
        chunk = min(self.config.finetune.micro_batch or inputs, inputs)
        # With micro-batches this pass only gives the errors; the others repeat it with gradient.
        with torch.set_grad_enabled(chunk == inputs):
            parts = [
                self._errors(batch.part(slice(i, i + chunk)), prompt, distance)
                for i in range(0, inputs, chunk)
            ]
        policy, moved = (torch.cat(column)[None] for column in zip(*parts, strict=True))
        if chunk < inputs:
            # Leaves: the loss then gives dL/dm and dL/dd without a graph through the network.
            policy, moved = policy.requires_grad_(), moved.requires_grad_()
        loss = loss_of(policy, moved)
        if chunk == inputs:
            (weight * loss).backward()
        else:
            self._in_parts(weight * loss, policy, moved, batch, prompt, chunk, distance)
        return loss.detach(), policy.detach(), moved.detach()

    def _given(self, group: Group, noise_index: int) -> tuple[NoiseTarget, torch.Tensor]:
        # The stored group stays on the CPU; only the one in use takes memory of the device.
        on_device = Group(**{**vars(group), "latents": group.latents.to(self.device)})
        batch = noise_target(self.model, on_device, self.config.rollout, noise_index)
        return batch, self._prompt(group.prompt)

    def _errors(
        self, batch: NoiseTarget, prompt: torch.Tensor, distance: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(m, d), one value per candidate of the batch.

        m: the policy's errors. d: the mean squared difference of the policy's and the reference's
        predictions, if it is asked for or the reference's prediction is stored; otherwise 0.
        """
        with self.model.unet_roles.use("policy"):
            eps_hat = predict(self.model, batch, prompt, self.config.rollout)
        error, reference = squared(eps_hat - batch.target.double(), batch), batch.reference
        if reference is None and not distance:
            return error, torch.zeros_like(error)
        if reference is None:
            with self.model.unet_roles.use(None), torch.no_grad():
                reference = predict(self.model, batch, prompt, self.config.rollout)
        return error, squared(eps_hat - reference, batch)

    def _in_parts(
        self,
        loss: torch.Tensor,
        policy: torch.Tensor,
        moved: torch.Tensor,
        batch: NoiseTarget,
        prompt: torch.Tensor,
        chunk: int,
        distance: bool,
    ) -> None:
        """Backward pass of a group in micro-batches of `chunk` inputs.

        By the chain rule, dL/dm_i and dL/dd_i of the whole group are computed first. The errors are
        then recomputed for a few candidates at a time, and their gradients weighted by those.
        """
        # allow_unused: most objectives do not read d.
        gradients = torch.autograd.grad(loss, [policy, moved], allow_unused=True)
        slopes = [torch.zeros_like(policy[0]) if slope is None else slope[0] for slope in gradients]
        for i in range(0, len(slopes[0]), chunk):
            members = slice(i, i + chunk)
            both = zip(self._errors(batch.part(members), prompt, distance), slopes, strict=True)
            torch.stack(
                [(errors * slope[members]).sum() for errors, slope in both]
            ).sum().backward()

    def _prompt(self, text: str) -> torch.Tensor:
        """The embedding of a prompt, cached: without tags all groups share one prompt."""
        if text not in self._embedded:
            # Cleared as a whole: with tags nearly every prompt is new, so keeping the recent ones
            # would save nothing.
            if len(self._embedded) == EMBEDDED:
                self._embedded.clear()
            with torch.no_grad():
                self._embedded[text] = self.model.embed([text])
        return self._embedded[text]
