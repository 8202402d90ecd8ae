"""The architecture of the tiny prior: the sizes its docstring states, and SD's module names."""

import torch

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
    assert millions == [0.93, 2.47, 0.04]
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
