"""What RealSR-R1 costs at full size: parameters, tokens, memory, operations; from shapes alone.

    gdpo-sr cost --model vlcot [--step rl]

Counted on the meta device: the trunk of Chameleon-7B with PURE's 73,728 ids. MACs of attention are
those of the whole square, causal or not. Memory is arithmetic: bf16 weights, keys and values of one
sequence, activations with every layer recomputed, AdamW on all weights or on LoRA alone.
"""

from dataclasses import dataclass

import torch
from transformers import ChameleonConfig

from gdpo.cost.count import Macs, count
from gdpo.vlcot.trunk import Trunk

FACTOR = 8  # pixels a side of one code
IDS, POSITIONS = 73_728, 11_776
PROMPT_TEXT, ANSWER_TEXT = 170, 330  # tokens of text: the released prompt; three captions, assumed
GROUP = 5  # G of the release
LORA_RANK = 16
LEAST_SIDE = 128  # a quarter of it is one unit of 32 pixels


@dataclass(frozen=True)
class Tokens:
    """Tokens of one chain: text and images of the prompt, and of the answer."""

    prompt: int
    images: tuple[int, int, int]
    answer: int

    @property
    def total(self) -> int:
        """The length of the whole sequence."""
        return self.prompt + self.answer


def tokens(size: int) -> Tokens:
    """The tokens of a chain for a target of `size` pixels; ValueError for a size without stages."""
    if size < LEAST_SIDE or size % LEAST_SIDE:
        raise ValueError(
            f"--size must be a multiple of {LEAST_SIDE} for vlcot, whose first image is a quarter "
            f"of it in units of 32 pixels, got {size}"
        )
    first, second, third = (_square(size // part) for part in (4, 2, 1))
    return Tokens(third + PROMPT_TEXT, (first, second, third), first + second + third + ANSWER_TEXT)


def _square(side: int) -> int:
    n = side // FACTOR
    return n * (n + 1) + 4


def trunk() -> Trunk:
    """The trunk of PURE and RealSR-R1 on the meta device."""
    with torch.device("meta"):
        return Trunk(
            ChameleonConfig(vocab_size=IDS, max_position_embeddings=POSITIONS, vocabulary_map={})
        )


def memory(model: Trunk, length: int) -> dict[str, int]:
    """Bytes at bf16: what a sequence of `length` tokens and a training step need."""
    config = model.config
    parameters = sum(parameter.numel() for parameter in model.parameters())
    wide, layers = config.hidden_size, config.num_hidden_layers
    head = wide // config.num_attention_heads
    lora = lora_parameters(model)
    return {
        "weights": 2 * parameters,
        "keys and values, per token": 4 * layers * config.num_key_value_heads * head,
        "keys and values, one sequence": 4 * layers * config.num_key_value_heads * head * length,
        # Each layer's input is kept; of one layer at a time, what its backward pass needs:
        # 10 widths (norms, q, k, v, attention, outputs) and three of the MLP.
        "activations, one sequence": 2
        * length
        * (layers * wide + 10 * wide + 3 * config.intermediate_size),
        "gradients and AdamW, all weights": 14
        * parameters,  # bf16 gradient, fp32 copy, two moments
        "gradients and AdamW, LoRA": 16 * lora,
    }


def lora_parameters(model: Trunk, rank: int = LORA_RANK) -> int:
    """Parameters of LoRA on all linear layers but the head."""
    return sum(
        rank * (layer.in_features + layer.out_features)
        for name, layer in model.model.named_modules()
        if isinstance(layer, torch.nn.Linear)
    )


@torch.no_grad()
def forward_macs(model: Trunk, length: int) -> Macs:
    """MACs of one pass over a sequence of `length` tokens, logits of all included."""
    ids = torch.zeros(1, length, dtype=torch.long, device="meta")
    return count(lambda: model(ids))


def group_macs(model: Trunk, size: int) -> dict[str, int]:
    """MACs of a step of GRPO per prompt: G chains written and learnt from.

    Learning: one pass forward, one recomputed, and two for the gradients.
    """
    chain = forward_macs(model, tokens(size).total).total
    return {"writing": GROUP * chain, "learning": 4 * GROUP * chain}
