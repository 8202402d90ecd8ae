"""A completion as people and rewards read it: its text, its seven slots, its images.

    tokens, cut at the first END_OF_TURN -> text with <|image|> for each image segment
                                         -> the content of each slot, and where it is settled
                                         -> the codes of each image

`parse` never raises: whatever the tokens are, there is a result. A segment that is cut short, has
an impossible size, or a code or newline where it must not be, becomes <|image|> with None for its
codes and counts as broken. (Released code: a truncated image is dropped silently, a bad size token
fails an assertion, and START as the last token loops for ever.)
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gdpo.vlcot.vocabulary import IMAGE, SLOTS, Vocabulary

_BLOCKS = {slot: re.compile(rf"<{slot}>(.*?)</{slot}>", re.DOTALL) for slot in SLOTS}


@dataclass(frozen=True)
class Parsed:
    """text: images as `IMAGE`. slots: the content of the first block of each name, stripped; absent
    if there is none. settled: the number of tokens up to the end of that block. images: codes
    (h, w) of each segment, None if it is broken. length: tokens before END_OF_TURN, which is
    `ended`.
    """

    text: str
    slots: dict[str, str]
    settled: dict[str, int]
    images: list[np.ndarray | None]
    length: int
    ended: bool

    @property
    def result(self) -> np.ndarray | None:
        """The codes of the last image (released code); None if it is broken or there is none."""
        return self.images[-1] if self.images else None


def parse(tokens: Sequence[int], vocabulary: Vocabulary) -> Parsed:
    """Parse the tokens after the prompt; see the module docstring."""
    ids = [int(token) for token in tokens]
    ended = vocabulary.end_of_turn in ids
    ids = ids[: ids.index(vocabulary.end_of_turn)] if ended else ids
    text, ends, images = "", list[int](), list[np.ndarray | None]()  # ends: characters so far
    place = 0
    while place < len(ids):
        if ids[place] == vocabulary.start:
            codes, used = _segment(ids[place:], vocabulary)
            images.append(codes)
            # All tokens of a segment but the last end before its text: credit for it is settled
            # only with END.
            ends += [len(text)] * (used - 1)
            text += IMAGE
            ends.append(len(text))
            place += used
            continue
        stop = next((i for i in range(place, len(ids)) if ids[i] == vocabulary.start), len(ids))
        for piece in vocabulary.text.pieces(ids[place:stop]):
            text += piece
            ends.append(len(text))
        place = stop
    blocks = {slot: match for slot in SLOTS if (match := _BLOCKS[slot].search(text))}
    return Parsed(
        text=text,
        slots={slot: match[1].strip() for slot, match in blocks.items()},
        settled={
            slot: int(np.searchsorted(ends, match.end())) + 1 for slot, match in blocks.items()
        },
        images=images,
        length=len(ids),
        ended=ended,
    )


def _segment(ids: list[int], voc: Vocabulary) -> tuple[np.ndarray | None, int]:
    """The codes of the segment that starts at ids[0], and how many tokens it takes.

    A broken segment takes all its image tokens, so that the text after it is still read.
    """
    # Any id may stand here, as completions are sampled or come from elsewhere: both sizes are
    # checked before they are used as lengths.
    sizes = [(i - voc.size_base) * voc.unit // voc.factor for i in ids[1:3]]
    largest = max(voc.stages) // voc.factor
    if len(sizes) == 2 and all(0 < size <= largest for size in sizes):
        height, width = sizes
        used = 3 + height * (width + 1) + 1
        body = np.array(ids[3 : used - 1])
        if len(ids) >= used and ids[used - 1] == voc.end:
            rows = body.reshape(height, width + 1)
            inside = (rows >= 0) & (rows < voc.size)
            codes = np.where(inside, voc.code_of[np.where(inside, rows, 0)], -1)[:, :-1]
            if (codes >= 0).all() and (rows[:, -1] == voc.newline).all():
                return codes, used
    used = 1
    while used < len(ids) and _is_image_token(ids[used], voc):
        used += 1
        if ids[used - 1] == voc.end:
            break
    return None, used


def _is_image_token(token: int, voc: Vocabulary) -> bool:
    size = voc.size_base < token <= voc.size_base + max(voc.stages) // voc.unit
    code = 0 <= token < voc.size and voc.code_of[token] >= 0
    return size or code or token in (voc.newline, voc.end)
