"""A small vocabulary and chains of thought for the tests of this folder."""

import json
from pathlib import Path

import numpy as np

from gdpo.vlcot import vocabulary
from gdpo.vlcot.vocabulary import SLOTS, Vocabulary

STAGES = (16, 32, 64)
WORDS = [
    *("light", "medium", "heavy", "blur", "noise", "compression", "downsample", "unchange"),
    *("upsample", "a", "dark", "rock", "sky"),
]


def voc(codes: int = 32) -> Vocabulary:
    """Codes of 8 pixels; images of 2, 4 and 8 codes a side."""
    return vocabulary.tiny(WORDS, codes, STAGES, factor=8)


def chain(v: Vocabulary, seed: int = 0, text: str = "a dark rock") -> list[int]:
    """A whole completion with random codes."""
    rng, sides, tokens = np.random.default_rng(seed), list(v.stages), []
    for slot in SLOTS:
        tokens += v.text.encode(f"<{slot}>")
        if slot.endswith("_image"):
            n = sides.pop(0) // v.factor
            tokens += v.segment(rng.integers(0, len(v.codes), (n, n)))
        else:
            tokens += v.text.encode(text)
        tokens += v.text.encode(f"</{slot}>")
    return [*tokens, v.end_of_turn]


def chameleon_names(shift: int = 0) -> dict[str, int]:
    """Chameleon's vocabulary, name to id: specials, codes (rolled by `shift`), reserved, text."""
    names = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<eoss>": 8196, "<racm3:break>": 8197}
    for code in range(8192):
        letters = "".join(chr(ord("A") + int(digit)) for digit in str(code))
        names[f"IMGIMG{letters}Z"] = 4 + (code + shift) % 8192
    names |= {f"<reserved{i - 4:05}>": i for i in range(8198, 16384)}
    for i, word in enumerate(["<", "</", ">", *SLOTS, *WORDS]):
        names[word] = 16384 + i
    return names | {f"w{i}": i for i in range(16384 + 30, 65536)}


def tokenizer_file(folder: Path, names: dict[str, int]) -> str:
    """A word-level tokenizer of those names."""
    path = folder / "text_tokenizer.json"
    split = {
        "type": "Split",
        "pattern": {"Regex": "</?|>|[a-z_]+"},
        "behavior": "Removed",
        "invert": True,
    }
    model = {"type": "WordLevel", "vocab": names, "unk_token": "<unk>"}
    path.write_text(
        json.dumps(
            {
                "version": "1.0",
                "truncation": None,
                "padding": None,
                "added_tokens": [],
                "normalizer": None,
                "pre_tokenizer": split,
                "post_processor": None,
                "decoder": {"type": "Fuse"},
                "model": model,
            }
        )
    )
    return str(path)
