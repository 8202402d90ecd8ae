"""Stage `select`: chooses the training patches for rollouts ->
data/selected/{manifest,scores}.parquet and report.json.

manifest.parquet lists the ids of the selected pairs in order of rank. scores.parquet has every
patch with its score and the reason for the decision. gdpo/data/selection.py states the rule. Scores
stay in work/select until the stage is done, so after a stop or a kill the same command resumes.
Outputs are put in place only after they pass their checks.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from gdpo.config import Config, Select
from gdpo.data.selection import SELECTED, choose, manifest, metric_of, perceptual_hash
from gdpo.data.shards import Pair, Shards
from gdpo.files import written_aside
from gdpo.hooks import Hooks, Stopped
from gdpo.items import ItemStore
from gdpo.metrics.score import check_available, higher_is_better, score, versions
from tasks import paths
from tasks.checks.tables import check_selection
from tasks.files.selection import MANIFEST, SCORES
from tasks.run.fingerprint import inputs_of, model_fingerprint, prompts_of
from tasks.run.training import device

BATCH = 32
KEEP_EVERY = 2048  # patches; a kill loses at most this many scores
SCORED = pa.schema(
    {
        "source": pa.string(),
        "score": pa.float64(),
        "detail_share": pa.float64(),
        "hash": pa.uint64(),
    },
)
Scorer = Callable[[list[Pair]], list[float]]


def run(config: Config, root: Path, hooks: Hooks) -> None:
    """Score every training patch and write the selection.

    Errors: ValueError if no patch qualifies, a shard is damaged, or the selection fails its checks;
    `Stopped` between batches.
    """
    rule = config.select
    check_available([metric_of(rule)])
    shards = Shards(root / paths.TRAIN)
    inputs = _inputs(shards, config, root)
    kept = ItemStore(paths.work(root, "select") / "scored", inputs, "*.parquet")
    patches = _scored(shards, config, root, kept, hooks).add_column(
        0, "id", pa.array(shards.ids, pa.string())
    )
    table = choose(patches, rule, higher_is_better=higher_is_better(metric_of(rule)))
    with written_aside(root / paths.SELECTED) as part:
        part.mkdir()
        pq.write_table(table, part / SCORES)
        pq.write_table(manifest(table), part / MANIFEST)
        (part / paths.STAGE_REPORT).write_text(json.dumps(_report(table, rule), indent=1) + "\n")
        # Inside the block: a selection that fails its checks never replaces the last good one.
        check_selection(part, root, rule)
    kept.remove()


def _scored(shards: Shards, config: Config, root: Path, kept: ItemStore, hooks: Hooks) -> pa.Table:
    """Source, score, detail share and hash of all patches; reuses an interrupted run's scores."""
    kept.open()
    tables = list(_kept(kept))
    done = sum(table.num_rows for table in tables)
    scores_of = _scorer(config, root)
    rows: dict[str, list[object]] = {name: [] for name in SCORED.names}
    for start in range(done, len(shards), BATCH):
        # At the start of a batch, when the rows are those of whole batches: the name of a stored
        # table is the index of its first patch, and the next run continues after its last.
        stop = hooks.should_stop()
        if stop or len(rows["hash"]) >= KEEP_EVERY:
            tables += _keep(kept, done, pa.table(rows, schema=SCORED))
            done, rows = start, {name: [] for name in SCORED.names}
        if stop:
            raise Stopped(start)
        pairs = [shards[i] for i in range(start, min(start + BATCH, len(shards)))]
        rows["source"] += [pair.source for pair in pairs]
        rows["detail_share"] += [pair.detail_share for pair in pairs]
        rows["hash"] += [perceptual_hash(pair.hr) for pair in pairs]
        rows["score"] += scores_of(pairs)
        hooks.log(start + len(pairs), {"patches": float(start + len(pairs))})
    return pa.concat_tables([*tables, pa.table(rows, schema=SCORED)])


def _inputs(shards: Shards, config: Config, root: Path) -> str:
    """Everything the scores depend on: pairs, metric and, for `difficulty`, the model."""
    rule = config.select
    settings: dict[str, Any] = {
        "rule": rule.rule,
        "metrics": versions([metric_of(rule)]),
        paths.TRAIN: shards.fingerprint(),
    }
    # The rule `quality` reads no model: another NAOSD must not make its scores void.
    if rule.rule == "difficulty":
        keys = ("color_fix", "precision", "group", "batch")
        settings |= {
            "seed": config.seed,
            "model.training_prompt": config.model.training_prompt,
            "rollout": {key: getattr(config.rollout, key) for key in keys},
            paths.NAOSD: model_fingerprint(root / paths.NAOSD),
            "prompts": prompts_of(root / config.model.base),
        }
    return inputs_of(__name__, settings)


def _kept(kept: ItemStore) -> Iterator[pa.Table]:
    """The tables that an interrupted run wrote, each named by its first patch's index.

    Errors: ValueError naming an unreadable file.
    """
    done = 0
    while (path := kept.path(f"{done:09d}.parquet")).is_file():
        try:
            table = pq.read_table(path, page_checksum_verification=True)
        except (OSError, pa.ArrowException) as error:
            raise ValueError(
                f"{path}: unreadable ({error}); delete {kept.folder} to score all patches again"
            ) from error
        yield table
        done += table.num_rows


def _keep(kept: ItemStore, first: int, table: pa.Table) -> list[pa.Table]:
    """Write the patches scored since the last call; returns them as a list of zero or one table."""
    if not table.num_rows:
        return []
    with kept.write(f"{first:09d}.parquet") as part:
        pq.write_table(table, part, write_page_checksum=True)
    return [table]


def _scorer(config: Config, root: Path) -> Scorer:
    """A function that scores a list of pairs: a metric of the HR patches or of NAOSD's outputs."""
    rule = config.select
    if rule.rule == "quality":
        return lambda pairs: score([rule.score], _hr(pairs).to(device()))[rule.score].tolist()
    from gdpo.model.naosd import NAOSD  # slow import, not needed by the rule `quality`
    from gdpo.preference.difficulty import difficulty_scores

    model = NAOSD.from_pretrained(root / paths.NAOSD, base=root / config.model.base)
    model.to(device())
    size, prompt = config.rollout.batch, config.model.training_prompt

    def scores_of(pairs: list[Pair]) -> list[float]:
        scores: list[float] = []
        for start in range(0, len(pairs), size):
            part = pairs[start : start + size]
            scores += difficulty_scores(
                model, part, rule.difficulty, config.rollout, seed=config.seed, prompt=prompt
            )
        return scores

    return scores_of


def _hr(pairs: list[Pair]) -> torch.Tensor:
    """The HR patches as one batch, BCHW in [0, 1]."""
    return torch.from_numpy(np.stack([pair.hr for pair in pairs])).movedim(-1, 1).float() / 255


def _report(table: pa.Table, rule: Select) -> dict[str, object]:
    """Counts by reason and by photograph, with a note if fewer patches passed than select.count."""
    reasons = Counter(table["reason"].to_pylist())
    selected = reasons[SELECTED]
    short = rule.count is not None and selected < rule.count
    photographs = Counter(table.filter(table["rank"].is_valid())["source"].to_pylist())
    return {
        "rule": rule.model_dump(),
        "metric": metric_of(rule),
        "patches": table.num_rows,
        "selected": selected,
        "note": f"{selected} of the {rule.count} patches asked for by select.count pass the rule"
        if short
        else "",
        "reasons": dict(sorted(reasons.items())),
        "photographs": dict(sorted(photographs.items())),
    }
