"""The architecture of the tiny prior: the sizes its docstring states, and SD's module names."""

import pytest
import torch
from diffusers import AutoencoderKL

from gdpo.model.adapters import unet_targets, vae_targets
from gdpo.model.naosd import NAOSD
from gdpo.prior import architecture as tiny


def test_sizes_and_placement() -> None:
    torch.manual_seed(0)
    tokenizer = tiny.tiny_tokenizer()
    unet, vae, text = tiny.tiny_unet(), tiny.tiny_autoencoder(), tiny.tiny_text_encoder(tokenizer)
    millions = [
        round(sum(p.numel() for p in part.parameters()) / 1e6, 2) for part in (vae, unet, text)
    ]
    assert millions == [0.94, 2.48, 0.04]
    assert sum(millions) * 2 < 8  # MB in fp16
    model = NAOSD(unet, vae, text, tokenizer)
    assert (model.factor, model.multiple) == (4, 8)
    assert "conv_in" in unet_targets(unet) and "quant_conv" in vae_targets(vae)


def test_the_tokenizer_knows_every_byte() -> None:
    tokenizer = tiny.tiny_tokenizer()
    assert len(tokenizer) == 514
    ids = tokenizer(
        ["clean, 8k é"], padding="max_length", max_length=77, truncation=True
    ).input_ids[0]
    assert len(ids) == 77
    assert ids[0] == tokenizer.bos_token_id and tokenizer.eos_token_id in ids
    assert (
        ids
        != tokenizer(
            ["dirty, 8k é"], padding="max_length", max_length=77, truncation=True
        ).input_ids[0]
    )


def narrow(latent_channels: int) -> AutoencoderKL:
    torch.manual_seed(latent_channels)
    return AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=latent_channels
    ).eval()


def test_a_widened_autoencoder_decodes_the_old_latents_as_before() -> None:
    """The old channels keep their means and log-variances, and new channels at 0 change nothing."""
    old, new = narrow(2), narrow(3)
    tiny.widen(new, old.state_dict())
    with torch.no_grad():
        x = torch.rand(1, 3, 8, 8) * 2 - 1
        features = new.encoder(x)
        assert torch.allclose(features[:, [0, 1, 3, 4]], old.encoder(x), atol=1e-5)
        features[:, [2, 5]] = 0
        posterior = new.quant_conv(features)
        assert torch.allclose(posterior[:, [0, 1, 3, 4]], old.quant_conv(old.encoder(x)), atol=1e-5)
    with pytest.raises(ValueError, match=r"conv_out.weight: missing in the narrower network"):
        tiny.widen(old, new.state_dict())
