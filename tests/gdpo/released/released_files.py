"""Files in the layouts of the released code, made as it makes them: peft adapters by place, and
torch.save of a dict.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from peft import LoraConfig
from transformers import CLIPTextConfig, CLIPTextModel

from gdpo.model.naosd import NAOSD
from gdpo.prior.architecture import SCHEDULER, tiny_tokenizer

PLACES = ["default_encoder", "default_decoder", "default_others"]
UNET_WORDS = [
    "to_k",
    "to_q",
    "to_v",
    "to_out.0",
    "conv",
    "proj_out",
    "proj_in",
    "ff.net.2",
    "ff.net.0.proj",
]
VAE_WORDS = ["to_k", "to_q", "to_v", "to_out.0", "conv"]


def write_base(folder: Path, seed: int = 0, width: int = 8) -> None:
    """A whole diffusers folder in SD2.1-base's layout, far smaller than the tiny prior."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        norm_num_groups=4,
        layers_per_block=1,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(width, 2 * width),
        cross_attention_dim=8,
        attention_head_dim=(1, 2),
        use_linear_projection=True,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        sample_size=16,
    )
    with torch.no_grad():  # room before the clamp, which could hide a difference
        vae.decoder.conv_out.weight.mul_(0.3)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    for name, part in (
        ("unet", unet),
        ("vae", vae),
        ("text_encoder", text_encoder),
        ("tokenizer", tokenizer),
    ):
        part.save_pretrained(folder / name)
    (folder / "scheduler").mkdir()
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(SCHEDULER))


def unet_modules(unet: Any, conv_out_place: int = 2) -> list[list[str]]:
    """The released rule; OSEDiff's puts conv_out with the decoder (place 1)."""
    places: list[list[str]] = [[], [], []]
    for name, _ in unet.named_parameters():
        if "bias" in name or "norm" in name or not any(word in name for word in UNET_WORDS):
            continue
        place = 0 if "down_blocks" in name or "conv_in" in name else 1 if "up_blocks" in name else 2
        places[conv_out_place if name.startswith("conv_out") else place].append(
            name.removesuffix(".weight")
        )
    return places


def vae_modules(vae: Any) -> list[list[str]]:
    """The released rule: encoder with quant_conv, decoder with post_quant_conv, and nothing
    else.
    """
    places: list[list[str]] = [[], [], []]
    for name, _ in vae.named_parameters():
        if "bias" not in name and "norm" not in name and any(word in name for word in VAE_WORDS):
            encoder = name.startswith("encoder") or name.startswith("quant_conv")
            places[0 if encoder else 1].append(name.removesuffix(".weight"))
    return places


def add_adapters(network: Any, places: list[list[str]], rank: int, trained: list[str]) -> None:
    """Adapters as released (gaussian A, zero B), with B of those in `trained` moved as training
    would.
    """
    for adapter, modules in zip(PLACES, places, strict=True):
        if modules:
            config = LoraConfig(r=rank, init_lora_weights="gaussian", target_modules=modules)
            with warnings.catch_warnings():
                # peft warns: "this will lead to having multiple adapters".
                warnings.simplefilter("ignore")
                network.add_adapter(config, adapter_name=adapter)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".lora_B." in name and name.split(".")[-2] in trained:
                parameter.normal_(0, 0.1)


def state(network: Any, *words: str) -> dict[str, torch.Tensor]:
    return {
        name: value
        for name, value in network.state_dict().items()
        if any(word in name for word in words)
    }


def fabricate(
    path: Path,
    base: Path,
    kind: str,
    *,
    seed: int = 1,
    ranks: tuple[int, int] = (4, 4),
    decoder_trained: bool = False,
) -> NAOSD:
    """Write a released file of `kind` over the folder `base`; returns the model it stands for, on
    peft's own layers.
    """
    torch.manual_seed(seed)
    model = NAOSD.from_pretrained(base)
    places = unet_modules(model.unet, conv_out_place=1 if kind == "osediff" else 2)
    add_adapters(model.unet, places, ranks[0], PLACES)
    model.unet.set_adapter(PLACES)
    if kind != "gdpo":
        with torch.no_grad():  # conv_in is trained in full
            for parameter in model.unet.conv_in.base_layer.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    names = ["encoder", "decoder", "others"]
    content: dict[str, Any] = {
        f"unet_lora_{n}_modules": p for n, p in zip(names, places, strict=True)
    }
    content |= {"rank_unet": ranks[0], "state_dict_unet": state(model.unet, "lora", "conv_in")}
    if kind != "gdpo":
        places = vae_modules(model.vae)
        used = 3 if kind == "naosd" else 1
        trained = PLACES if decoder_trained else PLACES[:1]
        add_adapters(model.vae, [*places[:used], *([[]] * (3 - used))], ranks[1], trained)
        model.vae.set_adapter(["default_encoder"])
        content |= {
            f"vae_lora_{n}_modules": p for n, p in list(zip(names, places, strict=True))[:used]
        }
        content |= {"rank_vae": ranks[1], "state_dict_vae": state(model.vae, "lora", "skip")}
    torch.save(content, path)
    return model


def output(model: NAOSD) -> torch.Tensor:
    """What `model` makes of one fixed image: no pixel at the clamp, and not flat."""
    generator = torch.Generator().manual_seed(5)
    shape = model.latent_shape(16, 16)
    x = torch.rand((1, 3, 16, 16), generator=generator) * 2 - 1
    noise, posterior_noise = (torch.randn((1, *shape), generator=generator) for _ in range(2))
    with torch.no_grad():
        image = model(x, model.embed(["a prompt"]), noise, posterior_noise)
    assert float(image.abs().max()) < 1 and float(image.std()) > 0.03
    return image


def same(a: NAOSD, b: NAOSD) -> bool:
    """Equal outputs, up to rounding."""
    return bool((output(a) - output(b)).abs().max() < 1e-5)
