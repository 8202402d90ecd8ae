"""How much of the degradation can be seen: a probe that reads the five terms from LR pixels.

    features   per plane (Y, Cb, Cr): logarithms of the energy of the 64 coefficients of the DCT of
               8 x 8 blocks, and of steps between neighbours inside blocks and across their edges
    probe      ridge regression from the features to each term, one of its words each; the answer is
               the word with the greatest value

JPEG's blocks begin at the first pixel of an LR image; that of a cut must begin at a block. The
probe's share of right terms is a lower bound of what can be seen: a better reader may see more. A
word that a probe cannot read better than the constant answer is one that a model cannot either be
asked for.
"""

from collections.abc import Sequence

import cv2
import numpy as np

BLOCK = 8
RIDGE = 10.0  # per standardised feature, in rows of data
_DCT = np.stack(
    [
        np.sqrt((1 if k == 0 else 2) / BLOCK) * np.cos(np.pi * (np.arange(BLOCK) + 0.5) * k / BLOCK)
        for k in range(BLOCK)
    ]
)


def probe(
    known: Sequence[np.ndarray],
    terms_NT: Sequence[Sequence[str]],
    images: Sequence[np.ndarray],
) -> list[list[str]]:
    """The terms of LR images `images`, by a probe fitted on `known`; uint8 (h, w, 3), sides >= 8.

    Images of different sizes are fine. Errors: ValueError if an image has no whole block.
    """
    x, y = _features(known), _features(images)
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, y = (np.c_[(part - mean) / std, np.ones(len(part))] for part in (x, y))
    solved = np.linalg.inv(x.T @ x + RIDGE * np.eye(x.shape[1])) @ x.T
    columns = []
    for place in zip(*terms_NT, strict=True):
        words = sorted(set(place))
        target = np.array([[word == true for word in words] for true in place], float)
        columns.append([words[i] for i in (y @ (solved @ target)).argmax(1)])
    return [list(terms) for terms in zip(*columns, strict=True)]


def _features(images: Sequence[np.ndarray]) -> np.ndarray:
    rows = []
    for image in images:
        if min(image.shape[:2]) < BLOCK:
            raise ValueError(f"an LR image must have sides of at least {BLOCK}, got {image.shape}")
        planes = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2YCrCb).astype(float)
        rows.append(np.concatenate([_of_plane(planes[..., i]) for i in range(3)]))
    return np.array(rows)


def _of_plane(plane: np.ndarray) -> np.ndarray:
    height, width = (side // BLOCK * BLOCK for side in plane.shape)
    blocks = plane[:height, :width].reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    coefficients = np.einsum("ki,aibj,lj->abkl", _DCT, blocks - 128.0, _DCT)
    energy = np.square(coefficients).mean((0, 1)).reshape(-1)
    small = (np.abs(coefficients) < 2.0).mean((0, 1)).reshape(-1)
    steps = []
    for one in (plane, plane.T):
        step = np.abs(np.diff(one, axis=0)).mean(1)
        edge = np.arange(len(step)) % BLOCK == BLOCK - 1
        steps += [step[~edge].mean(), step[edge].mean() if edge.any() else step.mean()]
    return np.concatenate([np.log(energy + 0.1), small, np.log(np.array(steps) + 0.1)])
