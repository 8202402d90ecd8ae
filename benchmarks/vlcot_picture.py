"""The picture of RealSR-R1 in the README: LR | words | the three images | HR, for squares of Kodak
pictures, by the model that ships.

python benchmarks/vlcot_picture.py        # reads assets/, writes docs/vlcot.webp

The degradation is drawn as in training, from a seed for each picture; one chain each, strict
grammar, seed 0. Green words are right, brown ones are not.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from gdpo.config import Degradation
from gdpo.data.degrade import draw, low_resolution
from gdpo.data.shards import Pair
from gdpo.images import read_photo, resize_bicubic, to_uint8
from gdpo.seeds import numpy_generator
from gdpo.vlcot.folder import Model, load_model
from gdpo.vlcot.spoken import Cut, cut
from gdpo.vlcot.upscale import chains

REPO = Path(__file__).resolve().parents[1]
SHOWN = {"kodim23": (0.25, 0.35), "kodim07": (0.5, 0.5), "kodim21": (0.35, 0.6)}  # square's place
SIDE, TEXT, GAP, HEAD = 192, 300, 8, 28
RIGHT, WRONG, PLAIN = "#1a704d", "#9a4d14", "#333333"


def main() -> None:
    """Draw and write the picture."""
    model = load_model(REPO / "assets/tiny-vlcot")
    cuts = [_cut(model, name, at) for name, at in SHOWN.items()]
    seen = [resize_bicubic(one.lr, one.hr.shape[:2]) for one in cuts]
    thoughts = chains(model, seen, [(0, "picture", one.id) for one in cuts])
    sides = model.vocabulary.stages
    heads = ["LR", "words", *(f"{side} pixels" for side in sides), "HR"]
    widths = [SIDE, TEXT, *(SIDE for _ in sides), SIDE]
    lefts = [sum(widths[:i]) + i * GAP for i in range(len(widths))]
    size = sum(widths) + GAP * (len(widths) - 1), HEAD + len(cuts) * (SIDE + GAP) - GAP
    canvas = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)
    for left, width, head in zip(lefts, widths, heads, strict=True):
        at = (left + width // 2, HEAD // 2)
        pen.text(at, head, fill="black", font=ImageFont.load_default(18), anchor="mm")
    for row, (one, thought) in enumerate(zip(cuts, thoughts, strict=True)):
        top = HEAD + row * (SIDE + GAP)
        pictures = [one.lr, None, *(_decoded(model, codes) for codes in thought.images), one.hr]
        for left, picture in zip(lefts, pictures, strict=True):
            if picture is not None:
                tile = Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.NEAREST)
                canvas.paste(tile, (left, top))
        _write_words(pen, lefts[1], top, one, thought.slots)
    canvas.save(REPO / "docs/vlcot.webp", quality=86, method=6)


def _cut(model: Model, name: str, at: tuple[float, float]) -> Cut:
    hr = read_photo(REPO / f"assets/photos/kodak/{name}.webp")
    drawn = draw(Degradation(), numpy_generator("vlcot picture", name))
    lr = low_resolution(hr.astype(np.float32) / 255, drawn)
    box = (0, 0, *hr.shape[:2])
    pair = Pair(name, name, box, hr, lr, drawn, detail_share=0.0)
    return cut(pair, model.vocabulary.stages[-1], model.card.scale, "released", at)


@torch.no_grad()
def _decoded(model: Model, codes: np.ndarray) -> np.ndarray:
    return to_uint8(model.tokenizer.decode(torch.from_numpy(codes)[None])[0])


def _write_words(
    pen: ImageDraw.ImageDraw, left: int, top: int, one: Cut, slots: dict[str, str]
) -> None:
    """The terms of the degradation, a line each, and the longest caption."""
    font, y = ImageFont.load_default(15), top
    said = [term.strip() for term in slots["degradation"].split(",")]
    for word, true in zip(said, one.terms, strict=True):
        line = word if word == true else f"{word} (it is {true})"
        pen.text((left, y), line, fill=RIGHT if word == true else WRONG, font=font)
        y += 19
    line = ""
    for word in [*slots["final_understand"].split(), None]:
        longer = f"{line} {word}".strip()
        if word is None or pen.textlength(longer, font=font) > TEXT:
            pen.text((left, y + 6), line, fill=PLAIN, font=font)
            y, line = y + 19, word or ""
        else:
            line = longer


if __name__ == "__main__":
    main()
