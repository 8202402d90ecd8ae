"""LlamaGen's VQ-8, the image tokenizer of PURE and RealSR-R1, on transformers' JanusVQVAE.

    16,384 codes of 8 dimensions on the unit sphere, 8 pixels a side of a code, 70.1 M parameters

JanusVQVAE with multipliers (1, 2, 2, 4) is LlamaGen's network under other names. Its own `encode`
does not normalise and its `decode` takes one fixed square, hence its parts are called here.
"""

import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import JanusVQVAE, JanusVQVAEConfig

from gdpo.vlcot.tokenizer import check_codes, to_network


class LlamaGenTokenizer(nn.Module):
    """LlamaGen's VQ-8: codes are the nearest directions of a codebook on the unit sphere."""

    codebook: torch.Tensor

    def __init__(self, network: JanusVQVAE) -> None:
        super().__init__()
        self.network = network
        normal = F.normalize(network.quantize.embedding.weight.detach(), dim=-1)
        self.register_buffer("codebook", normal, persistent=False)
        self.factor = 2 ** (len(network.config.channel_multiplier) - 1)
        self.codes = len(normal)

    @torch.no_grad()
    def encode(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        """As `ImageTokenizer.encode`."""
        image = to_network(image_BCHW, self.factor)
        z = self.network.quant_conv(self.network.encoder(image)).permute(0, 2, 3, 1)
        # The nearest of unit vectors is the one with the largest product: z need not be normalised.
        return (z @ self.codebook.T).argmax(-1)

    @torch.no_grad()
    def decode(self, codes_Bhw: torch.Tensor) -> torch.Tensor:
        """As `ImageTokenizer.decode`."""
        check_codes(codes_Bhw, self.codes)
        z = self.network.post_quant_conv(self.codebook[codes_Bhw].permute(0, 3, 1, 2))
        return (self.network.decoder(z).float() / 2 + 0.5).clamp(0, 1)


VQ8 = {"channel_multiplier": (1, 2, 2, 4), "num_embeddings": 16_384, "embed_dim": 8}
_RENAMES = (
    (re.compile(r"^(encoder|decoder)\.mid\.0\."), r"\1.mid.block_1."),
    (re.compile(r"^(encoder|decoder)\.mid\.1\."), r"\1.mid.attn_1."),
    (re.compile(r"^(encoder|decoder)\.mid\.2\."), r"\1.mid.block_2."),
    (re.compile(r"^encoder\.conv_blocks\."), "encoder.down."),
    (re.compile(r"^decoder\.conv_blocks\."), "decoder.up."),
    (re.compile(r"\.res\.(\d+)\."), r".block.\1."),
)
_DROPPED = "quantize.codebook_used"  # a running count of LlamaGen's training


def load_llamagen(path: Path, **sizes: Any) -> LlamaGenTokenizer:
    """The tokenizer of a released LlamaGen file (vq_ds8_c2i.pt), read without running it.

    sizes: what differs from VQ-8 in JanusVQVAEConfig. Errors: ValueError naming the file, and the
    key that is missing or surplus.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        why = str(error).partition(".")[0]
        raise ValueError(f"{path}: not a file of weights ({why})") from error
    state = saved.get("model", saved) if isinstance(saved, dict) else {}
    renamed = {rename(name): tensor for name, tensor in state.items() if name != _DROPPED}
    with torch.device("meta"):
        network = JanusVQVAE(JanusVQVAEConfig(**{**VQ8, **sizes}))
    check_state(path, renamed, network)
    network.load_state_dict(renamed, assign=True)
    return LlamaGenTokenizer(network.eval().requires_grad_(False))


def rename(name: str) -> str:
    """A tensor's name in JanusVQVAE, from LlamaGen's."""
    for pattern, replacement in _RENAMES:
        name = pattern.sub(replacement, name)
    return name


def check_state(path: Path, state: dict[str, torch.Tensor], network: nn.Module) -> None:
    """ValueError unless `state` has the names and shapes of the network.

    One line names the file, and the first name that is missing, surplus or of another shape.
    """
    wanted = network.state_dict()
    missing, surplus = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or surplus:
        parts = [
            f"{len(names)} {what} ({names[0]})"
            for names, what in ((missing, "missing"), (surplus, "surplus"))
            if names
        ]
        raise ValueError(f"{path}: tensors are {' and '.join(parts)}")
    for name, tensor in wanted.items():
        if state[name].shape != tensor.shape:
            raise ValueError(
                f"{path}: {name} has shape {tuple(state[name].shape)}, must be "
                f"{tuple(tensor.shape)}"
            )
