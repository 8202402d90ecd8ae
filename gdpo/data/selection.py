"""Which patches are worth a rollout. The paper says "high-quality patches" only; this is the rule
made of it:

    1. detail share at least `min_detail`           a flat patch has nothing to tell candidates
                                                    apart by
    2. among the best share `best` of all scores    (`difficulty`: the worst share `worst`)
    3. best score first (`difficulty`: worst)       ties by id
    4. at most `max_per_photo` of one photograph
    5. no near-duplicate of one already taken       perceptual hashes that differ in less than
                                                    `min_hash_distance` bits
    6. stop at `count`, if there is one

    quality       the score is a no-reference metric of the HR patch
    difficulty    the score is a metric of NAOSD's output for the LR patch

`difficulty` is IRPO's finding (arXiv 2512.00814: the model to be post-trained evaluates the whole
data set, and training on the 30 % it does worst on is best) within this rule. Which measure ranks
is not in IRPO's abstract or repository; PSNR against the HR patch, in which it reports its results,
is the default here.

Every patch gets its score and the first rule that decided about it. All of it works on columns: 1.5
million patches are some hundred MB.
"""

import math
from collections import Counter
from itertools import pairwise

import cv2
import numpy as np
import pyarrow as pa

from gdpo.config import Select

SELECTED, FLAT, UNSCORED, OUTSIDE, QUOTA, DUPLICATE, SURPLUS = REASONS = (
    "selected",
    "too little detail",
    "no score",
    "score outside the share",
    "photograph's quota is full",
    "near-duplicate",
    "count is reached",
)
_CODE = {reason: code for code, reason in enumerate(REASONS)}
_FIT = -1  # no rule has refused it so far


def perceptual_hash(image: np.ndarray) -> int:
    """64-bit hash of uint8 (H, W, 3) RGB: which of the 8x8 lowest DCT coefficients at 32x32 lie
    above their median.
    """
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(gray, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    lowest = cv2.dct(small)[:8, :8].reshape(-1)
    bits = lowest > np.median(lowest)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


class NearDuplicates:
    """Hashes taken so far; exact search for one that differs from a new one in less than `distance`
    of the 64 bits.

    Two hashes that differ in at most `distance` - 1 bits agree in at least one of `distance` bands
    of bits (pigeonhole). So only the hashes with an equal band are compared: 1.5 million look-ups
    among 120,000 take seconds, not hours.
    """

    def __init__(self, distance: int) -> None:
        self._distance = distance
        ends = [64 * band // max(distance, 1) for band in range(distance + 1)]
        self._bands = [
            (start, (1 << end - start) - 1, dict[int, list[int]]()) for start, end in pairwise(ends)
        ]

    def add(self, hash_: int) -> None:
        """Take a hash."""
        for shift, mask, buckets in self._bands:
            buckets.setdefault(hash_ >> shift & mask, []).append(hash_)

    def has(self, hash_: int) -> bool:
        """Whether one of those taken is nearer than `distance`; never if `distance` is 0."""
        for shift, mask, buckets in self._bands:
            for other in buckets.get(hash_ >> shift & mask, ()):
                if (other ^ hash_).bit_count() < self._distance:
                    return True
        return False


def choose(patches: pa.Table, rule: Select, *, higher_is_better: bool) -> pa.Table:
    """Apply the rule to patches, a table with id, source, score, detail_share and hash.

    higher_is_better: of the metric `rule.metric`. Returns id, source, score, detail_share, hash,
    reason, rank (null if not selected; 0 is taken first), in the order given. ValueError if nothing
    is selected.
    """
    highest_first = higher_is_better == (rule.rule == "quality")
    # Costs: the least is taken first, whatever the metric and the rule.
    costs = patches["score"].to_numpy() * (-1.0 if highest_first else 1.0)
    reasons = _unfit(costs, patches["detail_share"].to_numpy(), rule)
    taken = _take(patches, costs, reasons, rule)
    if not taken:
        raise ValueError(_nothing(reasons, rule))
    rank = np.zeros(len(costs), dtype=np.int32)
    rank[taken] = np.arange(len(taken))
    reason = pa.DictionaryArray.from_arrays(reasons, pa.array(REASONS)).cast(pa.string())
    return pa.table(
        {
            **{name: patches[name] for name in ("id", "source", "score", "detail_share", "hash")},
            "reason": reason,
            "rank": pa.array(rank, mask=reasons != _CODE[SELECTED]),
        }
    )


def _nothing(reasons: np.ndarray, rule: Select) -> str:
    """Why no patch is selected."""
    flat, unscored, outside = (
        int((reasons == _CODE[reason]).sum()) for reason in (FLAT, UNSCORED, OUTSIDE)
    )
    key = "best" if rule.rule == "quality" else "worst"
    return (
        f"select: none of {len(reasons)} patches is fit, {flat} lie below select.min_detail = "
        f"{rule.min_detail:g}, "
        f"{unscored} have no {rule.metric} score, {outside} are outside select.{key} = "
        f"{getattr(rule, key):g}; "
        f"lower select.min_detail or raise select.{key}"
    )


def _unfit(costs: np.ndarray, detail_shares: np.ndarray, rule: Select) -> np.ndarray:
    """What the rules 1 and 2 say, as int8 codes of `REASONS`; `_FIT` for a patch that passes
    both.
    """
    scored = np.isfinite(costs)
    reasons = np.full(len(costs), _FIT, dtype=np.int8)
    reasons[costs > _bound(costs[scored], rule)] = _CODE[OUTSIDE]
    reasons[~scored] = _CODE[UNSCORED]
    reasons[detail_shares < rule.min_detail] = _CODE[FLAT]
    return reasons


def _bound(costs: np.ndarray, rule: Select) -> float:
    """The highest cost inside the share: the k-th lowest of n, k = share * n rounded up."""
    share = rule.best if rule.rule == "quality" else rule.worst
    if share == 1 or not len(costs):
        return math.inf
    last = math.ceil(round(share * len(costs), 6)) - 1
    return float(np.partition(costs, last)[last])


def _take(patches: pa.Table, costs: np.ndarray, reasons: np.ndarray, rule: Select) -> list[int]:
    """Go through the fit patches by the rules 3 to 6, note each one's reason in `reasons`; returns
    the taken rows in order.
    """
    fit = pa.array(np.flatnonzero(reasons == _FIT))
    columns = {"row": fit, "cost": costs[fit], "id": patches["id"].take(fit)}
    order = (
        pa.table(columns).sort_by([("cost", "ascending"), ("id", "ascending")])["row"].to_pylist()
    )
    photos = patches["source"].combine_chunks().dictionary_encode().indices.to_numpy()
    hashes = patches["hash"].to_numpy()
    taken: list[int] = []
    of_photo: Counter[int] = Counter()
    near = NearDuplicates(rule.min_hash_distance)
    for row in order:
        photo, hash_ = int(photos[row]), int(hashes[row])
        if len(taken) == rule.count:
            reason = SURPLUS
        elif of_photo[photo] == rule.max_per_photo:
            reason = QUOTA
        elif near.has(hash_):
            reason = DUPLICATE
        else:
            reason = SELECTED
            near.add(hash_)
            taken.append(row)
            of_photo[photo] += 1
        reasons[row] = _CODE[reason]
    return taken


def manifest(table: pa.Table) -> pa.Table:
    """The selected patches of `choose`'s table, in rank order: id, score, detail_share."""
    return (
        table.filter(table["rank"].is_valid())
        .sort_by("rank")
        .select(["id", "score", "detail_share"])
    )
