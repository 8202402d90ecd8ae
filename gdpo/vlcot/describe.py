"""Understanding at three levels, and tags: from pixels (tiny profile) or from given captions.

    rough    "a dark smooth picture, mostly green and blue"; tags: its content words
    middle   rough + "with strong contrast and horizontal lines"
    final    middle + "brighter at the top, most detail at the left"

The describer of pixels is deterministic and has a fixed list of words (`WORDS`); it replaces
LLaVA's captions and RAM's tags, which the paper profile has as data (`given`). The paper's three
captions are of the photograph at a quarter, a half and full size; its tags come from Grounded-SAM.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from gdpo.metrics.fidelity import YCBCR

LIGHT = ("dark", "dim", "bright")
TEXTURE = ("smooth", "textured", "busy")
CONTRAST = ("weak", "medium", "strong")
LINES = ("no", "horizontal", "vertical", "slanted")
PLACES = ("top", "bottom", "left", "right", "middle")
COLOURS = ("black", "gray", "white", "red", "brown", "yellow", "green", "blue", "purple")
WORDS = (
    *LIGHT,
    *TEXTURE,
    *CONTRAST,
    *LINES,
    *PLACES,
    *COLOURS,
    *("a", "picture", "mostly", "and", "with", "contrast", "lines"),
    *("brighter", "at", "the", "most", "detail"),
)
GRID = 16  # colours are those of a picture of this many pixels a side
LEAST = 0.15  # share of the picture that a second or third colour has at least
# Edges of the levels, so that each holds about a third of 64-pixel crops of photographs.
LIGHT_EDGES = (0.35, 0.55)  # mean luma, 0..1
TEXTURE_EDGES = (0.033, 0.063)  # mean step of luma between neighbours
CONTRAST_EDGES = (0.096, 0.175)  # standard deviation of luma
COHERENCE = 0.25  # least coherence of the structure tensor for a direction


@dataclass(frozen=True)
class Understanding:
    """The three texts of a picture, from coarse to fine, and its tags."""

    rough: str
    middle: str
    final: str
    tags: tuple[str, ...]


def describe(image: np.ndarray) -> Understanding:
    """The understanding of a uint8 (H, W, 3) RGB picture, from its pixels."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"image must be uint8 (H, W, 3), got {image.dtype} {image.shape}")
    # Without the offset of 16 and over the 219 levels of video range: 0..1.
    luma = (image @ np.array(YCBCR[:3]) / 255 / 219).astype(np.float32)
    light = _word(float(luma.mean()), LIGHT_EDGES, LIGHT)
    step_y, step_x = np.gradient(luma) if min(luma.shape) > 1 else (luma * 0, luma * 0)
    steps = np.abs(step_y) + np.abs(step_x)
    texture = _word(float(steps.mean()), TEXTURE_EDGES, TEXTURE)
    colours = _colours(image)
    contrast = _word(float(luma.std()), CONTRAST_EDGES, CONTRAST)
    rough = f"a {light} {texture} picture, mostly {' and '.join(colours)}"
    middle = f"{rough}, with {contrast} contrast and {_lines(step_y, step_x)} lines"
    places = f"brighter at the {_place(luma)}, most detail at the {_place(steps)}"
    return Understanding(rough, middle, f"{middle}, {places}", (light, texture, *colours))


def given(name: str, captions: Mapping[str, str], tags: str) -> Understanding:
    """The understanding of a picture whose captions and tags are data (paper profile).

    captions: rough, middle, final. tags: a comma list (RAM's); may be empty. Errors: ValueError
    naming the picture and the caption that is missing or empty.
    """
    for level in ("rough", "middle", "final"):
        if not captions.get(level, "").strip():
            raise ValueError(f"{name}: no {level} caption; give one for every picture")
    rough, middle, final = (
        " ".join(captions[level].split()) for level in ("rough", "middle", "final")
    )
    return Understanding(
        rough, middle, final, tuple(t for t in map(str.strip, tags.split(",")) if t)
    )


def _word(value: float, edges: tuple[float, float], words: tuple[str, ...]) -> str:
    return words[sum(value >= edge for edge in edges)]


def _colours(image: np.ndarray) -> list[str]:
    """The most frequent colour, and up to two more that are frequent; most frequent first."""
    small = cv2.resize(image, (GRID, GRID), interpolation=cv2.INTER_AREA)
    hue, saturation, value = cv2.cvtColor(small, cv2.COLOR_RGB2HSV).reshape(-1, 3).T.astype(int)
    # OpenCV's hue: 0..179. Red goes round; dark orange is brown.
    names = np.select(
        [hue < 8, hue < 23, hue < 35, hue < 85, hue < 130, hue < 160],
        ["red", "brown", "yellow", "green", "blue", "purple"],
        "red",
    )
    gray = np.select([value < 80, value > 190], ["black", "white"], "gray")
    names = np.where((saturation < 50) | (value < 40), gray, names)
    shares = {colour: float((names == colour).mean()) for colour in COLOURS}
    # Ties by the order of the list: the same pixels give the same words on every machine.
    ranked = sorted(COLOURS, key=lambda colour: (-shares[colour], COLOURS.index(colour)))
    return [c for i, c in enumerate(ranked[:3]) if i == 0 or shares[c] >= LEAST]


def _lines(step_y: np.ndarray, step_x: np.ndarray) -> str:
    """The direction of most edges, from the structure tensor of the whole picture."""
    xx, yy, xy = (
        float((a * b).mean()) for a, b in ((step_x, step_x), (step_y, step_y), (step_x, step_y))
    )
    # The difference of the tensor's eigenvalues over their sum: near 0 where edges have no common
    # direction.
    if np.hypot(xx - yy, 2 * xy) < COHERENCE * (xx + yy) or xx + yy == 0:
        return "no"
    if abs(2 * xy) > abs(xx - yy):
        return "slanted"
    return "vertical" if xx > yy else "horizontal"


def _place(values: np.ndarray) -> str:
    """The part of the picture (a half, or the middle) with the highest mean."""
    height, width = values.shape
    y, x = max(height // 2, 1), max(width // 2, 1)
    parts = [values[:y], values[-y:], values[:, :x], values[:, -x:]]
    parts.append(values[height // 4 : height - height // 4, width // 4 : width - width // 4])
    return PLACES[int(np.argmax([part.mean() for part in parts]))]
