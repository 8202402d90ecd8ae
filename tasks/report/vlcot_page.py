"""The page of RealSR-R1: its chains of thought as people read them, reward curves, scores.

thoughts     the centre of a few held-out pictures: LR, the words with right and wrong marked,
             the three images growing, HR; before and after GRPO
words_table  the constant answer, what a probe can see, and the models at several temperatures
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch

from gdpo.evaluate.statistics import paired_difference
from gdpo.images import resize_bicubic, to_uint8, write_png
from gdpo.vlcot.folder import Model
from gdpo.vlcot.parse import Parsed
from gdpo.vlcot.rewards import understanding_reward
from gdpo.vlcot.spoken import Cut, constant_terms, said, scores, share_right
from gdpo.vlcot.upscale import chains
from gdpo.vlcot.visible import probe
from tasks.report import tables
from tasks.report.tables import Cell, Table

PICTURES = 6
TEMPERATURES = (0.0, 0.7, 1.0)
LEVELS = ("rough", "middle", "final")


def thoughts(
    cuts: Sequence[Cut], models: dict[str, tuple[str, Model]], assets: Path, seed: int
) -> list[dict[str, Any]]:
    """What the template shows of each cut; writes the pictures to `assets`.

    models: {name: (label, model)}. The same seed for all models.
    """
    shown: list[dict[str, Any]] = []
    for number, one in enumerate(cuts):
        pictures = {
            which: _write(assets, f"{number:02d}-{which}", image)
            for which, image in (("lr", one.lr), ("hr", one.hr))
        }
        shown.append({"id": one.id, **pictures, "said": []})
    for name, (label, model) in models.items():
        seen = [resize_bicubic(one.lr, one.hr.shape[:2]) for one in cuts]
        keys = [(seed, "report", one.id) for one in cuts]
        for number, (one, chain) in enumerate(zip(cuts, chains(model, seen, keys), strict=True)):
            images = [
                None
                if codes is None
                else _write(assets, f"{number:02d}-{name}-{place}", _decoded(model, codes))
                for place, codes in enumerate(chain.images)
            ]
            shown[number]["said"].append({"label": label, **_marked(one, chain), "images": images})
    return shown


def _marked(one: Cut, chain: Parsed) -> dict[str, Any]:
    """The words of a chain: (term, whether it is right, what is right), (tag, whether it is named),
    captions.
    """
    said = [" ".join(t.split()) for t in chain.slots.get("degradation", "").split(",")]
    said += [""] * (len(one.terms) - len(said))
    rough = chain.slots.get("rough_understand")
    return {
        "terms": [
            (word or "nothing", word == true, true)
            for word, true in zip(said, one.terms, strict=False)
        ],
        "tags": [(tag, understanding_reward(rough, [tag]) == 1) for tag in one.tags],
        "captions": [(level, chain.slots.get(f"{level}_understand", "")) for level in LEVELS],
    }


def words_table(
    cuts: Sequence[Cut],
    models: dict[str, tuple[str, Model]],
    known: Sequence[tuple[np.ndarray, list[str]]],
    seed: int,
) -> Table:
    """Who answers, the share of right terms and of named tags, and the difference to the constant
    answer.

    known: LR images and terms of training pairs, for the constant answer and the probe of what is
    visible. Shares are means over the cuts; the difference is paired by cut.
    """
    true = [one.terms for one in cuts]
    terms = [one for _, one in known]
    constant = share_right([constant_terms(terms)] * len(cuts), true)
    seen = share_right(probe([lr for lr, _ in known], terms, [one.lr for one in cuts]), true)
    rows = [
        _row("Constant: each place’s most frequent term", constant, constant),
        _row("Probe of the LR pixels: at least this can be seen", seen, constant),
    ]
    for label, model in models.values():
        for temperature in TEMPERATURES:
            chains = said(model, cuts, seed, temperature=temperature)
            by_reward = scores(chains, cuts)
            name = f"{label}, " + ("greedy" if temperature == 0 else f"temperature {temperature}")
            rows.append(_row(name, by_reward["degradation"], constant, by_reward["understanding"]))
    caption = (
        f"Shares, means over {len(cuts)} pictures. Minus constant: paired by picture, with "
        "two-sided p of Student's t, not adjusted for the number of rows."
    )
    header = ["Answer", "Terms right", "Minus constant", "p", "Tags named"]
    return Table(caption, header, rows)


def _row(
    name: str, right: np.ndarray, constant: np.ndarray, tags: np.ndarray | None = None
) -> list[Cell]:
    difference = paired_difference(right[:, None], constant[:, None])
    same = right is constant
    return [
        Cell(name),
        Cell(tables.number(float(right.mean()), 3)),
        Cell(tables.number(None if same else difference.mean, 3, sign=True)),
        Cell(tables.p_text(None if same else difference.p)),
        Cell(tables.number(None if tags is None else float(tags.mean()), 3)),
    ]


def _decoded(model: Model, codes: np.ndarray) -> np.ndarray:
    device = model.tokenizer.codebook.device
    return to_uint8(model.tokenizer.decode(torch.from_numpy(codes)[None].to(device))[0])


def _write(assets: Path, name: str, image: np.ndarray) -> str:
    write_png(assets / f"images/{name}.png", np.ascontiguousarray(image))
    return quote(f"assets/images/{name}.png")
