"""LPIPS v0.1 (Zhang et al. 2018): weighted distance of the features of AlexNet or VGG16.

    d = sum over five layers of mean over pixels of w . (f / |f| - g / |g|)^2

torchvision's networks and the published linear weights (BSD-2-Clause), read from local files with
`networks.read_weights`. The values are pyiqa's and those of the authors' package. Differentiable,
for the loss of pretraining.

Shapes: BCHW, RGB in [0, 1].
"""

from pathlib import Path

import torch
from torch import nn

from gdpo.metrics.networks import hub, read_backbone, read_weights
from gdpo.metrics.table import METRICS
from gdpo.model.sources import LPIPS_VGG

# Network -> its layers' ends within `features`, and its files below `hub()`: linear, backbone.
ENDS = {"alex": (2, 5, 8, 10, 12), "vgg": (4, 9, 16, 23, 30)}
FILES = {"alex": tuple(METRICS["lpips_alex"].weights), "vgg": LPIPS_VGG}
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Lpips(nn.Module):
    """LPIPS; `kind` is "alex" or "vgg"."""

    def __init__(self, kind: str) -> None:
        # It imports torch._dynamo: CPU seconds that only this network needs.
        from torchvision.models import alexnet, vgg16

        super().__init__()
        create = alexnet if kind == "alex" else vgg16
        features = create(weights=None).features
        # Activations in place would change what the layer before gave.
        for part in features.modules():
            if isinstance(part, nn.ReLU):
                part.inplace = False
        starts = (0, *ENDS[kind])
        self.layers = nn.ModuleList(
            features[start:end] for start, end in zip(starts, ENDS[kind], strict=False)
        )
        self.features = features
        self.weights = nn.ParameterList()

    def load(self, linear: Path, backbone: Path) -> "Lpips":
        """Read the weights.

        Errors: ValueError naming the file that is missing, broken or of another network.
        """
        known = read_weights(linear)
        names = [f"lin{index}.model.1.weight" for index in range(len(self.layers))]
        if not set(names) <= set(known):
            raise ValueError(f"{linear}: not the weights of LPIPS (no {names[0]})")
        self.weights = nn.ParameterList(known[name].flatten() for name in names)
        read_backbone(self.features, backbone, "LPIPS")
        return self

    def forward(self, image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """The distance of each pair, B1."""
        shift, scale = (torch.tensor(v).to(image)[None, :, None, None] for v in (SHIFT, SCALE))
        a, b = ((2 * one - 1 - shift) / scale for one in (image, reference))
        total = torch.zeros(len(image), 1).to(image)
        # One pass through the network: each layer starts from the features that the one before
        # gave.
        for layer, weight in zip(self.layers, self.weights, strict=True):
            a, b = layer(a), layer(b)
            different = (_unit(a) - _unit(b)).square()
            total = total + torch.einsum("bchw,c->bhw", different, weight).mean((1, 2))[:, None]
        return total


def _unit(features: torch.Tensor) -> torch.Tensor:
    # 1e-10 outside the root, as in the authors' package.
    return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)


def build(kind: str, device: torch.device | str) -> Lpips:
    """LPIPS with its published weights from `hub()`, frozen, on the device.

    Errors: ValueError naming the file that is missing, broken or of another network.
    """
    linear, backbone = (hub() / name for name in FILES[kind])
    network = Lpips(kind).load(linear, backbone).to(device).eval()
    return network.requires_grad_(False)
