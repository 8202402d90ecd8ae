"""Selection of training patches for the rollouts.

The paper only says "high-quality patches". This rule implements it:

    1. detail share at least `min_detail`           candidates of a flat patch hardly differ
    2. among the best share `best` of all scores    (`difficulty`: the worst share `worst`)
    3. best score first (`difficulty`: worst)       ties by id
    4. at most `max_per_photo` of one photograph
    5. no near-duplicate of a selected patch        perceptual hashes that differ in fewer than
                                                    `min_hash_distance` bits
    6. stop at `count`, unless null

    quality       the score is a no-reference metric of the HR patch
    difficulty    the score is a metric of NAOSD's output for the LR patch

`difficulty` follows IRPO (arXiv 2512.00814): the model to be post-trained evaluates the whole data
set, and training on the worst 30 % works best. IRPO's abstract and repository do not say which
metric ranks the samples. The default here is PSNR against the HR patch, the metric of IRPO's
results.

Every patch gets its score and the first rule that decided about it. All data are columns: 1.5
million patches take a few hundred MB.
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
_FIT = -1  # no rule has rejected the patch so far


def perceptual_hash(image: np.ndarray, side: int = 8) -> int:
    """Perceptual hash of side * side bits of uint8 (H, W, 3) RGB; 64 bits by default.

    Bit i says whether the i-th of the side x side lowest DCT coefficients, at four times as many
    pixels a side, exceeds their median.
    """
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(gray, (4 * side, 4 * side), interpolation=cv2.INTER_AREA)
    lowest = cv2.dct(small.astype(np.float32))[:side, :side].reshape(-1)
    # The median and not 0: half of the bits are set, whatever the image's contrast.
    bits = lowest > np.median(lowest)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


class NearDuplicates:
    """A set of hashes with exact search for one within less than `distance` of the 64 bits.

    Two hashes that differ in at most `distance` - 1 bits agree in at least one of `distance` bands
    of bits (pigeonhole principle). So the search compares only hashes with an equal band: 1.5
    million look-ups among 120,000 hashes take seconds, not hours.
    """

    def __init__(self, distance: int) -> None:
        self._distance = distance
        # With distance 0 there are no bands, so nothing is a near-duplicate.
        ends = [64 * band // max(distance, 1) for band in range(distance + 1)]
        self._bands = [
            (start, (1 << end - start) - 1, dict[int, list[int]]()) for start, end in pairwise(ends)
        ]

    def add(self, hash_: int) -> None:
        """Add a hash to the set."""
        for shift, mask, buckets in self._bands:
            buckets.setdefault(hash_ >> shift & mask, []).append(hash_)

    def has(self, hash_: int) -> bool:
        """Whether the set has a hash nearer than `distance` bits; never if `distance` is 0."""
        for shift, mask, buckets in self._bands:
            for other in buckets.get(hash_ >> shift & mask, ()):
                if (other ^ hash_).bit_count() < self._distance:
                    return True
        return False


def metric_of(rule: Select) -> str:
    """The name of the score that ranks the patches."""
    return rule.score if rule.rule == "quality" else rule.difficulty


def choose(patches: pa.Table, rule: Select, *, higher_is_better: bool) -> pa.Table:
    """Apply the rule to patches, a table with id, source, score, detail_share and hash.

    higher_is_better: of `metric_of(rule)`. Returns id, source, score, detail_share, hash,
    reason and rank (0 is the first selected, null if not selected), in the order given. ValueError
    if no patch is selected.
    """
    highest_first = higher_is_better == (rule.rule == "quality")
    # Lower cost means selected earlier, for every metric and rule.
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
    """The error message when no patch is selected, with the count of each reason."""
    flat, unscored, outside = (
        int((reasons == _CODE[reason]).sum()) for reason in (FLAT, UNSCORED, OUTSIDE)
    )
    key = "best" if rule.rule == "quality" else "worst"
    return (
        f"select: none of {len(reasons)} patches is fit, {flat} lie below select.min_detail = "
        f"{rule.min_detail:g}, "
        f"{unscored} have no {metric_of(rule)} score, {outside} are outside select.{key} = "
        f"{getattr(rule, key):g}; "
        f"lower select.min_detail or raise select.{key}"
    )


def _unfit(costs: np.ndarray, detail_shares: np.ndarray, rule: Select) -> np.ndarray:
    """Apply rules 1 and 2: int8 codes of `REASONS`, or `_FIT` for a patch that passes both."""
    # Where several reasons apply, the last assignment wins: rule 1 before rule 2.
    scored = np.isfinite(costs)
    reasons = np.full(len(costs), _FIT, dtype=np.int8)
    # The share is one of the patches that have a score: unscored ones must not widen it.
    reasons[costs > _bound(costs[scored], rule)] = _CODE[OUTSIDE]
    reasons[~scored] = _CODE[UNSCORED]
    reasons[detail_shares < rule.min_detail] = _CODE[FLAT]
    return reasons


def _bound(costs: np.ndarray, rule: Select) -> float:
    """The highest cost within the share: the k-th lowest of n, k = share * n rounded up."""
    share = rule.best if rule.rule == "quality" else rule.worst
    if share == 1 or not len(costs):
        return math.inf
    # round(): a floating-point error in share * n must not add one to k.
    last = math.ceil(round(share * len(costs), 6)) - 1
    return float(np.partition(costs, last)[last])


def _take(patches: pa.Table, costs: np.ndarray, reasons: np.ndarray, rule: Select) -> list[int]:
    """Apply rules 3 to 6 to the patches marked `_FIT`; returns the selected rows in rank order.

    Writes the reason of each of these patches into `reasons`.
    """
    fit = pa.array(np.flatnonzero(reasons == _FIT))
    columns = {"row": fit, "cost": costs[fit], "id": patches["id"].take(fit)}
    # By id where costs are equal: the order of the rows depends on parts, and the selection must
    # not.
    order = (
        pa.table(columns).sort_by([("cost", "ascending"), ("id", "ascending")])["row"].to_pylist()
    )
    # Photographs as numbers, because 1.5 million rows go through the loop below.
    photos = patches["source"].combine_chunks().dictionary_encode().indices.to_numpy()
    hashes = patches["hash"].to_numpy()
    taken: list[int] = []
    of_photo: Counter[int] = Counter()
    near = NearDuplicates(rule.min_hash_distance)
    for index in order:
        photo, hash_ = int(photos[index]), int(hashes[index])
        if len(taken) == rule.count:
            reason = SURPLUS
        # Before the search for near-duplicates, which costs most and mostly finds patches of the
        # same photograph.
        elif of_photo[photo] == rule.max_per_photo:
            reason = QUOTA
        elif near.has(hash_):
            reason = DUPLICATE
        else:
            reason = SELECTED
            near.add(hash_)
            taken.append(index)
            of_photo[photo] += 1
        reasons[index] = _CODE[reason]
    return taken


def manifest(table: pa.Table) -> pa.Table:
    """The selected patches of `choose`'s table, in rank order: id, score, detail_share."""
    return (
        table.filter(table["rank"].is_valid())
        .sort_by("rank")
        .select(["id", "score", "detail_share"])
    )
