"""A whole small system: pairs of 32 pixels, tokenizer, vocabulary, examples, trunk."""

from dataclasses import dataclass, replace
from functools import cache

import torch

from gdpo.config import Degradation
from gdpo.data.degrade import draw
from gdpo.seeds import numpy_generator
from gdpo.vlcot import vocabulary
from gdpo.vlcot.describe import WORDS, describe
from gdpo.vlcot.examples import Example, example
from gdpo.vlcot.tokenizer import TinyTokenizer, patches
from gdpo.vlcot.tokenizer_training import fit_codebook
from gdpo.vlcot.trunk import Trunk, fresh, tiny_config
from gdpo.vlcot.vocabulary import Vocabulary
from gdpo.vlcot.words import LEVELS, NAMES, RESIZES
from tests import tiny

STAGES = (8, 16, 32)


@dataclass(frozen=True)
class System:
    vocabulary: Vocabulary
    tokenizer: TinyTokenizer
    examples: list[Example]

    def trunk(self, seed: int = 0, *, evidence: bool = False) -> Trunk:
        seen = {"stages": list(STAGES), "factor": self.tokenizer.factor} if evidence else None
        config = tiny_config(
            self.vocabulary.size, width=32, layers=2, heads=2, positions=200, evidence=seen
        )
        return fresh(config, seed)


@cache
def system() -> System:
    pairs = [
        replace(tiny.pair(i), degradation=draw(Degradation(), numpy_generator("vlcot", i)))
        for i in range(4)
    ]
    vae = tiny.vae().eval().requires_grad_(False)
    hr = torch.stack([torch.from_numpy(pair.hr).permute(2, 0, 1).float() / 255 for pair in pairs])
    codebook = fit_codebook(patches(vae, hr * 2 - 1, 2).flatten(0, 2), 16, seed=0)
    tokenizer = TinyTokenizer(vae, codebook)
    words = (*LEVELS, *NAMES, *RESIZES, *WORDS)
    v = vocabulary.tiny(words, tokenizer.codes, STAGES, tokenizer.factor)
    examples = [example(pair, describe(pair.hr), v, tokenizer, "released") for pair in pairs]
    return System(v, tokenizer, examples)
