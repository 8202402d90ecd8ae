"""Prompts -> text embeddings: CLIP, padded to 77 tokens, the last hidden state after the final
norm.

Tags (from RAM, or a user's words) come first, then a fixed text: `model.prompt` at inference,
`model.training_prompt` in training. Neither needs the other.
"""

from typing import Any

import torch


def embed(tokenizer: Any, text_encoder: Any, prompts: list[str]) -> torch.Tensor:
    """Embeddings prompt_BLD of a list of prompts: (B, 77, D), no gradient."""
    tokens = tokenizer(
        prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        return text_encoder(tokens.input_ids.to(text_encoder.device))[0]


def compose(tags: str | None, suffix: str) -> str:
    """The prompt of one image: "tags, suffix" (released code; so "tags, " without a suffix), or the
    suffix alone.
    """
    return f"{tags}, {suffix}" if tags else suffix


def join(*words: str | None) -> str:
    """What comes before the suffix, from several sources: those that say something, with one comma
    between.
    """
    return ", ".join(stripped for word in words if (stripped := (word or "").strip(" ,")))
