"""What a small trunk sees of the LR image beside tokens: continuous features at every code.

    picture   the LR image, enlarged to the last stage
    table     row 0: of the whole picture, for text; then a row per code of each stage
              = features of the picture there + a learned vector of the place
    input     embedding of token t + table[place of token t + 1]

Codes of an LR image lose its noise and its exact colours, and attention needs long training to
find the code that lies at the same place. Paper and release have none of this: 7 billion parameters
learn it from codes alone.

Shapes: B pictures, L tokens, R rows of the table, D width.
"""

from collections.abc import Sequence
from functools import cache
from itertools import accumulate

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from gdpo.vlcot.vocabulary import Vocabulary

CHANNELS = 64


class Evidence(nn.Module):
    """The table of a picture.

    stages: sides of the images of a chain; factor: pixels a side of a code, of which every stage is
    a multiple and divides the last.
    """

    def __init__(self, stages: Sequence[int], factor: int, width: int) -> None:
        super().__init__()
        self.grids = [side // factor for side in stages]
        self.factor = factor
        self.first = nn.Conv2d(3 * factor**2, CHANNELS, 3, padding=1)
        self.second = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.third = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.out = nn.ModuleList(nn.Linear(CHANNELS, width) for _ in (0, *self.grids))
        self.places = nn.Parameter(torch.zeros(1 + sum(n * n for n in self.grids), width))

    def forward(self, picture_BCHW: torch.Tensor) -> torch.Tensor:
        """The table BRD of pictures in [0, 1] with the side of the last stage."""
        x = F.pixel_unshuffle(picture_BCHW * 2 - 1, self.factor)
        x = F.gelu(self.first(x))
        x = F.gelu(self.third(F.gelu(self.second(x))))
        parts = [x.mean((2, 3))[:, None]]
        for n in self.grids:
            parts.append(F.adaptive_avg_pool2d(x, n).flatten(2).transpose(1, 2))
        seen = [layer(part) for layer, part in zip(self.out, parts, strict=True)]
        return torch.cat(seen, dim=1) + self.places


def at(table_BRD: torch.Tensor, places_BL: torch.Tensor) -> torch.Tensor:
    """The rows of each table, BLD."""
    return table_BRD[torch.arange(len(table_BRD), device=places_BL.device)[:, None], places_BL]


def place(vocabulary: Vocabulary, segment: Sequence[int]) -> int:
    """The row of the table for the token after `segment`, the tokens of an image from its START on.

    0 where no code of a square stage follows.
    """
    if len(segment) < 3 or segment[1] != segment[2]:
        return 0
    n = vocabulary.sides[segment[1]] // vocabulary.factor
    y, x = divmod(len(segment) - 3, n + 1)
    return 0 if y >= n or x >= n else _first(vocabulary)[segment[1]] + y * n + x


def places(vocabulary: Vocabulary, tokens: np.ndarray) -> np.ndarray:
    """The row of the table for the token after each of `tokens`, int64 of the same length.

    Images are whole or cut at the end, as the grammar writes them.
    """
    table_rows = np.zeros(len(tokens), np.int64)
    for start in np.flatnonzero(tokens == vocabulary.start):
        head = tokens[start : start + 3]
        if len(head) < 3 or head[1] != head[2]:
            continue
        n = vocabulary.sides[int(head[1])] // vocabulary.factor
        rows = _first(vocabulary)[int(head[1])] + np.arange(n * n).reshape(n, n)
        line = np.concatenate([rows, np.zeros((n, 1), np.int64)], axis=1).reshape(-1)
        here = table_rows[start + 2 : start + 2 + len(line)]
        here[:] = line[: len(here)]
    return table_rows


def _first(vocabulary: Vocabulary) -> dict[int, int]:
    """{size token: the row of its stage's first code}."""
    return _firsts(tuple(vocabulary.stages), tuple(vocabulary.sides), vocabulary.factor)


@cache  # a sampler asks for each token
def _firsts(stages: tuple[int, ...], sides: tuple[int, ...], factor: int) -> dict[int, int]:
    counts = [(side // factor) ** 2 for side in stages]
    return dict(zip(sides, accumulate(counts[:-1], initial=1), strict=True))
