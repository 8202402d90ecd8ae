"""The full-size networks on the meta device: shapes only, without downloads or memory use.

    SD2.1-base     UNet, VAE, text encoder (OpenCLIP-H, 23 layers), as classes of diffusers and
                   transformers
    RAM + DAPE     the tagger of the released code: Swin-L, the tagging head, and the parts of RAM
                   that tagging never runs
    MUSIQ, MANIQA  the networks of the reward, from pyiqa

Sizes come from the published configuration files; those of RAM from its code (Recognize Anything,
`ram.py` and its BERT configuration).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, SwinConfig, SwinModel

UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 768,
}
TEXT = {
    "vocab_size": 49408,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "max_position_embeddings": 77,
    "hidden_act": "gelu",
}
SWIN_L = {
    "image_size": 384,
    "patch_size": 4,
    "embed_dim": 192,
    "depths": (2, 2, 18, 2),
    "num_heads": (6, 12, 24, 48),
    "window_size": 12,
}
TAGS, WIDTH, HIDDEN, VOCABULARY, POSITIONS = 4585, 512, 768, 30524, 512  # of RAM's language part
DAPE_RANK = 8


@dataclass(frozen=True)
class Networks:
    """The networks of one model on the meta device; tagger is None for a diffusers folder."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: nn.Module
    tagger: "Tagger | None"


def sd21() -> Networks:
    """SD2.1-base with the tagger of the released code."""
    with torch.device("meta"):
        text_encoder = CLIPTextModel(CLIPTextConfig(**TEXT))
        return Networks(UNet2DConditionModel(**UNET), AutoencoderKL(**VAE), text_encoder, Tagger())


def from_folder(folder: Path) -> Networks:
    """The networks that the configuration files of a diffusers folder describe.

    Errors: ValueError naming a file that is missing or not valid JSON.
    """
    configs: dict[str, dict[str, Any]] = {}
    for part in ("unet", "vae", "text_encoder"):
        path = folder / part / "config.json"
        try:
            configs[part] = json.loads(path.read_text())
        except OSError:
            raise ValueError(
                f"{path}: no such file; --model is sd2.1 or a diffusers folder"
            ) from None
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: not valid JSON ({error})") from None
    with torch.device("meta"):
        unet, vae = (
            UNet2DConditionModel.from_config(configs["unet"]),
            AutoencoderKL.from_config(configs["vae"]),
        )
        return Networks(
            unet, vae, CLIPTextModel(CLIPTextConfig.from_dict(configs["text_encoder"])), None
        )


