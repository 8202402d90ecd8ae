"""The parts of the prior's training on tiny networks: seeded crops, losses that fall, exact resume,
frozen encoders.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from gdpo.hooks import Hooks, Stopped
from gdpo.prior.architecture import tiny_tokenizer
from gdpo.prior.train import (
    PatchDiscriminator,
    autoencoder_step,
    crop_batch,
    decoder_step,
    degraded,
    denoiser_step,
    latent_bank,
    random_crop,
)
from gdpo.seeds import numpy_generator, torch_generator
from gdpo.train.loop import Loop, Tensors
from tests import tiny

PHOTOS = [tiny.pair(i, side=64).hr for i in range(3)]
Step = Callable[[int], dict[str, float]]


def adam(parameters: Any, lr: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=1e-4)


def autoencoder(lr: float = 3e-3) -> tuple[AutoencoderKL, dict[str, Any], Step]:
    vae = tiny.vae()
    optimizer = adam(vae.parameters(), lr)
    step = autoencoder_step(
        vae, optimizer, PHOTOS, size=32, batch=2, steps=40, seed=0, lr=lr, kl_weight=1e-4
    )
    return vae, {"w": Tensors(dict(vae.named_parameters())), "o": optimizer}, step


def decoder() -> tuple[AutoencoderKL, dict[str, Any], Step]:
    torch.manual_seed(1)  # the judge's initial weights
    vae, judge = tiny.vae().requires_grad_(False), PatchDiscriminator(4)
    weights = {
        n: p for n, p in vae.named_parameters() if n.startswith(("decoder.", "post_quant_conv."))
    }
    for parameter in weights.values():
        parameter.requires_grad_(True)
    adams = adam(weights.values(), 1e-3), adam(judge.parameters(), 1e-3)
    step = decoder_step(
        vae, judge, adams, PHOTOS, size=32, batch=2, steps=40, seed=0, lr=1e-3, adversarial=0.5
    )
    return (
        vae,
        {"decoder": Tensors(weights), "judge": judge, "adam": adams[0], "adam_judge": adams[1]},
        step,
    )


def test_crops_are_seeded_and_of_one_size() -> None:
    a, b = (random_crop(PHOTOS, 24, numpy_generator(0, "crop")) for _ in range(2))
    assert a.shape == (24, 24, 3) and a.dtype == np.uint8 and np.array_equal(a, b)
    batch = crop_batch(PHOTOS, 24, 3, 0, "x")
    assert batch.shape == (3, 3, 24, 24) and batch.min() >= -1 and batch.max() <= 1
    assert torch.equal(batch[:2], crop_batch(PHOTOS, 24, 2, 0, "x"))
    assert not torch.equal(batch, crop_batch(PHOTOS, 24, 3, 1, "x"))


def test_a_degraded_crop_keeps_size_and_tone_and_loses_detail() -> None:
    photo = PHOTOS[0]
    found = degraded(photo, numpy_generator(0, "degraded"))
    assert found.shape == photo.shape and found.dtype == np.uint8
    assert abs(found.mean() - photo.mean()) < 12
    assert np.abs(found.astype(float) - photo).mean() > 1


@pytest.mark.parametrize("make", [autoencoder, decoder])
def test_stopped_and_resumed_equals_uninterrupted(make: Callable[[], Any], tmp_path: Path) -> None:
    """The judge's spectral norms move in every forward pass: they must be in the checkpoint too."""

    def run(folder: Path, hooks: Hooks) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
        vae, state, step = make()
        history = Loop(folder, 4, state, "", 100, hooks).run(step)
        return {name: p.detach().clone() for name, p in vae.named_parameters()}, history

    straight, history = run(tmp_path / "a", Hooks())
    seen: list[int] = []
    with pytest.raises(Stopped):
        run(
            tmp_path / "b",
            Hooks(log=lambda step, _: seen.append(step), should_stop=lambda: len(seen) == 2),
        )
    resumed, again = run(tmp_path / "b", Hooks())
    assert again == history
    assert all(torch.equal(resumed[name], p) for name, p in straight.items())


def test_the_autoencoder_learns() -> None:
    _, _, step = autoencoder()
    rows = [step(i) for i in range(40)]
    assert rows[-1]["l1"] < 0.75 * rows[0]["l1"]
    assert set(rows[0]) == {"loss", "l1", "tone", "ssim", "kl", "grad_norm"}


def test_sharpening_moves_the_decoder_alone() -> None:
    vae, _, step = decoder()
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    rows = [step(i) for i in range(2)]
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    for name, p in vae.named_parameters():
        assert torch.equal(p, before[name]) == (
            not name.startswith(("decoder.", "post_quant_conv."))
        ), name


def test_the_bank_holds_means_of_clean_and_degraded_crops() -> None:
    vae = tiny.vae()
    clean, bad = latent_bank(vae, PHOTOS, size=32, clean=18, bad=2, seed=0)
    assert (clean.shape, bad.shape) == ((18, 4, 8, 8), (2, 4, 8, 8))
    again, _ = latent_bank(vae, PHOTOS, size=32, clean=17, bad=1, seed=0)
    assert torch.allclose(again, clean[:17], atol=1e-4)


def test_the_denoiser_learns_and_trains_the_text_encoder() -> None:
    tokenizer = tiny_tokenizer()
    unet, text = tiny.unet(), tiny.text_encoder(tokenizer)
    ids = tokenizer(
        ["good", "", "bad"],
        padding="max_length",
        max_length=77,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    bank = (torch.randn(4, 4, 8, 8, generator=torch_generator("clean")), torch.zeros(2, 4, 8, 8))
    before = {name: p.detach().clone() for name, p in text.named_parameters()}
    optimizer = adam([*unet.parameters(), *text.parameters()], 3e-3)
    step = denoiser_step(unet, text, ids, optimizer, bank, batch=4, steps=40, seed=0, lr=3e-3)
    losses = [step(i)["loss"] for i in range(30)]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert any(not torch.equal(p, before[name]) for name, p in text.named_parameters())
