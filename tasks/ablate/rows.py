"""The paper's ablations as data: arXiv 2603.16769v1, Tables 5, 6, 7, 9, 11, the settings of Fig. 7,
and rows of our own.

    table = ABLATIONS["5"]                  columns, and the paper's figures by row and column
    rows("5", config)                       the trained rows, as keys that differ from
                                            `base(config)`
    metric_of("LPIPS", config)              our metric for that column: the paper's own, or a
                                            stand-in

Each line of a table below is a line of the paper's table. All figures are for RealSR with one noise
per image; the paper gives no noise seeds, training seeds or errors.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from gdpo.config import Config, Finetune
from gdpo.metrics.table import METRICS
from tasks.report import paper

NAOSD, GDPO = "NAOSD", "GDPO"
SIZES = (4, 6, 8)  # G of Table 7
OMEGAS = (500.0, 5000.0)
Figures = dict[str, dict[str, float]]  # row -> column -> value

_TABLE_5 = """
NAOSD 25.25 114.91 0.2001 69.06 20.52
Diffusion-DPO 25.41 112.87 0.2010 69.16 20.22
DanceGRPO 25.10 113.74 0.2049 69.95 16.52
GDPO (ours) 25.48 112.13 0.1980 69.42 18.72
"""
_TABLE_6 = """
NAOSD 0.2689 0.2001 69.06 0.6617
ARF w/ FR 0.2642 0.1978 67.68 0.6359
ARF w/ NR 0.2866 0.2102 69.80 0.6914
ARF w/o AW 0.2660 0.1979 68.42 0.6331
ARF (ours) 0.2675 0.1980 69.42 0.6760
"""
_TABLE_7 = """
NAOSD 25.25 0.2001 0.6459 0.6617
GDPO-SR (G=4) 25.45 0.1996 0.6491 0.6610
GDPO-SR (G=6) 25.48 0.1980 0.6615 0.6760
GDPO-SR (G=8) 25.34 0.1955 0.6619 0.6788
"""
_TABLE_9 = """
NAOSD 25.25 0.2001 0.6459 0.6617
PSNR 25.48 0.1980 0.6615 0.6760
LPIPS 25.28 0.1997 0.6605 0.6835
PSNR+LPIPS 25.33 0.1970 0.6548 0.6701
"""
_TABLE_11 = """
NAOSD 25.25 0.7346 0.2689 0.2001 0.6459 69.06 0.6617 18.90
GDPO-SR (CFG) 25.06 0.7174 0.2782 0.2049 0.6543 69.47 0.6815 19.61
GDPO-SR (t_add) 25.29 0.7294 0.2871 0.2133 0.6477 69.46 0.6766 17.12
GDPO-SR 25.48 0.7328 0.2675 0.1980 0.6615 69.42 0.6760 17.73
"""

# Used if the weights of a column's metric are missing. A stand-in has only the kind (full- or
# no-reference) in common with the paper's metric. AFINE's stand-in lacks even that: AFINE compares
# with a reference (docs/fidelity.md D19), PIQE does not.
STAND_INS = {
    "LPIPS": "gmsd",
    "DISTS": "ssim_y",
    "MANIQA": "niqe",
    "MUSIQ": "niqe",
    "CLIPIQA": "niqe",
    "AFINE": "piqe",
}
OF_FIGURE_7 = ("PSNR", "MUSIQ")


@dataclass(frozen=True)
class Ablation:
    """One table: file name, subject, the paper's columns and figures, the name of the paper's GDPO
    row, and remarks.
    """

    name: str
    subject: str
    columns: tuple[str, ...]
    printed: Figures = field(default_factory=dict)
    gdpo: str = GDPO
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class AblationRow:
    """A trained row: its name (as in the paper, if it is there) and the keys that differ from
    `base`. every: train on every n-th group.
    """

    name: str
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    every: int = 1


def _table(name: str, subject: str, text: str, columns: str, gdpo: str, *remarks: str) -> Ablation:
    names, printed = tuple(columns.split()), {}
    for line in text.strip().splitlines():
        row, *values = line.rsplit(maxsplit=len(names))
        printed[row] = dict(zip(names, map(float, values), strict=True))
    return Ablation(name, subject, names, printed, gdpo, remarks)


ABLATIONS = {
    "5": _table(
        "table-5",
        "objectives",
        _TABLE_5,
        "PSNR FID DISTS MUSIQ AFINE",
        "GDPO (ours)",
        "The paper prints 20.52 for NAOSD's AFINE and 18.72 for GDPO's: those of DRealSR in Table "
        "1, where RealSR has 18.90 "
        "and 17.73. They stand here as printed.",
        "DP2O-SR pairs, DGPO, DiffusionNFT and AWM are rows of ours: the paper does not have them.",
    ),
    "6": _table(
        "table-6", "the attribute-aware reward", _TABLE_6, "LPIPS DISTS MUSIQ CLIPIQA", "ARF (ours)"
    ),
    "7": _table(
        "table-7", "the group size G", _TABLE_7, "PSNR DISTS MANIQA CLIPIQA", "GDPO-SR (G=6)"
    ),
    "9": _table(
        "table-9",
        "full-reference metrics of the reward",
        _TABLE_9,
        "PSNR DISTS MANIQA CLIPIQA",
        "PSNR",
    ),
    "11": _table(
        "table-11",
        "how the candidates are made",
        _TABLE_11,
        "PSNR SSIM LPIPS DISTS MANIQA MUSIQ CLIPIQA AFINE",
        "GDPO-SR",
    ),
    "fig7": Ablation("figure-7", "the timesteps of NAOSD", OF_FIGURE_7),
    "options": Ablation("options", "what makes it work (ours)", ("PSNR", "SSIM", "LPIPS", "MUSIQ")),
}


def metric_of(column: str, config: Config) -> str | None:
    """Our metric for a column of the paper: the paper's own if it is evaluated or needs no weights,
    else a stand-in. None for metrics of image sets (FID), which have no value per image.
    """
    own = paper.METRICS[column]
    if METRICS[own].per_set:
        return None
    if own in config.evaluate.metrics or not METRICS[own].weights:
        return own
    return STAND_INS[column]


def is_stand_in(column: str, metric: str) -> bool:
    """Whether `metric` is not the paper's own in this column."""
    return metric != paper.METRICS[column]


