"""The report's figures about training. Each is returned as {"url", "alt", "note"}.

    trainings     pretrain, finetune: every logged value over the steps
    batches       finetune: the metrics of each group's highest-reward candidate and of the group's
                  mean, step by step
    rollouts      rollout: the metrics by rank of the reward, and the spread inside a group

Addresses are relative to reports/.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from gdpo.config import Finetune, Reward
from gdpo.data.shards import shard_files
from gdpo.preference.group import reward_of
from gdpo.seeds import numpy_generator, seed_of
from tasks.report import figures
from tasks.report.gallery import read_text
from tasks.report.tables import label

LOGGED = {  # key of metrics.jsonl: title, note
    "loss": ("Loss", "what the optimiser lowers"),
    "implicit_accuracy": ("Groups ranked right", "share of the batch whose margin is positive"),
    "weighted_error_difference": (
        "Weighted error difference",
        "Σ A (m − r); below 0: the policy prefers what A does",
    ),
    "error_change": (
        "Noise error against NAOSD",
        "mean of m − r; above 0: the policy denoises worse than NAOSD",
    ),
    "policy_error": ("Noise error", "mean of m, the policy’s"),
    "frac_reward_zero_std": ("Groups without spread", "share of the batch that teaches nothing"),
    "skipped": ("Groups left out", "candidates made in the loop whose scores are not finite"),
    "grad_norm": ("Gradient norm", "before clipping"),
    "pixel": ("Pixel loss", "mean squared error against the original"),
    "perceptual": ("Perceptual loss", "as pretrain.perceptual names it"),
    "vsd": ("VSD loss", "variational score distillation"),
    "fake_loss": ("Fake score’s loss", "noise prediction on NAOSD’s outputs"),
    "fake_grad_norm": ("Fake score’s gradient norm", "before clipping"),
}
GROUP_MEAN, PREFERRED, SPREAD = "mean of the group", "highest reward of the group", "_std"

Figure = dict[str, str]
Groups = dict[str, np.ndarray]  # "reward" and every metric: (groups, candidates)


def trainings(root: Path, assets: Path, name: str, runs: Mapping[str, str]) -> list[Figure]:
    """One figure per logged value of a training; runs: {run: folder under reports/}."""
    logs = {run: _log(root, folder) for run, folder in runs.items()}
    keys = dict.fromkeys(
        key for rows in logs.values() for row in rows for key in row if key != "step"
    )
    found = []
    for index, key in enumerate(keys):
        series = {
            run: ([r["step"] for r in rows if key in r], [r[key] for r in rows if key in r])
            for run, rows in logs.items()
        }
        found.append(_curves(assets, f"{name}-{index:02d}", *_titled(key, keys), series))
    return found


def _titled(key: str, keys: Collection[str]) -> tuple[str, str]:
    """Title and note of a logged value. The spread of metric M is logged as `M_std`."""
    if key in LOGGED:
        return LOGGED[key]
    if key.endswith(SPREAD):
        return (
            f"Spread of {label(key.removesuffix(SPREAD))}",
            "standard deviation inside a group, mean of the batch",
        )
    return label(key).replace(
        "_", " "
    ), "mean of the step’s candidates" if f"{key}{SPREAD}" in keys else ""


def _curves(assets: Path, name: str, title: str, note: str, series: figures.Series) -> Figure:
    figures.curves(assets / f"figures/{name}.svg", title, series)
    ends = "; ".join(
        f"{label(run)} from {y[0]:.4g} to {y[-1]:.4g}" for run, (_, y) in series.items() if len(y)
    )
    return {
        "url": f"assets/figures/{name}.svg",
        "alt": f"{title} over training steps: {ends}",
        "note": note,
    }


def _log(root: Path, folder: str) -> list[dict[str, float]]:
    return [
        json.loads(line) for line in read_text(root, f"reports/{folder}/metrics.jsonl").splitlines()
    ]


def read_groups(root: Path, reward: Reward) -> Groups:
    """Reward and metrics of all candidates; the groups are sorted by id, as in finetune."""
    columns = ["id", "detail_share", "metrics"]
    files = shard_files(root / "data/rollouts")
    rows = [row for file in files for row in pq.read_table(file, columns=columns).to_pylist()]
    if not rows:
        raise ValueError("data/rollouts: no rollouts; run the stage `rollout`, or `dvc repro`")
    rows.sort(key=lambda row: str(row["id"]))
    metrics = {
        metric: np.array([row["metrics"][metric] for row in rows], dtype=np.float64)
        for metric in rows[0]["metrics"]
    }
    return {
        "reward": np.array(
            [reward_of(row["metrics"], row["detail_share"], reward)[0] for row in rows]
        ),
        **metrics,
    }


def batches(
    root: Path, assets: Path, groups: Groups, seed: int, settings: Finetune
) -> list[Figure]:
    """Reward and metrics over the steps: means over the groups of each step, and over their
    highest-reward candidates.

    Recomputes the order of the groups as gdpo/preference/loop.py does. Returns an empty list if the
    logged spread of the reward contradicts that order (with online rollouts, for example).
    """
    rows = _log(root, "finetune/gdpo")
    steps = [int(row["step"]) for row in rows]
    seed = seed_of(seed, "repeat", settings.repeat) if settings.repeat else seed
    positions_SB = np.array(steps)[:, None] * settings.batch + np.arange(settings.batch)
    visited_SB = _visited(seed, positions_SB, len(groups["reward"]))
    spread_B = groups["reward"].std(axis=1, ddof=1)
    logged = [row.get(f"reward{SPREAD}", np.nan) for row in rows]
    if not np.allclose(spread_B[visited_SB].mean(axis=1), logged, rtol=1e-4, atol=1e-6):
        return []
    best_B = groups["reward"].argmax(axis=1)
    found = []
    for index, (metric, values_BG) in enumerate(groups.items()):
        chosen_B = np.take_along_axis(values_BG, best_B[:, None], axis=1)[:, 0]
        means = {GROUP_MEAN: values_BG.mean(axis=1), PREFERRED: chosen_B}
        series = {
            name: (steps, values_B[visited_SB].mean(axis=1)) for name, values_B in means.items()
        }
        found.append(
            _curves(assets, f"batch-{index:02d}", label(metric), "of the step’s candidates", series)
        )
    return found


def _visited(seed: int, position_SB: np.ndarray, count: int) -> np.ndarray:
    """The groups at positions of finetune's endless order, which is reshuffled every epoch."""
    epoch_SB, offset_SB = np.divmod(position_SB, count)
    orders = {
        int(epoch): numpy_generator(seed, "groups", int(epoch)).permutation(count)
        for epoch in np.unique(epoch_SB)
    }
    return np.vectorize(lambda epoch, offset: orders[epoch][offset], otypes=[np.int64])(
        epoch_SB, offset_SB
    )


