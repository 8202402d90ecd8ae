"""What the tests of the metrics share."""

from typing import Any

import pytest
import torch

DRAWN = ("kaiming_normal_", "kaiming_uniform_", "normal_", "uniform_", "xavier_uniform_")


@pytest.fixture
def no_initial_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks begin with zeros: their weights come from files, and drawing others first takes
    seconds for a VGG16.
    """

    def zeros(tensor: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        with torch.no_grad():
            return tensor.zero_()

    for name in DRAWN:
        monkeypatch.setattr(torch.nn.init, name, zeros)