def metrics_of(config: Config) -> list[str]:
    """Every metric that some table shows or the reward uses. Every run measures all of them, so all
    tables can share it.
    """
    columns = dict.fromkeys(column for table in ABLATIONS.values() for column in table.columns)
    metrics = [metric for metric in (metric_of(column, config) for column in columns) if metric]
    return list(dict.fromkeys([*metrics, *config.reward.fidelity, *config.reward.perception]))


def changed(config: Config, changes: Mapping[str, Mapping[str, Any]]) -> Config:
    """The configuration with keys of some sections replaced, and validated. Errors: ValueError
    naming the invalid key.
    """
    plain = config.model_dump()
    try:
        return Config.model_validate(
            plain | {section: plain[section] | dict(values) for section, values in changes.items()}
        )
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(map(str, problem["loc"]))
        raise ValueError(
            f"{key}: {problem['msg'].removeprefix('Value error, ')}".removeprefix(": ")
        ) from error


def base(config: Config) -> Config:
    """The GDPO configuration from which all rows start: the profile's, with the budget of section
    `ablate`, on cached rollouts with all metrics.
    """
    cost, finetune = config.ablate, config.finetune
    of_tables = ["psnr_y", metric_of("LPIPS", config)]  # the rewards of Table 9
    metrics = [
        *config.rollout.metrics,
        *config.reward.fidelity,
        *config.reward.perception,
        *of_tables,
    ]
    trained: dict[str, Any] = {
        "objective": "gdpo",
        "pairs": 1,
        "rollouts": "cached",
        "sampler": "reference",
        "gpus": 1,
        "nodes": 1,
        "steps": cost.steps,
        "batch": cost.batch,
        "optimizer": finetune.optimizer.model_dump() | {"lr": cost.lr},
    }
    return changed(
        config,
        {
            "finetune": trained,
            "rollout": {"candidates": "noise", "metrics": [m for m in dict.fromkeys(metrics) if m]},
        },
    )


