"""A pair as tokens: the prompt with the LR image, and the chain of thought to be learnt.

    prompt   BEGIN  text with the LR segment at <|image|>  END_OF_TURN
    answer   <degradation> .. </degradation> <rough_understand> .. </rough_understand>
             <rough_image> segment </rough_image> ... </final_image>  END_OF_TURN

The LR image is enlarged to the last stage (bicubic), and tokenised at the prompt's size. The images
of the answer are the HR image at the sizes of the stages. No role names are written. Tags and
contents are encoded one by one, so that no token spans both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gdpo.data.shards import Pair
from gdpo.images import resize_bicubic, to_tensor
from gdpo.vlcot.describe import Understanding
from gdpo.vlcot.rewards import Truth
from gdpo.vlcot.tokenizer import ImageTokenizer
from gdpo.vlcot.vocabulary import IMAGE, SLOTS, Vocabulary, Words
from gdpo.vlcot.words import Range, degradation_words

# The constant prompt of the released trainer, with the seven empty blocks.
PROMPT = (
    "Perceive the degradation, understand the image content, and restore the high-quality image "
    "step by step (simulating the image restoration process from coarse to fine). The low-quality "
    f"image is as follows: {IMAGE}. The generation format should be as follows: "
    + " ".join(f"<{slot}>...</{slot}>" for slot in SLOTS)
)


@dataclass(frozen=True)
class Example:
    """One pair as tokens.

    seen: uint8 (S, S, 3), the LR image enlarged to the last stage. hr: uint8 (S, S, 3), what the
    generation reward compares with.
    """

    id: str
    prompt: np.ndarray
    answer: np.ndarray
    truth: Truth
    seen: np.ndarray
    hr: np.ndarray


def example(
    pair: Pair,
    understanding: Understanding,
    vocabulary: Vocabulary,
    tokenizer: ImageTokenizer,
    ranges: Range,
) -> Example:
    """The tokens of a pair.

    Errors: ValueError naming the pair whose HR image has not the size of the last stage, or whose
    degradation or text cannot be written.
    """
    side = vocabulary.stages[-1]
    if pair.hr.shape != (side, side, 3):
        raise ValueError(
            f"pair {pair.id}: its HR image is {pair.hr.shape[:2]}, the last of vlcot.stages "
            f"is {side}"
        )
    try:
        terms = degradation_words(pair.degradation, ranges)
        texts = {
            "degradation": ", ".join(terms),
            "rough_understand": understanding.rough,
            "middle_understand": understanding.middle,
            "final_understand": understanding.final,
        }
        images = [resize_bicubic(pair.hr, (s, s)) for s in vocabulary.stages]
        seen = resize_bicubic(pair.lr, (side, side))
        return Example(
            id=pair.id,
            prompt=np.array(prompt(seen, vocabulary, tokenizer), np.int32),
            answer=np.array(_answer(texts, images, vocabulary, tokenizer), np.int32),
            truth=Truth(tuple(terms), understanding.tags),
            seen=seen,
            hr=pair.hr,
        )
    except ValueError as error:
        raise ValueError(f"pair {pair.id}: {error}") from error


def prompt(seen: np.ndarray, vocabulary: Vocabulary, tokenizer: ImageTokenizer) -> list[int]:
    """The prompt of an enlarged LR image, uint8 (S, S, 3) of the last stage's side.

    With a vocabulary of words the prompt is the image alone.
    """
    side = vocabulary.prompt_side
    segment = _segment(resize_bicubic(seen, (side, side)), vocabulary, tokenizer)
    # The sentence is the released one, for checkpoints that were trained with it. A trunk that is
    # trained from scratch on one task needs no instruction.
    template = IMAGE if isinstance(vocabulary.text, Words) else PROMPT
    before, _, after = template.partition(IMAGE)
    text = vocabulary.text.encode
    return [
        vocabulary.begin_of_text,
        *text(before),
        *segment,
        *text(after),
        vocabulary.end_of_turn,
    ]


def _answer(
    texts: Mapping[str, str],
    images: list[np.ndarray],
    vocabulary: Vocabulary,
    tokenizer: ImageTokenizer,
) -> list[int]:
    tokens, waiting = list[int](), list(images)
    for slot in SLOTS:
        # Encoded piece by piece: BPE would merge a tag with the word beside it, and the grammar,
        # which forces tags as fixed tokens, could never produce that.
        tokens += vocabulary.text.encode(f"<{slot}>")
        if slot in texts:
            tokens += vocabulary.text.encode(texts[slot])
        else:
            tokens += _segment(waiting.pop(0), vocabulary, tokenizer)
        tokens += vocabulary.text.encode(f"</{slot}>")
    return [*tokens, vocabulary.end_of_turn]


def _segment(image: np.ndarray, vocabulary: Vocabulary, tokenizer: ImageTokenizer) -> list[int]:
    return vocabulary.segment(tokenizer.encode(to_tensor(image)[None])[0].cpu().numpy())


def padded(rows: list[np.ndarray], value: int) -> torch.Tensor:
    """Rows of ids as one tensor (N, longest), filled up on the right."""
    # On the right, so that with causal attention no row sees its padding and no mask is needed.
    ids = torch.full((len(rows), max(len(sequence) for sequence in rows)), value)
    for i, sequence in enumerate(rows):
        ids[i, : len(sequence)] = torch.from_numpy(np.asarray(sequence, np.int64))
    return ids


def pictures(examples: Sequence[Example]) -> torch.Tensor:
    """What `Trunk.seen` takes: the enlarged LR images, BCHW in [0, 1]."""
    return torch.stack([to_tensor(one.seen) for one in examples])
