"""DISTS (Ding et al. 2020): structure and texture similarity of VGG16's features.

    d = 1 - sum over stages and channels of a S1 + b S2
    S1 = (2 m_x m_y + c) / (m_x^2 + m_y^2 + c)        means over pixels: texture
    S2 = (2 cov_xy + c) / (v_x + v_y + c)             covariances: structure

The stages are the image itself and five of VGG16's, with L2 pooling (a Hanning window) in place of
max pooling. torchvision's network and the published weights a, b (MIT), read from local files with
`networks.read_weights`. The values are pyiqa's and those of the authors' package.

Shapes: BCHW, RGB in [0, 1].
"""

from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from gdpo.metrics.networks import hub, read_backbone, read_weights
from gdpo.metrics.table import METRICS

ENDS = (0, 4, 9, 16, 23, 30)  # of the stages within VGG16's `features`
WIDTHS = (3, 64, 128, 256, 512, 512)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
C = 1e-6


class L2Pool(nn.Module):
    """The root of the Hanning-weighted mean of squares over 3 x 3 pixels, at every second one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """BCHW -> BC(H/2)(W/2)."""
        window = torch.tensor([0.25, 0.5, 0.25]).to(x)
        kernel = (window[:, None] * window).expand(x.shape[1], 1, 3, 3)
        mean = functional.conv2d(x.square(), kernel, stride=2, padding=1, groups=x.shape[1])
        return (mean + 1e-12).sqrt()


class Dists(nn.Module):
    """DISTS."""

    def __init__(self) -> None:
        # It imports torch._dynamo: CPU seconds that only this network needs.
        from torchvision.models import vgg16

        super().__init__()
        self.features = vgg16(weights=None).features
        layers = [L2Pool() if isinstance(part, nn.MaxPool2d) else part for part in self.features]
        for part in layers:
            if isinstance(part, nn.ReLU):
                part.inplace = False  # in place it would change what the layer before gave
        self.stages = nn.ModuleList(
            nn.Sequential(*layers[start:end]) for start, end in pairwise(ENDS)
        )
        self.alpha = nn.Parameter(torch.zeros(sum(WIDTHS)))
        self.beta = nn.Parameter(torch.zeros(sum(WIDTHS)))

    def load(self, shares: Path, backbone: Path) -> "Dists":
        """Read the weights.

        Errors: ValueError naming the file that is missing, broken or of another network.
        """
        known = read_weights(shares)
        if any(
            name not in known or known[name].numel() != sum(WIDTHS) for name in ("alpha", "beta")
        ):
            raise ValueError(f"{shares}: not the weights of DISTS")
        read_backbone(self.features, backbone, "DISTS")
        with torch.no_grad():
            self.alpha.copy_(known["alpha"].flatten())
            self.beta.copy_(known["beta"].flatten())
        return self

    def forward(self, image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """The distance of each pair, B1."""
        total = self.alpha.sum() + self.beta.sum()
        alphas, betas = (w.div(total).split(WIDTHS) for w in (self.alpha, self.beta))
        similarity = torch.zeros(len(image)).to(image)
        for x, y, alpha, beta in zip(
            self._stages(image), self._stages(reference), alphas, betas, strict=True
        ):
            m_x, m_y = x.mean((2, 3)), y.mean((2, 3))
            v_x, v_y = x.var((2, 3), correction=0), y.var((2, 3), correction=0)
            covariance = (x * y).mean((2, 3)) - m_x * m_y
            s_1 = (2 * m_x * m_y + C) / (m_x.square() + m_y.square() + C)
            s_2 = (2 * covariance + C) / (v_x + v_y + C)
            similarity = similarity + s_1 @ alpha + s_2 @ beta
        return 1 - similarity[:, None]

    def _stages(self, image: torch.Tensor) -> list[torch.Tensor]:
        mean, std = (torch.tensor(v).to(image)[None, :, None, None] for v in (MEAN, STD))
        outputs, x = [image], (image - mean) / std
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs


def build(device: torch.device | str) -> Dists:
    """DISTS with its published weights from `hub()`, frozen, on the device.

    Errors: ValueError naming the file that is missing, broken or of another network.
    """
    shares, backbone = (hub() / name for name in METRICS["dists"].weights)
    return Dists().load(shares, backbone).to(device).eval().requires_grad_(False)