def rows(key: str, config: Config) -> list[AblationRow]:
    """The preference-trained rows of a table, in the paper's order; empty for Fig. 7."""
    printed = ABLATIONS[key].gdpo
    if key == "5":
        objectives = {"DGPO": "dgpo", "DiffusionNFT": "nft", "AWM": "awm"}
        pairs = {"finetune": {"objective": "dpo", "pairs": max(1, config.rollout.group // 3)}}
        dance = {"objective": "dance_grpo", "clip": _clip_of_actions(config)}
        actions = {"candidates": "action", "input": "reencoded"}
        return [
            AblationRow("Diffusion-DPO", {"finetune": {"objective": "dpo", "pairs": 1}}),
            AblationRow("DanceGRPO", {"finetune": dance, "rollout": actions}),
            AblationRow(printed),
            AblationRow("DP2O-SR pairs", pairs),
            *(
                AblationRow(name, {"finetune": {"objective": objective}})
                for name, objective in objectives.items()
            ),
        ]
    if key == "6":
        return [
            AblationRow("ARF w/ FR", {"reward": {"perception": []}}),
            AblationRow("ARF w/ NR", {"reward": {"fidelity": []}}),
            AblationRow("ARF w/o AW", {"reward": {"weighting": "equal"}}),
            AblationRow(printed, {"reward": {"weighting": "adaptive"}}),
        ]
    if key == "7":
        return [AblationRow(f"GDPO-SR (G={size})", {"rollout": {"group": size}}) for size in SIZES]
    if key == "9":
        psnr, lpips = "psnr_y", metric_of("LPIPS", config)
        choices = {"PSNR": [psnr], "LPIPS": [lpips], "PSNR+LPIPS": [psnr, lpips]}
        return [
            AblationRow(name, {"reward": {"fidelity": names}}) for name, names in choices.items()
        ]
    if key == "11":
        modes = {"GDPO-SR (CFG)": "guidance", "GDPO-SR (t_add)": "t_add"}
        return [
            *(AblationRow(name, {"rollout": {"candidates": mode}}) for name, mode in modes.items()),
            AblationRow(printed),
        ]
    return _options(config) if key == "options" else []


def _clip_of_actions(config: Config) -> float | None:
    """The clip that allows DanceGRPO the same distance from the reference, in noise errors, as
    `finetune.clip` allows AWM and DGPO.

    With cached rollouts the old policy stays the reference, so the clip bounds the total distance
    of the policy, not that of a step. The log-ratio of actions is the difference of noise errors
    times (1 - abar) / abar / (2 sigma^2). None (by `finetune.reach`) is the same distance for both.
    """
    if config.finetune.clip is None:
        return None
    from gdpo.model.schedule import alphas_cumprod  # torch: a second or more

    abar = float(alphas_cumprod()[config.model.t_diff])
    return config.finetune.clip * (1 - abar) / abar / (2 * config.rollout.sigma**2)


def _strengths(settings: Finetune) -> list[AblationRow]:
    """Other values of what sets the strength: omega, or the reach that sets it."""
    if settings.omega is None:
        key, values = "reach", [settings.reach / 2, settings.reach * 2]
    else:
        key, values = "omega", [value for value in OMEGAS if value != settings.omega]
    return [AblationRow(f"{key}: {value:g}", {"finetune": {key: value}}) for value in values]


def _options(config: Config) -> list[AblationRow]:
    """GDPO, and one row for each key with its alternative value."""
    rollout = config.rollout
    if rollout.input == "lr":  # which has no choice of noise and target
        where = [AblationRow("input: reencoded", {"rollout": {"input": "reencoded"}})]
    else:
        noise = "shared" if rollout.noise == "own" else "own"
        target = "consistent" if rollout.target == "added" else "added"
        own = {"input": "lr", "noise": "shared", "target": "consistent"}
        where = [
            AblationRow(f"noise: {noise}", {"rollout": {"noise": noise}}),
            AblationRow(f"target: {target}", {"rollout": {"target": target}}),
            AblationRow("input: lr", {"rollout": own}),
        ]
    return [
        AblationRow(GDPO),
        *where,
        *_strengths(config.finetune),
        AblationRow("half the rollouts", every=2),
        AblationRow("half the batch", {"finetune": {"batch": max(1, config.ablate.batch // 2)}}),
    ]
