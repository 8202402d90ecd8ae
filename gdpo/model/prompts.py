"""Prompts and their embeddings: CLIP, padded to 77 tokens, last hidden state after the final norm.

A prompt is tags (from RAM or the user) followed by a fixed text: `model.prompt` at inference,
`model.training_prompt` in training. Either part may be empty.
"""

from typing import Any

import torch


def embed(tokenizer: Any, text_encoder: Any, prompts: list[str]) -> torch.Tensor:
    """Embeddings prompt_BLD of a list of B prompts: (B, 77, D), no gradient."""
    # Padded to 77 tokens whatever the text: SD attends to the padding as well, so another length
    # would change the image.
    tokens = tokenizer(
        prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        return text_encoder(tokens.input_ids.to(text_encoder.device))[0]


def compose(tags: str | None, suffix: str) -> str:
    """The prompt of one image: "tags, suffix", or the suffix alone if there are no tags.

    As in the released code, an empty suffix gives "tags, ".
    """
    return f"{tags}, {suffix}" if tags else suffix


def join(*words: str | None) -> str:
    """Join the tags of several sources with commas, leaving out empty ones."""
    return ", ".join(stripped for word in words if (stripped := (word or "").strip(" ,")))
