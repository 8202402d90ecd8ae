"""Cached rollouts, the same online, and rollouts by the policy: three trainings per seed from the
same start, side by side.

    python -m benchmarks.rollout_modes --root FOLDER      a checkout in which `dvc repro select` has
                                                          run; default: this one

Per repeat (other initial adapters and order, the same patches) and mode one fine-tuning of --steps
steps of --batch groups over --groups patches, so of several epochs: `cached` visits the stored
candidates again, `online` makes new ones in every later epoch, `policy` makes them by the policy
itself. All are judged on the held-out tiles with the same noises. Writes
benchmarks/results/rollout_modes.json and the curves docs/rollouts-*.svg, which docs/rollouts.md
shows. Seconds are processor time on this machine; only their ratio in one run means something.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import REPO, record
from gdpo.config import Config
from gdpo.data.shards import Pair, Shards
from gdpo.evaluate.benchmark import evaluate_image
from gdpo.evaluate.statistics import paired_difference
from gdpo.hooks import Hooks
from gdpo.model.naosd import NAOSD
from gdpo.preference.group import Group, from_row, to_row
from gdpo.preference.loop import History, finetune
from gdpo.preference.rollout import rollout
from tasks.files.selection import Selected
from tasks.params import load
from tasks.report.figures import curves
from tasks.stages.evaluate import make_upscalers

MODES: dict[str, dict[str, str]] = {
    "cached": {"rollouts": "cached", "sampler": "reference"},
    "online": {"rollouts": "online", "sampler": "reference"},
    "policy": {"rollouts": "online", "sampler": "policy"},
}
NOISES = 4
# docs/rollouts-<name>.svg -> title, key of the history, and whether it is shown less that of
# `cached` at the same step.
CURVES = {
    "preference": (
        "Weighted error difference, sum A (m - r), on the batch",
        "weighted_error_difference",
        False,
    ),
    "psnr": ("PSNR (dB) of the candidates, less that of the cached ones", "psnr_y", True),
    "niqe": ("NIQE of the candidates, less that of the cached ones", "niqe", True),
}


def main() -> int:
    """Train, judge, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=REPO)
    parser.add_argument("--groups", type=int, default=48)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    plain = load(REPO / "params.yaml")
    pairs = selected(args.root, args.groups)
    started = time.process_time()
    groups = stored(pairs, plain, args.root)
    making = time.process_time() - started
    histories: dict[str, list[History]] = {mode: [] for mode in MODES}
    seconds: dict[str, float] = dict.fromkeys(MODES, 0.0)
    models = {
        "naosd": NAOSD.from_pretrained(
            args.root / "models/naosd", base=args.root / plain.model.base
        )
    }
    for repeat in range(args.repeats):
        for mode, keys in MODES.items():
            config = configured(plain, args, repeat, keys)
            started = time.process_time()
            adapters, history = trained(config, args.root, groups, pairs)
            seconds[mode] += (time.process_time() - started) / args.repeats
            histories[mode].append(history)
            models[f"{mode} {repeat}"] = NAOSD.from_pretrained(
                args.root / "models/naosd", base=args.root / plain.model.base
            )
            models[f"{mode} {repeat}"].merge(adapters)
            sys.stderr.write(f"repeat {repeat} {mode}: {seconds[mode]:.0f} s\n")
    held_out = judged(models, plain, args.root, args.repeats)
    draw(histories)
    first = [
        abs(a["loss"] - b["loss"])
        for a, b in zip(histories["cached"][0], histories["online"][0], strict=True)
    ]
    epoch = len(groups) // args.batch
    result = {
        "settings": {key: value for key, value in vars(args).items() if key != "root"},
        "held_out": held_out,
        "steps_of_the_first_epoch": epoch,
        "loss_of_online_less_cached": {
            "first epoch, largest": max(first[:epoch]),
            "later, largest": max(first[epoch:], default=0.0),
        },
        "seconds_of_a_training": seconds,
        "seconds_of_the_rollouts": making,
        "online_over_cached": seconds["online"] / seconds["cached"],
        "online_over_cached_and_its_rollouts": seconds["online"] / (seconds["cached"] + making),
    }
    record("rollout_modes", result)
    for mode, scores in held_out.items():
        sys.stdout.write(
            f"{mode}: "
            + ", ".join(f"{m} {d['mean']:+.4f} (p {d['p']:.2g})" for m, d in scores.items())
            + "\n"
        )
    sys.stdout.write(f"online takes {result['online_over_cached']:.2f} x the time of cached\n")
    return 0


