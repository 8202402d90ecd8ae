"""The report's figures about training. Each is returned as {"url", "alt", "note"}.

    trainings     pretrain, finetune: every logged value over the steps
    batches       finetune: the metrics of each group's highest-reward candidate and of the group's
                  mean, step by step
    rollouts      rollout: the metrics by rank of the reward, and the spread inside a group

Addresses are relative to reports/.
"""

import csv
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gdpo.config import Finetune, Reward
from gdpo.evaluate.benchmark import REWARD, VALIDATION
from gdpo.model.card import IDENTITIES, Identity
from gdpo.preference.group import reward_of
from gdpo.preference.order import group_at, training_seed
from tasks.files.groups import read_group_columns
from tasks.paths import STEP_VALUES
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
    "logit_std": (
        "Spread of the preference logit",
        "standard deviation over the batch’s groups; above 1 the sigmoid saturates",
    ),
    "distance": (
        "Distance from NAOSD",
        "root mean square change of the noise prediction, in NAOSD’s own errors",
    ),
    "frac_reward_zero_std": (
        "Groups without spread",
        "share of the batch without a learning signal",
    ),
    "skipped": ("Groups left out", "candidates made in the loop whose scores are not finite"),
    "grad_norm": ("Gradient norm", "before clipping"),
    "pixel": ("Pixel loss", "mean squared error against the original"),
    "validation": ("Validation loss", "pixel and perceptual, on held-out training photographs"),
    "perceptual": ("Perceptual loss", "as pretrain.perceptual names it"),
    "vsd": ("VSD loss", "variational score distillation"),
    "fake_loss": ("Fake score’s loss", "noise prediction on NAOSD’s outputs"),
    "fake_grad_norm": ("Fake score’s gradient norm", "before clipping"),
}
GROUP_MEAN, PREFERRED, SPREAD = "mean of the group", "highest reward of the group", "_std"

Figure = dict[str, str]
Groups = dict[str, np.ndarray]  # "reward" and every metric: (groups, candidates)


