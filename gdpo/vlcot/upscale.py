"""Super-resolution by chains of thought: a picture of any size, in tiles of the last stage.

    x        the LR image enlarged to the size of the result, cut into tiles that overlap
    prompt   the tile as codes
    chain    sampled under the strict grammar, seeded by (key, tile)
    image    the last image of each chain, blended; a chain that reached its limit leaves the
             enlarged tile

    images, texts = upscale(model, pictures, keys)

Shapes: C H W a picture.
"""

from collections.abc import Callable, Sequence
from math import ceil

import numpy as np
import torch
import torch.nn.functional as F

from gdpo.images import to_tensor, to_uint8
from gdpo.seeds import Key
from gdpo.tiling import Axis, Window, blend
from gdpo.vlcot.examples import prompt
from gdpo.vlcot.folder import Model
from gdpo.vlcot.parse import Parsed, parse
from gdpo.vlcot.sampler import Sampling, sample
from gdpo.vlcot.vocabulary import SLOTS

BATCH = 200  # chains at a time
DECODED = 25  # images at a time: the activations of all at once cost twice the time of a CPU
OVERLAP = 4  # neighbouring tiles share this part of a side, or more: 1 / OVERLAP


@torch.no_grad()
def upscale(
    model: Model,
    pictures: Sequence[torch.Tensor],
    keys: Sequence[Key],
    on_tile: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[torch.Tensor], list[str]]:
    """A sample of each picture, 1CHW in [0, 1], and its chain of thought as text.

    pictures: 1CHW in [0, 1], enlarged to the size of the result; they may differ in size. keys: of
    each. on_tile: called with (done, total).
    """
    side = model.vocabulary.stages[-1]
    padded = [_padded(picture.cpu(), side) for picture in pictures]
    axes = [(_axis(x.shape[2], side), _axis(x.shape[3], side)) for x in padded]
    windows = [
        [Window(top, left, side, side) for top in rows.starts for left in columns.starts]
        for rows, columns in axes
    ]
    # Tiles of all pictures and samples are one list: a batch costs little more than a chain.
    jobs = [(i, tile) for i, found in enumerate(windows) for tile in range(len(found))]
    thoughts: list[Parsed] = []
    tiles: list[torch.Tensor] = []
    for first in range(0, len(jobs), BATCH):
        part = jobs[first : first + BATCH]
        cuts = [windows[i][tile].cut(padded[i], 1) for i, tile in part]
        seeds = [(*keys[i], tile) for i, tile in part]
        batch = chains(model, [to_uint8(cut[0]) for cut in cuts], seeds)
        thoughts += batch
        tiles += [
            # The enlarged input where a chain gave no image: a hole in a photograph is worse than a
            # blurred tile.
            cut if image is None else image
            for cut, image in zip(cuts, _images(model, batch), strict=True)
        ]
        for done in range(first, first + len(part)):
            on_tile(done + 1, len(jobs))
    images, texts, place = [], [], 0
    for picture, both, found in zip(pictures, axes, windows, strict=True):
        mine = slice(place, place := place + len(found))
        by_window = dict(zip(found, tiles[mine], strict=True))
        height, width = picture.shape[2:]
        whole = blend(*both, 1, by_window.__getitem__)
        images.append(whole[..., :height, :width].clamp(0, 1))
        texts.append(_text(thoughts[mine]))
    return images, texts


def _padded(x: torch.Tensor, side: int) -> torch.Tensor:
    """The picture at least `side` pixels a side: reflected, or its edge repeated if too small."""
    bottom, right = (max(0, side - n) for n in x.shape[2:])
    if not bottom and not right:
        return x
    reflects = bottom < x.shape[2] and right < x.shape[3]
    return F.pad(x, (0, right, 0, bottom), mode="reflect" if reflects else "replicate")


def _axis(length: int, side: int) -> Axis:
    """Tiles of exactly `side` pixels, evenly spaced."""
    overlap = side // OVERLAP
    gaps = ceil((length - side) / (side - overlap))
    starts = tuple(i * (length - side) // max(gaps, 1) for i in range(gaps + 1))
    return Axis(starts, side, overlap / 2)


def chains(model: Model, pictures: Sequence[np.ndarray], keys: Sequence[Key]) -> list[Parsed]:
    """A chain of thought for each enlarged LR image, seeded by its key, as the card says.

    pictures: uint8 (S, S, 3) of the last stage's side.
    """
    decoding = model.card.decoding
    prompts = [prompt(one, model.vocabulary, model.tokenizer) for one in pictures]
    sampling = Sampling(
        # All prompts of a batch have one length, because tiles have one size.
        limit=model.card.positions - len(prompts[0]),
        mode="strict",
        temperature=decoding.temperature,
        guidance=decoding.guidance,
        text_top_k=decoding.text_top_k,
        image_top_k=decoding.image_top_k,
    )
    device = model.trunk.lm_head.weight.device
    ids = torch.tensor(prompts, device=device)
    views = torch.stack([to_tensor(one) for one in pictures]).to(model.trunk.lm_head.weight)
    completions = sample(model.trunk, model.vocabulary, ids, keys, sampling, views)
    return [parse(completion.tokens, model.vocabulary) for completion in completions]


def _images(model: Model, parsed: list[Parsed]) -> list[torch.Tensor | None]:
    """The last image of each chain, 1CHW; None where it has none of the right size."""
    side = model.vocabulary.stages[-1] // model.vocabulary.factor
    images: list[torch.Tensor | None] = [None] * len(parsed)
    whole = [
        (i, chain.result)
        for i, chain in enumerate(parsed)
        if chain.result is not None and chain.result.shape == (side, side)
    ]
    if whole:
        codes = torch.from_numpy(np.stack([codes for _, codes in whole]))
        parts = codes.to(model.tokenizer.codebook.device).split(DECODED)
        decoded = torch.cat([model.tokenizer.decode(part).cpu() for part in parts])
        for (i, _), image in zip(whole, decoded, strict=True):
            images[i] = image[None]
    return images


def _text(parsed: list[Parsed]) -> str:
    """The words of a picture's chains, one slot a line; of several tiles, each under its number."""
    blocks = []
    for number, chain in enumerate(parsed):
        lines = [f"{slot}: {chain.slots.get(slot, '')}" for slot in SLOTS if "_image" not in slot]
        blocks += [*([f"tile {number + 1} of {len(parsed)}"] if len(parsed) > 1 else []), *lines]
    return "\n".join(blocks)