def rollouts(assets: Path, groups: Groups) -> dict[str, Any]:
    """Reward and metrics by rank in the group, and the spread inside a group."""
    order_BG = np.argsort(-groups["reward"], axis=1, kind="stable")
    ranks, spreads = [], []
    for index, (metric, values_BG) in enumerate(groups.items()):
        file, title = f"figures/rank-{index:02d}.svg", label(metric)
        ranked_BG = np.take_along_axis(
            values_BG - values_BG.mean(axis=1, keepdims=True), order_BG, axis=1
        )
        figures.ranks(assets / file, title, ranked_BG)
        first, last = ranked_BG.mean(axis=0)[[0, -1]]
        alt = (
            f"{title} by rank, relative to the group’s mean: best candidate {first:+.4g}, worst "
            f"{last:+.4g}"
        )
        ranks.append({"url": f"assets/{file}", "alt": alt, "note": ""})
        file, spread_B = f"figures/spread-{index:02d}.svg", values_BG.std(axis=1, ddof=1)
        figures.histogram(assets / file, title, "standard deviation inside a group", spread_B)
        alt = f"Histogram of the spread of {title} inside a group: median {np.median(spread_B):.4g}"
        spreads.append({"url": f"assets/{file}", "alt": alt, "note": ""})
    reward_BG = groups["reward"]
    flat = int((reward_BG.max(axis=1) == reward_BG.min(axis=1)).sum())
    count, group = reward_BG.shape
    return {
        "ranks": ranks,
        "spreads": spreads,
        "groups": count,
        "group": group,
        "without_spread": flat,
    }
