"""The tokens of a VLCoT sequence: text, and images as codes between structure tokens.

    image segment   START  H  W  (code x w  NEWLINE) x h  END          raster order
    H, W            size tokens: id = size_base + side in pixels / unit; H comes first
    tokens          T(s) = n (n + 1) + 4 of a square of s pixels, n = s / factor codes a side

    paper: unit 32, factor 8: T(128) = 276, T(256) = 1060, T(512) = 4164

Ids of the paper's vocabulary: Chameleon's, as Lumina-mGPT and PURE use it (docs/vlcot.md). PURE's
16,384 codes are the ids 4..8195 and 65,536..73,727. The code is the same for all of them.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import numpy as np

from gdpo.errors import one_line

SLOTS = (
    "degradation",
    "rough_understand",
    "rough_image",
    "middle_understand",
    "middle_image",
    "final_understand",
    "final_image",
)
IMAGE = "<|image|>"  # stands for an image segment in text; never a token
TAGS = tuple(tag for slot in SLOTS for tag in (f"<{slot}>", f"</{slot}>"))


class Text(Protocol):
    """Text to ids and back."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        ...

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text that each id adds; joined, the text of all of them. Never raises."""
        ...


class Words:
    """A text of whole words from a fixed list; tags and punctuation are tokens of their own.

    ids follow the order of the list, from `first` on.
    """

    def __init__(self, words: Iterable[str], first: int) -> None:
        self.names = [*TAGS, ",", ".", *dict.fromkeys(words)]
        self.first = first
        self._ids = {name: first + i for i, name in enumerate(self.names)}

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Errors: ValueError naming a word that is not in the list."""
        # A tag is one token, so that a model cannot misspell it.
        words = re.findall(r"</?\w+>|\w+|[^\w\s]", text)
        unknown = [word for word in words if word not in self._ids]
        if unknown:
            raise ValueError(f"the vocabulary has no word {unknown[0]!r}")
        return [self._ids[word] for word in words]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """As `Text.pieces`; a word brings the space before it."""
        inside = range(len(self.names))
        names = [self.names[i - self.first] if i - self.first in inside else "" for i in ids]
        return [f" {name}" if name[:1].isalnum() else name for name in names]


