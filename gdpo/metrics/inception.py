"""The Inception of 2015-12-05, whose features FID compares: TensorFlow's, not torchvision's.

torchvision's blocks with two differences: average pooling leaves the padding out, and the last
block pools by maximum. Its published weights are read with `networks.read_weights`.
"""

from typing import Any

import torch
import torchvision
from torch import nn
from torch.nn import functional
from torchvision.models import inception

from gdpo.metrics.networks import hub, read_weights
from gdpo.metrics.table import METRICS

Branches = list[torch.Tensor]


class _A(inception.InceptionA):
    def _forward(self, x: torch.Tensor) -> Branches:
        return _without_padding(self, super()._forward(x), x)


class _C(inception.InceptionC):
    def _forward(self, x: torch.Tensor) -> Branches:
        return _without_padding(self, super()._forward(x), x)


class _E(inception.InceptionE):
    def _forward(self, x: torch.Tensor) -> Branches:
        return _without_padding(self, super()._forward(x), x)


class _Last(inception.InceptionE):
    def _forward(self, x: torch.Tensor) -> Branches:
        pooled = functional.max_pool2d(x, 3, stride=1, padding=1)
        return [*super()._forward(x)[:-1], self.branch_pool(pooled)]


def _without_padding(block: Any, branches: Branches, x: torch.Tensor) -> Branches:
    """Replace the pooled branch, the last."""
    pooled = functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
    return [*branches[:-1], block.branch_pool(pooled)]


def inception_2015() -> nn.Module:
    """The network without weights: (B, 3, 299, 299) in [-1, 1] -> features (B, 2048)."""
    network: nn.Module = torchvision.models.inception_v3(
        weights=None, num_classes=1008, aux_logits=False, init_weights=False
    )
    blocks: dict[str, nn.Module] = {
        "Mixed_5b": _A(192, pool_features=32),
        "Mixed_5c": _A(256, pool_features=64),
        "Mixed_5d": _A(288, pool_features=64),
        "Mixed_6b": _C(768, channels_7x7=128),
        "Mixed_6c": _C(768, channels_7x7=160),
        "Mixed_6d": _C(768, channels_7x7=160),
        "Mixed_6e": _C(768, channels_7x7=192),
        "Mixed_7b": _E(1280),
        "Mixed_7c": _Last(2048),
    }
    for name, block in blocks.items():
        setattr(network, name, block)
    return network


def build(device: torch.device | str) -> nn.Module:
    """The network with its published weights from `hub()`, frozen, on the device.

    Errors: ValueError naming the file that is missing, broken or of another network.
    """
    (path,) = (hub() / name for name in METRICS["fid"].weights)
    network, state = inception_2015(), read_weights(path)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path}: not the weights of the Inception of 2015-12-05") from error
    network.fc = nn.Identity()  # the features are what it would classify
    return network.to(device).eval().requires_grad_(False)