class Attention(nn.Module):
    """BERT's attention block with output projection and norm.

    source: width of the sequence that gives keys and values.
    """

    def __init__(self, source: int, heads: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (
            nn.Linear(width, HIDDEN) for width in (HIDDEN, source, source)
        )
        self.out, self.norm, self.heads = nn.Linear(HIDDEN, HIDDEN), nn.LayerNorm(HIDDEN), heads
        for layer in (self.query, self.key):
            add_dape(layer)

    def forward(self, x: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """x (B, N, 768) attends to source (B, M, width)."""
        q, k, v = (
            layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, y in ((self.query, x), (self.key, source), (self.value, source))
        )
        mixed = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        return self.norm(x + self.out(mixed.transpose(1, 2).flatten(2)))


class BertLayer(nn.Module):
    """One layer of RAM's BERT: self-attention, cross-attention, feed-forward.

    own: with self-attention, which the tagging head lacks.
    """

    def __init__(self, source: int, heads: int, *, own: bool) -> None:
        super().__init__()
        self.self_attention = Attention(HIDDEN, heads) if own else None
        self.cross = Attention(source, heads)
        self.up, self.down, self.norm = (
            nn.Linear(HIDDEN, 4 * HIDDEN),
            nn.Linear(4 * HIDDEN, HIDDEN),
            nn.LayerNorm(HIDDEN),
        )

    def forward(self, x: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """The tagging head's path: cross-attention and feed-forward."""
        x = self.cross(x, source)
        return self.norm(x + self.down(nn.functional.gelu(self.up(x))))


class Bert(nn.Module):
    """RAM's tag encoder (source width 512) or text decoder (768); tagging runs neither.

    The head of the text decoder is tied to the word embeddings.
    """

    def __init__(self, source: int, *, head: bool) -> None:
        super().__init__()
        self.words, self.positions = (
            nn.Embedding(VOCABULARY, HIDDEN),
            nn.Embedding(POSITIONS, HIDDEN),
        )
        self.norm = nn.LayerNorm(HIDDEN)
        self.layers = nn.ModuleList(BertLayer(source, 12, own=True) for _ in range(12))
        if head:
            self.transform, self.head_norm = nn.Linear(HIDDEN, HIDDEN), nn.LayerNorm(HIDDEN)
            self.bias = nn.Parameter(torch.empty(VOCABULARY))


class Tagger(nn.Module):
    """RAM with DAPE's LoRA: image (B, 3, 384, 384) -> logits (B, 4585) by the tagging path."""

    def __init__(self) -> None:
        super().__init__()
        self.swin = SwinModel(SwinConfig(**SWIN_L))
        for name, module in self.swin.named_modules():
            if name.endswith((".q_proj", ".v_proj")):
                add_dape(module)
        self.image_proj = nn.Linear(8 * SWIN_L["embed_dim"], WIDTH)  # type: ignore[operator]
        self.label_embed = nn.Parameter(torch.empty(TAGS, WIDTH))
        self.wordvec_proj = nn.Linear(WIDTH, HIDDEN)
        self.head = nn.ModuleList(BertLayer(WIDTH, 4, own=False) for _ in range(2))
        self.fc = nn.Linear(HIDDEN, 1)
        self.unused = nn.ModuleList([Bert(WIDTH, head=False), Bert(HIDDEN, head=True)])
        _tie(self.unused[0].layers, self.head)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """The tagging path of RAM's `generate_tag_openset`.

        4585 label queries attend to 144 image tokens and their mean.
        """
        tokens = self.swin(image).last_hidden_state
        tokens = self.image_proj(torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1))
        x = self.wordvec_proj(self.label_embed).relu().expand(len(image), -1, -1)
        for layer in self.head:
            x = layer(x, tokens)
        return self.fc(x)[..., 0]

    def used(self) -> int:
        """Parameters that tagging reads."""
        return sum(
            p.numel() for name, p in self.named_parameters() if not name.startswith("unused.")
        )

    def dape_layers(self) -> list[nn.Linear]:
        """The layers of the tagging path that are loralib's in the released code.

        They are Swin's joint q, k and v, and the head's q and k.
        """
        joint = (".q_proj", ".k_proj", ".v_proj")
        swin = [module for name, module in self.swin.named_modules() if name.endswith(joint)]
        crosses: list[Any] = [block.cross for block in self.head]
        return swin + [layer for cross in crosses for layer in (cross.query, cross.key)]


def add_dape(layer: Any) -> None:
    """Give a linear layer the LoRA parameters of DAPE.

    `forward` does not use them, because DAPE is merged before inference.
    """
    layer.lora_A = nn.Parameter(torch.empty(DAPE_RANK, layer.in_features))
    layer.lora_B = nn.Parameter(torch.empty(layer.out_features, DAPE_RANK))


def _tie(layers: Any, head: nn.ModuleList) -> None:
    """Tie the lowest layers of the tag encoder to the tagging head, as RAM does.

    They share cross-attention and feed-forward, but not the LoRA.
    """
    for layer, of_head in zip(layers, head, strict=False):
        modules = dict(layer.named_modules())
        for name, module in of_head.named_modules():
            if isinstance(module, nn.Linear | nn.LayerNorm):
                modules[name].weight, modules[name].bias = module.weight, module.bias


def reward_networks() -> dict[str, nn.Module]:
    """MUSIQ and MANIQA, the paper's `reward.perception`, on the meta device without weights."""
    from pyiqa.archs.maniqa_arch import MANIQA
    from pyiqa.archs.musiq_arch import MUSIQ

    from gdpo.metrics.networks import offline

    with offline("maniqa_arch"):
        maniqa = MANIQA(pretrained=False)
    return {"MUSIQ": MUSIQ(pretrained=False).to("meta").eval(), "MANIQA": maniqa.to("meta").eval()}