class Bpe:
    """A text of a `tokenizers` file (tokenizer.json, the paper's text_tokenizer.json)."""

    def __init__(self, path: str) -> None:
        from tokenizers import Tokenizer

        try:
            self.tokenizer = Tokenizer.from_file(path)
        except Exception as error:
            raise ValueError(
                f"{path}: not a file of the tokenizers library ({one_line(error)})"
            ) from error

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without tokens for its beginning and end."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """As `Text.pieces`: what each id adds to the decoded text.

        Decoding is not a sum over ids (spaces, bytes of one character), so every beginning is
        decoded; texts here are short.
        """
        known = range(self.tokenizer.get_vocab_size())
        kept = [i if i in known else -1 for i in ids]
        texts = [
            self.tokenizer.decode([i for i in kept[:end] if i >= 0], skip_special_tokens=False)
            for end in range(len(kept) + 1)
        ]
        return [after[len(before) :] for before, after in pairwise(texts)]


@dataclass(frozen=True)
class Vocabulary:
    """The meaning of the ids.

    codes: the id of each image code. size_base: the id of a side of g units is size_base + g.
    unit: pixels of one step of the size tokens. factor: pixels a side of one code. stages: sides
    of the three images of a chain, in pixels. prompt_side: that of the LR image in the prompt, one
    of them. size: number of ids. text_ids: what may be written outside an image, besides START and
    END_OF_TURN.
    """

    text: Text
    codes: np.ndarray
    start: int
    end: int
    newline: int
    size_base: int
    begin_of_text: int
    end_of_turn: int
    unit: int
    factor: int
    stages: tuple[int, int, int]
    prompt_side: int
    size: int
    text_ids: np.ndarray

    def __post_init__(self) -> None:
        if self.unit % self.factor:
            raise ValueError(f"unit {self.unit} must be a multiple of factor {self.factor}")
        for side in self.stages:
            if side % self.unit or side < self.unit:
                raise ValueError(f"stages must be multiples of {self.unit} pixels, got {side}")
        if self.prompt_side not in self.stages:
            raise ValueError(f"prompt_side must be one of {self.stages}, got {self.prompt_side}")
        if len(set(self.codes.tolist())) < len(self.codes) or int(self.codes.max()) >= self.size:
            raise ValueError(
                f"codes must be different ids below {self.size}, got {len(self.codes)}"
            )

    @cached_property
    def code_of(self) -> np.ndarray:
        """The code of each id, -1 for ids that are no code."""
        table = np.full(self.size, -1, np.int64)
        table[self.codes] = np.arange(len(self.codes))
        return table

    @cached_property
    def sides(self) -> dict[int, int]:
        """{size token: side in pixels} of the stages, the only sides that may be generated."""
        return {self.size_token(side): side for side in self.stages}

    def size_token(self, side: int) -> int:
        """The size token of a side in pixels."""
        return self.size_base + side // self.unit

    def tokens(self, side: int) -> int:
        """T(s): the tokens of a square image of `side` pixels."""
        n = side // self.factor
        return n * (n + 1) + 4

    def segment(self, codes: np.ndarray) -> list[int]:
        """The image segment of codes (h, w), whose sides must be whole units.

        Errors: ValueError for sides that no size token means, or codes outside the codebook.
        """
        height, width = (side * self.factor for side in codes.shape)
        if height % self.unit or width % self.unit or not codes.size:
            raise ValueError(
                f"an image of {codes.shape} codes is no multiple of {self.unit} pixels"
            )
        if int(codes.min()) < 0 or int(codes.max()) >= len(self.codes):
            raise ValueError(
                f"codes must lie in 0..{len(self.codes) - 1}, got {codes.min()}..{codes.max()}"
            )
        # NEWLINE after each row: a flat sequence would leave the model to count where a row ends.
        rows = np.concatenate(
            [self.codes[codes], np.full((len(codes), 1), self.newline, np.int64)], axis=1
        )
        head = [self.start, self.size_token(height), self.size_token(width)]
        return [*head, *(int(i) for i in rows.reshape(-1)), self.end]


def tiny(
    words: Iterable[str],
    codes: int,
    stages: tuple[int, int, int],
    factor: int,
    prompt_side: int | None = None,
) -> Vocabulary:
    """A small vocabulary: seven structure tokens, sizes, words, then `codes` image codes.

    unit is the smallest stage. prompt_side: None: the last stage, as released.
    """
    unit = stages[0]
    sizes = stages[-1] // unit
    text = Words(words, first=5 + sizes + 1)
    begin = text.first + len(text.names)
    return Vocabulary(
        text=text,
        codes=np.arange(begin, begin + codes),
        begin_of_text=0,
        end_of_turn=1,
        start=2,
        end=3,
        newline=4,
        size_base=5,
        unit=unit,
        factor=factor,
        stages=stages,
        prompt_side=prompt_side or stages[-1],
        size=begin + codes,
        text_ids=np.arange(text.first, begin),
    )


LUMINA_SIZE, PURE_SIZE = 65_536, 73_728
BEGIN, START, END = "<s>", "<racm3:break>", "<eoss>"
END_OF_TURN, NEWLINE, FIRST_SIZE = "<reserved08706>", "<reserved08799>", "<reserved08800>"
_NO_TEXT = re.compile(r"IMGIMG[A-J]+Z|<(s|/s|pad|unk|eoss|image|racm3:break|reserved\d+)>")


def lumina(text: Bpe) -> Vocabulary:
    """Lumina-mGPT's vocabulary: Chameleon's 8192 codes of 16 pixels a side."""
    return _chameleon(text, factor=16, size=LUMINA_SIZE)


def pure(text: Bpe) -> Vocabulary:
    """PURE's and RealSR-R1's: 16,384 codes of 8 pixels; the second half are ids of their own."""
    return _chameleon(text, factor=8, size=PURE_SIZE)


def _chameleon(text: Bpe, *, factor: int, size: int) -> Vocabulary:
    """Ids by the names in the vocabulary file; ids from 65,536 on are further codes."""
    names: dict[str, int] = text.tokenizer.get_vocab()
    missing = {BEGIN, START, END, END_OF_TURN, NEWLINE, FIRST_SIZE} - names.keys()
    if missing:
        raise ValueError(f"the vocabulary file has no token {min(missing)}; it is not Chameleon's")
    codes = codes_by_name({name: id_ for name, id_ in names.items() if id_ < LUMINA_SIZE})
    return Vocabulary(
        text=text,
        codes=np.concatenate([codes, np.arange(LUMINA_SIZE, size)]),
        begin_of_text=names[BEGIN],
        end_of_turn=names[END_OF_TURN],
        start=names[START],
        end=names[END],
        newline=names[NEWLINE],
        size_base=names[FIRST_SIZE],
        unit=32,
        factor=factor,
        stages=(128, 256, 512),
        prompt_side=512,
        size=size,
        text_ids=np.array(
            sorted(
                id_
                for name, id_ in names.items()
                if id_ < LUMINA_SIZE and not _NO_TEXT.fullmatch(name)
            )
        ),
    )


def codes_by_name(names: Mapping[str, int]) -> np.ndarray:
    """The id of each code in a vocabulary file: IMGIMG, digits as letters (A is 0), Z.

    Errors: ValueError when the codes are not 0..K-1, each once.
    """
    ids = {}
    for name, id_ in names.items():
        if match := re.fullmatch(r"IMGIMG([A-J]+)Z", name):
            ids[int("".join(str(ord(letter) - ord("A")) for letter in match[1]))] = id_
    if not ids or sorted(ids) != list(range(len(ids))):
        raise ValueError(f"the vocabulary's {len(ids)} image codes are not numbered from 0 on")
    return np.array([ids[code] for code in range(len(ids))])
