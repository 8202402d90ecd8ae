"""A model with NAOSD's methods and nothing to train: blurs in the latent, so tiles see only their
neighbourhood.
"""

import torch
from torch import nn
from torch.nn import functional

from gdpo.model.schedule import add_noise


class FakeModel(nn.Module):
    """Down-scaling 4, sides in multiples of 8, 3 latent channels."""

    factor, multiple, prompt, t_add = 4, 8, "sharp", 250

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.largest = 0
        self.seen_t_add: int | None = None

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return 3, height // 4, width // 4

    def embed(self, texts: list[str]) -> torch.Tensor:
        assert texts == ["sharp"]
        return torch.zeros(1, 2, 4)

    def encode(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        assert x.shape[2] % 8 == 0 and x.shape[3] % 8 == 0
        self.largest = max(self.largest, x.shape[2], x.shape[3])
        return functional.avg_pool2d(x, 4) + 0.01 * noise

    def inject(
        self, z: torch.Tensor, noise: torch.Tensor, t_add: int | None = None
    ) -> torch.Tensor:
        self.seen_t_add = t_add
        return add_noise(z, noise, self.t_add if t_add is None else t_add)

    def denoise(self, z_noisy: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(z_noisy, 3, 1, 1, count_include_pad=False)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return functional.interpolate(z, scale_factor=4.0, mode="nearest").clamp(-1, 1)
