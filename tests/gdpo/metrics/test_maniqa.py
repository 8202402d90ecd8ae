"""MANIQA in chunks of crops against pyiqa's own forward pass, on a small network of the same
kind.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch.utils._python_dispatch import TorchDispatchMode

from gdpo.metrics import maniqa, networks
from gdpo.metrics import score as metrics


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Any, Any]:
    """pyiqa's MANIQA over a ViT of width 32 and 64 tokens: its own, and through `build` and a file
    of its weights.
    """
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    vit = {
        "img_size": 224,
        "patch_size": 28,
        "embed_dim": 32,
        "depth": 12,
        "num_heads": 2,
        "num_classes": 0,
    }
    replaced = [
        (m, n, (lambda *_, **__: VisionTransformer(**vit)) if m == "timm" else f)
        for m, n, f in networks._REPLACED["maniqa_arch"]
    ]
    monkeypatch.setitem(networks._REPLACED, "maniqa_arch", tuple(replaced))
    options = {"embed_dim": 32, "patch_size": 28, "dim_mlp": 32}
    from pyiqa.archs.maniqa_arch import MANIQA

    torch.manual_seed(0)
    with networks.offline("maniqa_arch"):
        source = MANIQA(pretrained=False, scale=0.8, **options).eval()
    (tmp_path / "hub/pyiqa").mkdir(parents=True)
    torch.save(
        {f"module.{name}": value for name, value in source.state_dict().items()},
        tmp_path / "hub/pyiqa/ckpt_koniq10k.pt",
    )
    return source, networks.build("maniqa", "cpu", **options)


@pytest.fixture
def small(both: tuple[Any, Any]) -> Any:
    return both[1]


@pytest.mark.parametrize("size", [(224, 224), (240, 300), (224, 260), (290, 233)])
def test_scores_are_pyiqas(both: tuple[Any, Any], size: tuple[int, int]) -> None:
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, expected = maniqa.maniqa(both[1], image), both[0](image)[:, 0]
        assert len(both[1].save_output.outputs) == 0
    assert found.shape == (2,) and found[0] != found[1]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [7, 64])
def test_chunks_change_nothing_but_rounding_and_no_image_sees_another(
    small: Any, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = torch.rand(2, 3, 230, 240, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        whole = maniqa.maniqa(small, image)
        monkeypatch.setattr(maniqa, "CHUNK", chunk)
        torch.testing.assert_close(maniqa.maniqa(small, image), whole, rtol=1e-5, atol=1e-6)
        alone = torch.cat([maniqa.maniqa(small, one) for one in image.split(1)])
    torch.testing.assert_close(alone, whole, rtol=1e-5, atol=1e-6)


class Readings(TorchDispatchMode):
    """Counts what reads a value back from the device: item, bool, float, and operations whose
    output size is a value.
    """

    NAMES = (
        "_local_scalar_dense",
        "is_nonzero",
        "equal",
        "nonzero",
        "masked_select",
        "_unique2",
        "bincount",
    )

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in self.NAMES
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def readings() -> Iterator[Readings]:
    with torch.no_grad(), Readings() as found:
        yield found


@pytest.mark.parametrize("chunk", [7, 20])
def test_a_batch_is_scored_without_waiting_for_the_device(
    small: Any, chunk: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU (--device cuda) torch itself refuses to wait; on the CPU operations that read a
    value are counted.
    """
    monkeypatch.setattr(maniqa, "CHUNK", chunk)
    network = small.to(device)
    image = torch.rand(3, 3, 240, 250, generator=torch.Generator().manual_seed(4)).to(device)
    if image.is_cuda:
        torch.cuda.set_sync_debug_mode("error")
    try:
        with readings() as found:
            maniqa.maniqa(network, image)
    finally:
        if image.is_cuda:
            torch.cuda.set_sync_debug_mode("default")
    assert found.count == 0


def test_the_checks_of_a_batch_read_as_often_for_one_image_as_for_many(
    small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "network", lambda name, device: small)
    counts = []
    for size in (1, 3):
        with readings() as found:
            metrics.score(
                ["maniqa_koniq"],
                torch.rand(size, 3, 224, 230, generator=torch.Generator().manual_seed(5)),
            )
        counts.append(found.count)
    assert counts == [2, 2]  # the least and the greatest value of the batch


def test_the_same_image_has_the_same_score_every_time_and_no_generator_moves(small: Any) -> None:
    image = torch.rand(1, 3, 240, 250, generator=torch.Generator().manual_seed(3))
    states = torch.get_rng_state(), np.random.get_state()[1]
    with torch.no_grad():
        assert torch.equal(maniqa.maniqa(small, image), maniqa.maniqa(small, image))
    assert torch.equal(torch.get_rng_state(), states[0]) and np.array_equal(
        np.random.get_state()[1], states[1]
    )