def learned(root: Path, runs: Mapping[str, str]) -> str:
    """The verdict on a preference training: the share of groups ranked right, at its start and end,
    beside the control's.
    """
    key, shares = "implicit_accuracy", dict[str, tuple[float, float]]()
    for run, folder in runs.items():
        values = [entry[key] for entry in _log(root, folder) if key in entry]
        quarter = max(1, len(values) // 4)
        if values:
            shares[run] = float(np.mean(values[:quarter])), float(np.mean(values[-quarter:]))
    of_role = {IDENTITIES[run].role: run for run in shares}
    if not {"reward", "control"} <= of_role.keys():
        return "This objective logs no share of groups ranked right; see its loss."
    (start, end), (_, control) = shares[of_role["reward"]], shares[of_role["control"]]
    says = (
        "GDPO learned what its groups prefer"
        if end > max(start, control)
        else "It does not show that GDPO learned what its groups prefer"
    )
    return (
        f"{says}: in the last quarter of its steps it ranks {end:.0%} of the groups right, in the "
        f"first quarter {start:.0%}; the control, with shuffled advantages, ends at {control:.0%} "
        "of its own. Whether pictures became better is on the benchmarks’ pages."
    ).replace("%", " %")


def trainings(
    root: Path,
    assets: Path,
    name: str,
    runs: Mapping[str, str],
    identities: Mapping[str, Identity] = IDENTITIES,
) -> dict[str, Any]:
    """A figure per logged value of a training; runs: {key of `identities`: its folder of reports}.

    figures: the values that change; validation: those of them measured on validation photographs;
    constant: titles with values of those that do not; shared: titles of values that are the same in
    all runs, because they describe the groups.
    """
    logs = {run: _log(root, folder) for run, folder in runs.items()}
    keys = dict.fromkeys(
        key for rows in logs.values() for entry in rows for key in entry if key != "step"
    )
    for run, rows in logs.items():
        _write_csv(assets / "training" / f"{run}.csv", rows)
    roles = {identities[run].label: identities[run].role for run in runs}
    plots: dict[str, list[Any]] = {"figures": [], "validation": [], "constant": [], "shared": []}
    for index, key in enumerate(keys):
        series = {
            identities[run].label: (
                [entry["step"] for entry in rows if key in entry],
                [entry[key] for entry in rows if key in entry],
            )
            for run, rows in logs.items()
        }
        title, note = _titled(key, keys)
        first, *others = (values for _, values in series.values())
        if len({value for _, values in series.values() for value in values}) == 1:
            plots["constant"].append(f"{title} ({first[0] if first else others[0][0]:.4g})")
        elif others and all(values == first for values in others):
            plots["shared"].append(title)
        else:
            figure = _curves(assets, f"{name}-{index:02d}", title, note, series, roles)
            plots["validation" if key.startswith(VALIDATION) else "figures"].append(figure)
    return plots


def _write_csv(path: Path, rows: list[dict[str, float]]) -> None:
    """The logged values as a table, for `dvc plots show`, which reads no JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for entry in rows for key in entry)))
        writer.writeheader()
        writer.writerows(rows)


def _titled(key: str, keys: Collection[str]) -> tuple[str, str]:
    """Title and note of a logged value. The spread of metric M is logged as `M_std`, and M on
    validation photographs as `validation_M`.
    """
    if key in LOGGED:
        return LOGGED[key]
    if key.endswith(SPREAD):
        return (
            f"Spread of {label(key.removesuffix(SPREAD))}",
            "standard deviation inside a group, mean of the batch",
        )
    if key.startswith(VALIDATION):
        metric = key.removeprefix(VALIDATION)
        note = "0: NAOSD; 1: its standard deviation over noises" if metric == REWARD else ""
        return f"{label(metric)}, validation photographs", note
    return label(key).replace(
        "_", " "
    ), "mean of the step’s candidates" if f"{key}{SPREAD}" in keys else ""


def _curves(
    assets: Path,
    name: str,
    title: str,
    note: str,
    series: figures.Series,
    roles: figures.Roles | None = None,
) -> Figure:
    figures.curves(assets / f"figures/{name}.svg", title, series, roles)
    ends = "; ".join(
        f"{line} from {y[0]:.4g} to {y[-1]:.4g}" for line, (_, y) in series.items() if len(y)
    )
    return {
        "url": f"assets/figures/{name}.svg",
        "alt": f"{title} over training steps: {ends}",
        "note": note,
    }


def _log(root: Path, folder: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in read_text(root, f"{folder}/{STEP_VALUES}").splitlines()]


def group_values(root: Path, reward: Reward) -> Groups:
    """Reward and metrics of all candidates; the groups are sorted by id, as in finetune."""
    rows = read_group_columns(root, ["id", "detail_share", "metrics"])
    metrics = {
        metric: np.array([group["metrics"][metric] for group in rows], dtype=np.float64)
        for metric in rows[0]["metrics"]
    }
    return {
        "reward": np.array(
            [reward_of(group["metrics"], group["detail_share"], reward)[0] for group in rows]
        ),
        **metrics,
    }


def batches(
    root: Path, assets: Path, groups: Groups, seed: int, settings: Finetune, run: str
) -> tuple[list[Figure], str]:
    """(figures, reason why there are none): reward and metrics over the steps. run: the folder
    of reports of a training.

    Each figure shows the means over the groups of each step, and over their highest-reward
    candidates. There are none for groups that were sampled in the loop, and for a log whose spread
    of the reward is not that of the stored groups: those figures would show other groups than the
    training saw.
    """
    if settings.rollouts == "online":
        return [], "The groups were sampled during the training and not stored."
    rows = _log(root, run)
    steps = [int(entry["step"]) for entry in rows]
    trained = training_seed(seed, settings.repeat)
    count = len(groups["reward"])
    group_SB = np.array(
        [
            [group_at(trained, step * settings.batch + i, count)[0] for i in range(settings.batch)]
            for step in steps
        ]
    )
    spread_B = groups["reward"].std(axis=1, ddof=1)
    logged = [entry.get(f"reward{SPREAD}", np.nan) for entry in rows]
    if not np.allclose(spread_B[group_SB].mean(axis=1), logged, rtol=1e-4, atol=1e-6):
        return [], (
            "The logged spread of the reward is not that of data/rollouts: the training saw other "
            "groups. Run the finetune stage again."
        )
    best_B = groups["reward"].argmax(axis=1)
    plots = []
    for index, (metric, values_BG) in enumerate(groups.items()):
        chosen_B = np.take_along_axis(values_BG, best_B[:, None], axis=1)[:, 0]
        means = {GROUP_MEAN: values_BG.mean(axis=1), PREFERRED: chosen_B}
        series = {
            name: (steps, values_B[group_SB].mean(axis=1)) for name, values_B in means.items()
        }
        plots.append(
            _curves(assets, f"batch-{index:02d}", label(metric), "of the step’s candidates", series)
        )
    return plots, ""


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
