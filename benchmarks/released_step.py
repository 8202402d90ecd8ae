"""One training step of the released RL stage, written from the description of its code, for
`benchmarks/rl_step.py`.

    two UNets      the policy with its LoRA, and a second, frozen copy of the reference
    candidates     LR image encoded once; G noises through the reference, decoded: fp32, the group
                   of one image at a time
    rewards        every metric of the G images, min-max normalised and z-scored on the CPU
    loss pass      the G images encoded again; policy and reference predict the same noise; both
                   decode what they predict, the policy with its graph, and nobody looks at the
                   images
    loss           -log sigmoid(-2500 (sum_i A_i m_i - sum_i A_i r_i)); gradient norm clipped at 1;
                   AdamW

On CUDA rewards and loss pass run under float16 autocast, with loss scaling, and the candidates in
fp32, as released; on a CPU all is fp32.
tests/test_rl_step.py shows that loss and gradient are those of `finetune` with `rollouts: online`.

Left out, each of which only flatters the release: tags of the HR image (RAM, twice), degradation
and complexity map inside the step, LPIPS that is loaded and not used, gradients that the VAE's
weights ask for, DDP's search for unused parameters.
"""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gdpo.config import Finetune, Reward
from gdpo.metrics.networks import build
from gdpo.metrics.score import higher_is_better, score
from gdpo.metrics.table import metric
from gdpo.model.naosd import NAOSD
from gdpo.model.schedule import add_noise, predict_x0

Draw = Callable[[int], Tensor]  # so many standard normal latents, on the device


def released_metric(name: str, device: torch.device) -> nn.Module:
    """pyiqa's own module, all crops of MANIQA at once: not shared with ours, whose MANIQA keeps no
    block's output.
    """
    pyiqa_name = metric(name).pyiqa
    assert pyiqa_name is not None
    net: Any = build(pyiqa_name, device, **metric(name).options)
    if hasattr(net, "save_output"):
        net.save_output.outputs = []
    return net


class Released:
    """What the released stage holds for its whole run, and its step on one LR image (a batch of
    one, as released).
    """

    def __init__(
        self, model: NAOSD, reward: Reward, settings: Finetune, *, group: int, seed: int = 0
    ) -> None:
        self.model, self.reward, self.group = model, reward, group
        self.device = next(model.parameters()).device
        self.reference = copy.deepcopy(model.unet)
        model.unet_roles.add("policy", settings.lora, seed=seed)
        model.unet_roles.active.append("policy")
        self.policy = model.unet_roles.parameters("policy")
        optimizer = settings.optimizer
        self.optimizer = torch.optim.AdamW(
            self.policy.values(), lr=optimizer.lr, weight_decay=optimizer.weight_decay
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.device.type == "cuda")
        self.networks = {
            n: released_metric(n, self.device)
            for n in (*reward.fidelity, *reward.perception)
            if metric(n).pyiqa
        }

    def held(self) -> Iterable[nn.Module]:
        """The networks it keeps in memory."""
        return [self.model, self.reference, *self.networks.values()]

    def step(
        self,
        lr: Tensor,
        hr: Tensor,
        detail_share: float,
        prompt: str,
        negative: str,
        draw: Draw | None = None,
    ) -> float:
        """lr, hr (1, 3, H, W) in [-1, 1] on the device; the loss. draw: noise of the LR sample, of
        the candidates, of the candidates' samples, of the loss."""
        shape = self.model.latent_shape(*lr.shape[-2:])
        draw = draw or (lambda count: torch.randn((count, *shape), device=self.device))
        images = self.candidates(lr, prompt, draw)
        with torch.autocast(self.device.type, torch.float16, enabled=self.device.type == "cuda"):
            advantage = self.advantages(images, hr, detail_share)
            loss = self.loss(images, advantage, prompt, negative, draw)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.policy.values(), 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return loss.item()

    @torch.no_grad()
    def candidates(self, lr: Tensor, prompt: str, draw: Draw) -> Tensor:
        """G images (G, 3, H, W) in [-1, 1] by the frozen reference."""
        embedded = self.model.embed([prompt]).repeat(self.group, 1, 1)
        z_noisy = add_noise(
            self._encode(lr, draw(1)).repeat(self.group, 1, 1, 1), draw(self.group), self._t_add
        )
        eps_hat = self.reference(z_noisy, self.model.t_diff, embedded).sample
        return self._decode(z_noisy, eps_hat)

    @torch.no_grad()
    def advantages(self, images: Tensor, hr: Tensor, detail_share: float) -> Tensor:
        """(G,) on the device, by way of the CPU. Not a number where a metric has no spread, as
        released.
        """
        x, y = images * 0.5 + 0.5, (hr * 0.5 + 0.5).expand_as(images)
        fidelity, perception = (
            sum(self._normalised(name, x, y) for name in names) / len(names)
            for names in (self.reward.fidelity, self.reward.perception)
        )
        value = (1 - detail_share) * fidelity + detail_share * perception
        advantage = torch.zeros(self.group)
        advantage[:] = (value - value.mean()) / (value.std(unbiased=True) + 1e-8)
        return advantage.to(self.device)

    def _normalised(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        net = self.networks.get(name)
        value = score([name], x, y)[name] if net is None else net(x).reshape(-1)
        value = value if higher_is_better(name) else -value
        return (value - value.min()) / (value.max() - value.min())

    def loss(
        self, images: Tensor, advantage: Tensor, prompt: str, negative: str, draw: Draw
    ) -> Tensor:
        """The GDPO loss of one group, with the two decodings that it does not need."""
        embedded = self.model.embed([prompt] * self.group)
        self.model.embed([negative] * self.group)  # never used either
        with torch.no_grad():
            z = self._encode(images, draw(self.group))
        noise = draw(self.group)
        z_noisy = add_noise(z, noise, self._t_add)
        predicted = self.model.unet(z_noisy, self.model.t_diff, embedded).sample
        unused = [self._decode(z_noisy, predicted)]
        with torch.no_grad():
            by_reference = self.reference(z_noisy, self.model.t_diff, embedded).sample
            unused.append(self._decode(z_noisy, by_reference))
        m, r = (
            (eps_hat - noise).pow(2).mean(dim=(1, 2, 3)) for eps_hat in (predicted, by_reference)
        )
        inside = -0.5 * 5000 * ((advantage * m).sum() - (advantage * r).sum())
        self.unused = unused  # kept until the next step's take their place
        return -F.logsigmoid(inside)

    @property
    def _t_add(self) -> int:
        assert self.model.t_add is not None
        return self.model.t_add

    def _encode(self, images: Tensor, noise: Tensor) -> Tensor:
        posterior = self.model.vae.encode(images).latent_dist
        return (posterior.mean + posterior.std * noise) * self.model.scaling

    def _decode(self, z_noisy: Tensor, eps_hat: Tensor) -> Tensor:
        z = predict_x0(z_noisy, eps_hat, self.model.t_diff)
        return self.model.vae.decode(z / self.model.scaling).sample.clamp(-1, 1)
