"""Stage `select`: the training patches worth a rollout -> data/selected/{manifest,scores}.parquet and report.json.

manifest.parquet refers to pairs by id, best first; scores.parquet has every patch with its score and the reason.
The rule is stated in gdpo/data/selection.py.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from gdpo.config import Config, Select
from gdpo.data.selection import choose, manifest, perceptual_hash
from gdpo.data.shards import Shards
from gdpo.rewards.metrics import check_available, higher_is_better, score
from gdpo.training import Hooks, Stopped, written_aside

BATCH = 32


def run(config: Config, root: Path, hooks: Hooks) -> None:
    """Score every training patch and write the selection. ValueError if no patch is fit, or a shard is damaged."""
    rule = config.select
    check_available([rule.score])
    table = _table(Shards(root / "data/shards/train"), rule, hooks)
    with written_aside(root / "data/selected") as part:
        part.mkdir()
        pq.write_table(table, part / "scores.parquet")
        pq.write_table(manifest(table), part / "manifest.parquet")
        (part / "report.json").write_text(json.dumps(_report(table, rule), indent=1) + "\n")


def _table(shards: Shards, rule: Select, hooks: Hooks) -> pa.Table:
    """Read, hash and score all patches, then apply the rule."""
    sources: list[str] = []
    shares: list[float] = []
    hashes: list[int] = []
    scores: list[float] = []
    for start in range(0, len(shards), BATCH):
        if hooks.should_stop():
            raise Stopped(start)
        pairs = [shards[i] for i in range(start, min(start + BATCH, len(shards)))]
        sources += [pair.source for pair in pairs]
        shares += [pair.detail_share for pair in pairs]
        hashes += [perceptual_hash(pair.hr) for pair in pairs]
        hr_BCHW = torch.from_numpy(np.stack([pair.hr for pair in pairs])).movedim(-1, 1).float() / 255
        scores += score([rule.score], hr_BCHW, None)[rule.score].tolist()
        hooks.log(len(scores), {"patches": float(len(scores))})
    return choose(shards.ids, sources, scores, shares, hashes, rule, higher_is_better=higher_is_better(rule.score))


def _report(table: pa.Table, rule: Select) -> dict[str, object]:
    """Counts by reason and by photograph; says so if fewer passed than were asked for."""
    rows = table.select(["reason", "source"]).to_pylist()
    reasons = Counter(row["reason"] for row in rows)
    selected = reasons["selected"]
    note = f"{selected} of the {rule.count} patches asked for by select.count pass the rule"
    return {
        "rule": rule.model_dump(),
        "patches": table.num_rows,
        "selected": selected,
        "note": note if selected < rule.count else "",
        "reasons": dict(sorted(reasons.items())),
        "photographs": dict(sorted(Counter(row["source"] for row in rows if row["reason"] == "selected").items())),
    }
