"""Which patches are worth a rollout. The paper says "high-quality patches" only; this is the rule made of it:

    1. detail share at least `min_detail`           a flat patch has nothing to tell candidates apart by
    2. best no-reference score first                ties by id
    3. at most `max_per_photo` of one photograph
    4. no near-duplicate of one already taken       perceptual hashes that differ in less than `min_hash_distance` bits
    5. stop at `count`

Every patch gets its score and the first rule that decided about it.
"""

import math
from collections import Counter
from collections.abc import Sequence

import cv2
import numpy as np
import pyarrow as pa

from gdpo.config import Select

SELECTED, FLAT, UNSCORED, QUOTA, DUPLICATE, SURPLUS = (
    "selected",
    "too little detail",
    "no score",
    "photograph's quota is full",
    "near-duplicate",
    "count is reached",
)


def perceptual_hash(image: np.ndarray) -> int:
    """64-bit hash of uint8 (H, W, 3) RGB: which of the 8x8 lowest DCT coefficients at 32x32 lie above their median."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(gray, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    lowest = cv2.dct(small)[:8, :8].reshape(-1)
    bits = lowest > np.median(lowest)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def choose(
    ids: Sequence[str],
    sources: Sequence[str],
    scores: Sequence[float],
    detail_shares: Sequence[float],
    hashes: Sequence[int],
    rule: Select,
    *,
    higher_is_better: bool,
) -> pa.Table:
    """Apply the rule to N patches, given by columns of equal length.

    Returns the table id, source, score, detail_share, hash, reason, rank (null if not selected; 0 is the best), in the
    order given. ValueError if nothing is selected.
    """
    sign = -1 if higher_is_better else 1
    reasons = [_unfit(score, share, rule) for score, share in zip(scores, detail_shares, strict=True)]
    ranked = sorted((i for i, reason in enumerate(reasons) if not reason), key=lambda i: (sign * scores[i], ids[i]))
    ranks: list[int | None] = [None] * len(ids)
    taken: Counter[str] = Counter()
    kept = np.empty(min(rule.count, len(ids)), dtype=np.uint64)
    for i in ranked:
        number = taken.total()
        reasons[i] = _refusal(hashes[i], kept[:number], taken[sources[i]], rule)
        if reasons[i] == SELECTED:
            kept[number] = hashes[i]
            ranks[i] = number
            taken[sources[i]] += 1
    if not taken:
        raise ValueError(
            f"select: none of {len(ids)} patches is fit, {reasons.count(FLAT)} lie below select.min_detail = "
            f"{rule.min_detail:g}, {reasons.count(UNSCORED)} have no {rule.score} score; lower select.min_detail"
        )
    return pa.table(
        {
            "id": pa.array(ids, pa.string()),
            "source": pa.array(sources, pa.string()),
            "score": pa.array(scores, pa.float64()),
            "detail_share": pa.array(detail_shares, pa.float64()),
            "hash": pa.array(hashes, pa.uint64()),
            "reason": pa.array(reasons, pa.string()),
            "rank": pa.array(ranks, pa.int32()),
        }
    )


def _unfit(score: float, detail_share: float, rule: Select) -> str:
    if detail_share < rule.min_detail:
        return FLAT
    return "" if math.isfinite(score) else UNSCORED


def _refusal(hash_: int, kept: np.ndarray, of_photo: int, rule: Select) -> str:
    """What the rules 3 to 5 say about a patch whose turn it is: `SELECTED`, or why not."""
    if len(kept) == rule.count:
        return SURPLUS
    if of_photo == rule.max_per_photo:
        return QUOTA
    if len(kept) and int(np.bitwise_count(kept ^ np.uint64(hash_)).min()) < rule.min_hash_distance:
        return DUPLICATE
    return SELECTED


def manifest(table: pa.Table) -> pa.Table:
    """The selected patches of `choose`'s table, best first: id, score, detail_share."""
    return table.filter(table["rank"].is_valid()).sort_by("rank").select(["id", "score", "detail_share"])
