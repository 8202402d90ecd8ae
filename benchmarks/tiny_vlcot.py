"""What the small RealSR-R1 that ships is worth, on held-out photographs.

    python benchmarks/tiny_vlcot.py assets/tiny-vlcot --known data/shards/train \
        --evaluation data/shards/evaluation

    tokenizer  HR squares of the last stage as codes and back, against the squares themselves
    words      squares of every picture: chains in the strict form, named tags, right terms beside
               the constant answer and a probe of the LR pixels
    image      whole pictures in tiles with wavelet colour correction, beside bicubic

The folders are those of `degrade`. Differences are paired by photograph, with Student's p.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from gdpo.color import color_fix
from gdpo.data.shards import Shards, enlarge
from gdpo.evaluate.statistics import paired_difference
from gdpo.images import to_tensor
from gdpo.metrics.score import score
from gdpo.vlcot.folder import Model, load_model
from gdpo.vlcot.spoken import constant_terms, cut, said, scores, share_right
from gdpo.vlcot.upscale import upscale
from gdpo.vlcot.visible import probe
from gdpo.vlcot.words import degradation_words

PLACES = (0.0, 1 / 3, 2 / 3, 1.0)  # of the squares of a picture, on both axes
METRICS = ["psnr_y", "niqe"]


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--known", type=Path, required=True)
    parser.add_argument("--evaluation", type=Path, required=True)
    parser.add_argument("--ranges", default="released", choices=["released", "real_esrgan"])
    parser.add_argument("--only", choices=["tokenizer", "words", "image"])
    args = parser.parse_args()
    model, pairs = load_model(args.model), Shards(args.evaluation)
    measured = {
        "tokenizer": lambda: tokenizer(model, pairs, args.ranges),
        "words": lambda: words(model, pairs, Shards(args.known), args.ranges),
        "image": lambda: image(model, pairs),
    }
    found = {name: of() for name, of in measured.items() if args.only in (None, name)}
    print(json.dumps({"pictures": len(pairs), **found}, indent=1))


def _cuts(model: Model, pairs: Shards, ranges: str, places: tuple[float, ...]) -> list:
    side, scale = model.vocabulary.stages[-1], model.card.scale
    return [
        cut(pairs[i], side, scale, ranges, (y, x))
        for i in range(len(pairs))
        for y in places
        for x in places
    ]


@torch.no_grad()
def tokenizer(model: Model, pairs: Shards, ranges: str) -> dict[str, float]:
    """Mean PSNR-Y and NIQE of central squares after codes, and the squares' own NIQE."""
    x = torch.stack([to_tensor(one.hr) for one in _cuts(model, pairs, ranges, (0.5,))])
    y = model.tokenizer.decode(model.tokenizer.encode(x))
    values = {name: float(v.mean()) for name, v in score(METRICS, y, x).items()}
    return {**values, "niqe_hr": float(score(["niqe"], x)["niqe"].mean())}


def words(model: Model, pairs: Shards, known: Shards, ranges: str) -> dict[str, object]:
    """Shares over the squares; differences over the pictures."""
    cuts, count = _cuts(model, pairs, ranges, PLACES), len(pairs)
    trained = [known[i] for i in range(len(known))]
    terms = [degradation_words(pair.degradation, ranges) for pair in trained]
    true = [one.terms for one in cuts]
    constant = share_right([constant_terms(terms)] * len(cuts), true)
    visible = share_right(
        probe([pair.lr for pair in trained], terms, [one.lr for one in cuts]), true
    )
    found: dict[str, object] = {
        "constant": float(constant.mean()),
        "visible": float(visible.mean()),
    }
    for temperature in (0.0, model.card.decoding.temperature, 0.9):
        values = scores(said(model, cuts, 0, temperature=temperature), cuts)
        right = values["degradation"]
        more = paired_difference(right.reshape(count, -1), constant.reshape(count, -1))
        gap = float(visible.mean() - constant.mean())
        found[f"temperature {temperature}"] = {
            "degradation": float(right.mean()),
            "more than constant": more.mean,
            "p": more.p,
            "share of the visible gap": float(right.mean() - constant.mean()) / gap,
            "tags": float(values["understanding"].mean()),
        }
    some = _cuts(model, pairs, ranges, PLACES[1:3])
    chains = said(model, some, 1, temperature=model.card.decoding.temperature, limit=None)
    found["strict format, free grammar"] = float(scores(chains, some)["format"].mean())
    return found


@torch.no_grad()
def image(model: Model, pairs: Shards) -> dict[str, object]:
    """PSNR-Y and NIQE of whole pictures after wavelet colour correction, less bicubic's."""
    rows: dict[str, list[np.ndarray]] = {"bicubic": [], "model": []}
    for i in range(len(pairs)):
        pair = pairs[i]
        hr = to_tensor(pair.hr)[None]
        bicubic = to_tensor(enlarge(pair.lr, pair.hr.shape[:2], "bicubic"))[None]
        output = color_fix("wavelet", upscale(model, [bicubic], [(0, pair.id)])[0][0], bicubic)
        for name, one in (("bicubic", bicubic), ("model", output.clamp(0, 1))):
            rows[name].append(np.array([float(v) for v in score(METRICS, one, hr).values()]))
    values = {name: np.stack(parts) for name, parts in rows.items()}
    found: dict[str, object] = {}
    for k, metric in enumerate(METRICS):
        a, b = values["model"][:, k : k + 1], values["bicubic"][:, k : k + 1]
        found[metric] = {
            "model": float(a.mean()),
            "bicubic": float(b.mean()),
            "difference": vars(paired_difference(a, b)),
        }
    return found


if __name__ == "__main__":
    main()
