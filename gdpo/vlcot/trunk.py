"""The trunk: transformers' Chameleon as a model that reads and writes any id.

    ids (B, L) -> hidden states (B, L, D) -> logits (B, L, V)

transformers' ChameleonForConditionalGeneration cannot write images: its forward sets the logits of
image ids to the least number, and it carries an encoder for pixels. Here ids go in, nothing is
masked, and there is no `vqmodel`. Layers, names and the configuration are transformers' own, so
checkpoints of the Lumina-mGPT family load (gdpo/vlcot/released.py), and `save_pretrained` and
`from_pretrained` work.

Shapes: B sequences, L positions, D width, V ids.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonVQVAEConfig,
)

from gdpo.seeds import torch_generator
from gdpo.vlcot.evidence import Evidence, at


class Trunk(ChameleonForConditionalGeneration):
    """A Chameleon language model over text and image ids.

    evidence: what it sees of a picture beside tokens, if its configuration has the key (tiny).
    """

    def __init__(self, config: ChameleonConfig) -> None:
        # Its own constructor builds an encoder of the configured size, to be dropped here.
        encoder, config.vq_config = config.vq_config, _no_encoder()
        super().__init__(config)
        # Left in, its random parameters would be in every checkpoint.
        del self.model.vqmodel
        config.vq_config = encoder
        seen = getattr(config, "evidence", None)
        self.evidence = None if seen is None else Evidence(width=config.hidden_size, **seen)

    def seen(
        self, pictures_BCHW: torch.Tensor | None, places_BL: torch.Tensor
    ) -> torch.Tensor | None:
        """What `hidden` adds to tokens with these places (gdpo/vlcot/evidence.py), BLD.

        None for a trunk without evidence. pictures_BCHW: in [0, 1], of the last stage's side.
        """
        return None if self.evidence is None else at(self.evidence(pictures_BCHW), places_BL)

    def hidden(
        self,
        ids_BL: torch.Tensor,
        cache: "Cache | None" = None,
        mask_BL: torch.Tensor | None = None,
        seen_BLD: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The hidden states BLD of the last layer, normalised.

        cache: the positions before these; it grows by L. mask_BL: bool
        (B, positions), for calls with L = 1: what each sequence may see; None: all before it.
        seen_BLD: from `seen`.
        """
        x = self.model.embed_tokens(ids_BL)
        if seen_BLD is not None:
            x = x + seen_BLD
        start = 0 if cache is None else cache.length
        # Counted from the first token of the prompt also for rows that see only their image: rotary
        # embeddings depend on distances, so the offset does not matter.
        positions = torch.arange(start, start + ids_BL.shape[1], device=x.device)[None]
        rope = self.model.rotary_emb(x, position_ids=positions)
        # Without a mask, attention is causal for L > 1, and sees the whole cache for L = 1.
        mask = None if mask_BL is None else mask_BL[:, None, None, :]
        for layer in self.model.layers:
            arguments = {
                "attention_mask": mask,
                "position_embeddings": rope,
                "past_key_values": cache,
            }
            x = self._run(layer, x, arguments)
        if cache is not None:
            # After all layers: each of them writes at `length`.
            cache.length += ids_BL.shape[1]
        normal: torch.Tensor = self.model.norm(x)
        return normal

    recompute: bool = False  # activations again in the backward pass: less memory

    def _run(self, layer: nn.Module, x: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:
        def run(x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = layer(x, **arguments)[0]
            return out

        if self.recompute and torch.is_grad_enabled():
            # The reentrant form gives no gradients to layers whose input needs none, which
            # embeddings under LoRA do not.
            again: torch.Tensor = checkpoint(run, x, use_reentrant=False)
            return again
        return run(x)

    def forward(self, ids_BL: torch.Tensor) -> torch.Tensor:
        """The logits BLV of whole sequences."""
        logits: torch.Tensor = self.lm_head(self.hidden(ids_BL))
        return logits


def _no_encoder() -> ChameleonVQVAEConfig:
    """The smallest configuration of an encoder that Chameleon builds."""
    return ChameleonVQVAEConfig(
        embed_dim=1,
        num_embeddings=1,
        latent_channels=1,
        base_channels=32,
        channel_multiplier=[1],
        num_res_blocks=1,
        attn_type="none",
    )


def tiny_config(
    vocabulary: int,
    *,
    width: int,
    layers: int,
    heads: int,
    positions: int,
    evidence: dict[str, Any] | None = None,
) -> ChameleonConfig:
    """A configuration of the tiny profile: an MLP of 2.7 widths, as Chameleon's.

    evidence: stages and factor of `Evidence`; None: a trunk that sees tokens alone.
    """
    return ChameleonConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=round(2.7 * width),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=positions,
        vocabulary_map={},
        vq_config=_no_encoder(),
        pad_token_id=None,
        bos_token_id=0,
        eos_token_id=1,
        evidence=evidence,
    )


def fresh(config: ChameleonConfig, seed: int) -> Trunk:
    """A trunk with new weights: normal of deviation 0.02, each matrix drawn from its own name.

    The two projections that write into the residual stream are divided by sqrt(2 layers), as GPT-2
    does. Kernels of the evidence have the deviation 1 / sqrt(inputs), its biases are 0.
    """
    trunk = Trunk(config)
    inner = (2 * config.num_hidden_layers) ** -0.5
    with torch.no_grad():
        for name, parameter in trunk.named_parameters():
            if parameter.ndim == 2 and "norm" not in name:
                drawn = torch.randn(parameter.shape, generator=torch_generator(seed, "trunk", name))
                written = name.endswith(("o_proj.weight", "down_proj.weight"))
                parameter.copy_(drawn * 0.02 * (inner if written else 1.0))
            elif parameter.ndim == 4:
                drawn = torch.randn(parameter.shape, generator=torch_generator(seed, "trunk", name))
                parameter.copy_(drawn / parameter[0].numel() ** 0.5)
            elif name.startswith("evidence.") and name.endswith("bias"):
                parameter.zero_()
    return trunk


class Cache:
    """Keys and values of all layers, allocated once for `positions`.

    transformers' layers call `update`. `length` is the number of positions that are filled; the
    trunk moves it after a call, since all layers write to the same place.
    """

    def __init__(self, trunk: Trunk, batch: int, positions: int) -> None:
        config = trunk.config
        heads, wide = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
        weight = trunk.lm_head.weight
        shape = (2, config.num_hidden_layers, batch, heads, positions, wide)
        # Allocated once: growing by concatenation would copy the whole cache at each token.
        self.values = torch.empty(shape, dtype=weight.dtype, device=weight.device)
        self.length = 0

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write keys and values (B, heads, L, d); returns all of the layer so far."""
        end = self.length + key.shape[2]
        if end > self.values.shape[4]:
            raise ValueError(
                f"the sequence has more than the {self.values.shape[4]} positions of its cache"
            )
        both = self.values[:, layer]
        both[0, :, :, self.length : end] = key
        both[1, :, :, self.length : end] = value
        return both[0, :, :, :end], both[1, :, :, :end]

    def keep(self, rows: torch.Tensor) -> None:
        """Keep these sequences of the batch, in this order; others are dropped or repeated."""
        self.values = self.values[:, :, rows].contiguous()


def chunked(
    trunk: Trunk,
    hidden_ND: torch.Tensor,
    use: Callable[[torch.Tensor, int], torch.Tensor],
    rows: int,
) -> torch.Tensor:
    """`use(logits, first row)` of `rows` rows of hidden states at a time, joined.

    The logits of one chunk exist at a time, in the backward pass too: 7000 tokens of 73,728 ids in
    fp32 are 2 GB.
    """

    def of(hidden: torch.Tensor, first: int) -> torch.Tensor:
        return use(trunk.lm_head(hidden), first)

    parts = []
    for first in range(0, len(hidden_ND), rows):
        part: torch.Tensor = checkpoint(
            of, hidden_ND[first : first + rows], first, use_reentrant=False
        )
        parts.append(part)
    return torch.cat(parts)
