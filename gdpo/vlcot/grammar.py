"""Constrained decoding: which tokens may come next, one state machine per completion.

    image     START  H  W  (code x w  NEWLINE) x h  END; H and W are stages' sides, the rest follows
    free      text, START or END_OF_TURN outside an image: blocks and their order are the model's
    strict    the seven blocks in order, each image of its stage's size; text inside is the model's

    state = Free(vocabulary, limit) or Strict(vocabulary, limit)
    while not state.done:
        kind = state.allowed()      # FORCED (the token is state.forced), or a row of `table`
        state.push(token)

`kind` says which set a token is drawn from, so that training computes log-probabilities of the same
distribution. A forced token has probability 1 and takes no part in the loss.

Released code: no constraint outside an image, and any token may stand for a size. Here a token that
cannot mean anything is not in the set. Train free (the format reward then has variance), run
inference strict.
"""

from typing import Any, Literal, Protocol

import torch

from gdpo.vlcot.vocabulary import SLOTS, Vocabulary

FORCED = -1
OUTSIDE, SIDE, CODE, FIRST_WORD, WORD = range(5)  # rows of `table`; WORD + i: text of slot i
Mode = Literal["free", "strict"]


class State(Protocol):
    """One completion as it grows."""

    forced: int
    done: bool

    def allowed(self) -> int:
        """FORCED, with the token in `forced`, or the kind that the next token is drawn from."""
        ...

    def push(self, token: int) -> None:
        """Append a token that `allowed` permits."""
        ...


def initial_state(vocabulary: Vocabulary, mode: Mode, limit: int) -> State:
    """A new completion of at most `limit` tokens."""
    return Free(vocabulary, limit) if mode == "free" else Strict(vocabulary, limit)


def replay(vocabulary: Vocabulary, mode: Mode, tokens: list[int]) -> list[int]:
    """The kind of each token of a completion. Errors: ValueError for a token that is not allowed.

    For completions that were not sampled here, such as those of the cold start.
    """
    state, kinds = initial_state(vocabulary, mode, len(tokens) + 1), []
    sets = table(vocabulary)
    for place, token in enumerate(tokens):
        kind = FORCED if state.done else state.allowed()
        fits = state.forced == token if kind == FORCED else bool(sets[kind, token])
        if state.done or not fits:
            raise ValueError(f"token {place} of the completion ({token}) breaks the grammar")
        kinds.append(kind)
        state.push(token)
    return kinds


def table(vocabulary: Vocabulary) -> torch.Tensor:
    """(kinds, ids) bool: the ids of each kind.

    OUTSIDE: text, START, END_OF_TURN; SIDE: size tokens of the stages; CODE: image codes;
    FIRST_WORD: text without tags; WORD + i: the same, and what begins the closing tag of slot i.
    """
    voc, encode = vocabulary, vocabulary.text.encode
    allowed = torch.zeros(WORD + len(SLOTS), voc.size, dtype=torch.bool)
    allowed[[OUTSIDE, *range(FIRST_WORD, len(allowed))], torch.as_tensor(voc.text_ids)[:, None]] = (
        True
    )
    allowed[OUTSIDE, [voc.start, voc.end_of_turn]] = True
    allowed[SIDE, list(voc.sides)] = True
    allowed[CODE, torch.as_tensor(voc.codes)] = True
    for slot in SLOTS:
        # No tag inside a text: BPE may spell one in several tokens, of which the first is enough to
        # tell it.
        allowed[FIRST_WORD:, [encode(f"<{slot}>")[0], encode(f"</{slot}>")[0]]] = False
    for i, slot in enumerate(SLOTS):
        allowed[WORD + i, encode(f"</{slot}>")[0]] = True
    return allowed


