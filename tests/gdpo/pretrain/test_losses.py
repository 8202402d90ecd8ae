"""The image losses: values by hand, limits, gradients in float64."""

from pathlib import Path

import pytest
import torch
from skimage.metrics import structural_similarity

from gdpo.pretrain import losses
from gdpo.pretrain.losses import (
    check_perceptual,
    gradient_loss,
    perceptual_loss,
    pixel_loss,
    ssim,
    structure_loss,
)
from gdpo.seeds import torch_generator


def images(side: int = 32, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Two float64 BCHW batches in [-1, 1] that resemble each other."""
    a = (
        torch.rand(batch, 3, side, side, generator=torch_generator("a"), dtype=torch.float64) * 2
        - 1
    )
    b = (
        torch.rand(batch, 3, side, side, generator=torch_generator("b"), dtype=torch.float64) * 2
        - 1
    )
    return a, 0.7 * a + 0.3 * b


def test_pixel_kinds() -> None:
    a, b = torch.tensor([[1.0, -1.0]]), torch.tensor([[0.5, 1.0]])
    assert pixel_loss(a, b, "mse").item() == pytest.approx((0.25 + 4) / 2)
    assert pixel_loss(a, b, "l1").item() == pytest.approx((0.5 + 2) / 2)


def test_ssim_is_that_of_scikit_image() -> None:
    """Its uniform 7x7 windows, except that it divides covariances by 48 and not by 49."""
    a, b = (image[:1, 0] * 0.5 + 0.5 for image in images())
    theirs = structural_similarity(
        a[0].numpy(), b[0].numpy(), data_range=1.0, use_sample_covariance=False
    )
    assert ssim(a[:, None], b[:, None]).item() == pytest.approx(theirs, abs=1e-9)
    assert ssim(a[:, None], a[:, None]).item() == pytest.approx(1.0)


def test_gradient_loss_by_hand() -> None:
    a = torch.tensor([[[[0.0, 1.0], [2.0, 5.0]]]])
    across, down = (1 + 3) / 2, (2 + 4) / 2
    assert gradient_loss(a, torch.zeros_like(a)).item() == pytest.approx(across + down)
    assert gradient_loss(a + 3, a).item() == 0  # a shift in tone has no gradient


def test_structure_loss_is_zero_for_equal_images_and_grows_with_blur() -> None:
    a, _ = images()
    assert structure_loss(a, a).item() == pytest.approx(0, abs=1e-12)
    blurred = [
        torch.nn.functional.avg_pool2d(a, k, 1, k // 2, count_include_pad=False) for k in (3, 7)
    ]
    assert 0 < structure_loss(blurred[0], a) < structure_loss(blurred[1], a)


def test_structure_loss_is_its_parts() -> None:
    a, b = images()
    x, y = a * 0.5 + 0.5, b * 0.5 + 0.5
    parts = gradient_loss(x, y)
    for size in (1, 2, 4):
        pooled = [torch.nn.functional.avg_pool2d(image, size) for image in (x, y)]
        parts = parts + (1 - ssim(*pooled)) / 2 / 3
    assert structure_loss(a, b).item() == pytest.approx(parts.item(), rel=1e-12)
    assert perceptual_loss(a, b, "structure").item() == structure_loss(a, b).item()


def test_lpips_gets_images_in_0_to_1_and_is_a_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own weights are on no test machine: what it is given, and what becomes of its result."""

    class Spy(torch.nn.Module):
        def forward(self, image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            assert float(image.detach().min()) >= 0 and float(image.detach().max()) <= 1
            return (image - target).square().mean(dim=(1, 2, 3))

    built = []
    monkeypatch.setattr(losses.lpips, "build", lambda *of: built.append(of) or Spy())
    losses._lpips.cache_clear()
    a, b = images()
    found = perceptual_loss(a, b, "lpips-vgg")
    assert found.item() == pytest.approx((a - b).square().mean().item() / 4)
    small = a[:1, :, :2, :2].clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: perceptual_loss(x, b[:1, :, :2, :2], "lpips-vgg"), (small,)
    )
    # Once, and by the loader that reads weights without pickle.
    assert built == [("vgg", torch.device("cpu"))]
    losses._lpips.cache_clear()


def test_missing_weights_of_lpips_are_named_with_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    check_perceptual("structure")
    for name in ("pyiqa/LPIPS_v0.1_vgg-a78928a0.pth", "checkpoints/vgg16-397923af.pth"):
        path = tmp_path / "hub" / name
        with pytest.raises(ValueError) as caught:
            check_perceptual("lpips-vgg")
        assert (
            str(caught.value)
            == f"pretrain.perceptual is lpips-vgg and {path.name} is missing; put it into "
            f"{path.parent}"
        )
        path.parent.mkdir(parents=True)
        path.write_bytes(b"weights")
    check_perceptual("lpips-vgg")


@pytest.mark.parametrize("loss", [ssim, gradient_loss])
def test_gradients(loss: object) -> None:
    a, b = (image[:1, :1, :8, :9] for image in images())
    assert torch.autograd.gradcheck(loss, (a.clone().requires_grad_(), b))


@pytest.mark.parametrize("kind", ["mse", "l1"])
def test_gradients_of_the_pixel_losses(kind: str) -> None:
    a, b = (image[:1, :1, :3, :3] for image in images())
    assert torch.autograd.gradcheck(lambda x: pixel_loss(x, b, kind), (a.clone().requires_grad_(),))


def test_gradient_of_the_structure_loss() -> None:
    a, b = (image[:1] for image in images(28))
    a = a.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: structure_loss(x, b), (a,), fast_mode=True)