def selected(root: Path, count: int) -> list[Pair]:
    """`count` patches of the selection, at equal steps of rank."""
    pairs = Selected(root)
    return [pairs[place * len(pairs) // count] for place in range(count)]


def stored(pairs: list[Pair], config: Config, root: Path) -> list[Group]:
    """The cached rollouts, after their way through the file."""
    model = NAOSD.from_pretrained(root / "models/naosd", base=root / config.model.base)
    groups = [
        candidate_group for pair in pairs for candidate_group in rollout(model, [pair], config)
    ]
    return [from_row(to_row(group)) for group in groups if isinstance(group, Group)]


def configured(
    plain: Config, args: argparse.Namespace, repeat: int, keys: dict[str, str]
) -> Config:
    """params.yaml with the settings of one training."""
    values = plain.model_dump()
    values["finetune"] |= {
        "steps": args.steps,
        "batch": args.batch,
        "repeat": repeat,
        "checkpoint_every": args.steps,
        **keys,
    }
    values["finetune"]["optimizer"]["lr"] = args.lr
    return Config.model_validate(values)


def trained(
    config: Config, root: Path, groups: list[Group], pairs: list[Pair]
) -> tuple[Any, History]:
    """(adapters, history) of one training."""
    model = NAOSD.from_pretrained(root / "models/naosd", base=root / config.model.base)
    with tempfile.TemporaryDirectory() as folder:
        return finetune(
            model,
            groups,
            config,
            control=False,
            folder=Path(folder),
            fingerprint="",
            hooks=Hooks(),
            pairs=pairs,
        )


def judged(
    models: dict[str, Any], config: Config, root: Path, repeats: int
) -> dict[str, dict[str, Any]]:
    """{mode: {metric: difference to NAOSD, and to cached}} over the held-out tiles, repeats and
    noises averaged first.
    """
    shards = Shards(root / "data/shards/evaluation")
    upscalers = make_upscalers(config, root, models)
    images = [
        evaluate_image(
            shards[i],
            upscalers,
            config.rollout.metrics,
            seed=config.seed,
            noises=NOISES,
            batch=config.evaluate.batch,
        ).scores
        for i in range(len(shards))
    ]
    differences: dict[str, dict[str, Any]] = {}
    for metric in config.rollout.metrics:

        def values(mode: str, metric: str = metric) -> np.ndarray:
            names = [mode] if mode == "naosd" else [f"{mode} {repeat}" for repeat in range(repeats)]
            return np.array(
                [np.concatenate([image[name][metric] for name in names]) for image in images]
            )

        for a, b in [
            *((mode, "naosd") for mode in MODES),
            ("online", "cached"),
            ("policy", "cached"),
        ]:
            differences.setdefault(f"{a} - {b}", {})[metric] = vars(
                paired_difference(values(a), values(b))
            )
    return differences


def draw(histories: dict[str, list[History]]) -> None:
    """The curves, means over the repeats."""
    for name, (title, key, less) in CURVES.items():
        means = {
            mode: np.mean([[row[key] for row in one] for one in repeats], axis=0)
            for mode, repeats in histories.items()
        }
        shown = {
            mode: values - (means["cached"] if less else 0)
            for mode, values in means.items()
            if not (less and mode == "cached")
        }
        steps = list(range(len(means["cached"])))
        curves(
            REPO / f"docs/rollouts-{name}.svg",
            title,
            {mode: (steps, values) for mode, values in shown.items()},
        )


if __name__ == "__main__":
    raise SystemExit(main())