class _Image:
    """An image segment after its START: sizes, then rows of codes.

    side: of both axes in pixels; None: the model chooses.
    """

    def __init__(self, vocabulary: Vocabulary, side: int | None) -> None:
        self.vocabulary, self.side = vocabulary, side
        self.count = self.height = self.width = self.forced = 0  # height and width in codes

    def allowed(self) -> int:
        voc, place = self.vocabulary, self.count - 2
        if place < 0:
            if self.side is None:
                return SIDE
            self.forced = voc.size_token(self.side)
        # After the last row, whose NEWLINE has been written: (codes + NEWLINE) x rows.
        elif place == self.height * (self.width + 1):
            self.forced = voc.end
        elif place % (self.width + 1) == self.width:
            self.forced = voc.newline
        else:
            return CODE
        return FORCED

    def push(self, token: int) -> bool:
        """Append a token; returns whether the segment has ended."""
        if self.count == 0:
            self.height = self.vocabulary.sides[token] // self.vocabulary.factor
        elif self.count == 1:
            self.width = self.vocabulary.sides[token] // self.vocabulary.factor
        self.count += 1
        return token == self.vocabulary.end


class Free:
    """Text and tags are the model's own; only the inside of an image is constrained."""

    def __init__(self, vocabulary: Vocabulary, limit: int) -> None:
        self.vocabulary, self.limit = vocabulary, limit
        self.image: _Image | None = None
        self.length, self.forced, self.done = 0, 0, False

    def allowed(self) -> int:
        """As `State.allowed`."""
        if self.image is None:
            return OUTSIDE
        kind = self.image.allowed()
        self.forced = self.image.forced
        return kind

    def push(self, token: int) -> None:
        """As `State.push`; a completion that reaches its limit is done, without END_OF_TURN."""
        self.length += 1
        if self.image is not None:
            self.image = None if self.image.push(token) else self.image
        elif token == self.vocabulary.start:
            self.image = _Image(self.vocabulary, None)
        self.done = token == self.vocabulary.end_of_turn or self.length >= self.limit


class Strict:
    """The seven blocks in order; a text has 1 to `words` tokens."""

    def __init__(self, vocabulary: Vocabulary, limit: int, words: int = 64) -> None:
        self.vocabulary, self.limit, self.words = vocabulary, limit, words
        self.steps = _script(vocabulary)
        self.step = self.offset = 0  # the step, and the tokens of it so far
        self.image: _Image | None = None
        self.length, self.forced, self.done = 0, 0, False

    def allowed(self) -> int:
        """As `State.allowed`."""
        kind, what = self.steps[self.step]
        if kind == "text":
            self.forced = self._closing
            # The first token of a text may not close it: an empty block would pass as a
            # description.
            inside = WORD + what if self.offset else FIRST_WORD
            # A model that never closes a text would use up the limit before it reaches an image.
            return FORCED if self.offset >= self.words else inside
        if kind == "tags":
            self.forced = what[self.offset]
            return FORCED
        if self.image is None:
            self.forced = self.vocabulary.start
            return FORCED
        of_image = self.image.allowed()
        self.forced = self.image.forced
        return of_image

    @property
    def _closing(self) -> int:
        """The token that ends the text of this step."""
        token: int = self.steps[self.step + 1][1][0]
        return token

    def push(self, token: int) -> None:
        """As `State.push`."""
        self.length += 1
        self.offset += 1
        kind, what = self.steps[self.step]
        if kind == "text" and self.offset > 1 and token == self._closing:
            self.step, self.offset = self.step + 1, 1
        elif kind == "tags" and self.offset == len(what):
            self.step, self.offset = self.step + 1, 0
        elif kind == "image":
            if self.image is None:
                self.image = _Image(self.vocabulary, what)
            elif self.image.push(token):
                self.image, self.step, self.offset = None, self.step + 1, 0
        self.done = self.step == len(self.steps) or self.length >= self.limit


def _script(vocabulary: Vocabulary) -> list[tuple[str, Any]]:
    """The steps of a strict completion.

    ("tags", forced tokens), ("text", slot's number), ("image", side in pixels). Between two
    contents, the closing and the opening tag are one step of at least two tokens.
    """
    encode = vocabulary.text.encode
    steps: list[tuple[str, Any]] = []
    sides, closing = list(vocabulary.stages), list[int]()
    for i, slot in enumerate(SLOTS):
        # Tag by tag, as examples are written: a tokenizer may join the end of one and the next.
        steps.append(("tags", [*closing, *encode(f"<{slot}>")]))
        steps.append(("image", sides.pop(0)) if slot.endswith("_image") else ("text", i))
        closing = encode(f"</{slot}>")
    return [*steps, ("tags", [*closing, vocabulary.end_of_turn])]
