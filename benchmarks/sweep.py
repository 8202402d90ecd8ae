"""Table 10 and Fig. 7 of the paper: the timesteps of noise and of denoising varied at inference,
the same noises for all.

    python benchmarks/sweep.py --benchmark sample --noises 8

GDPO-SR at t_add 150, 250 and 350; NAOSD at the four settings (t_add, t_diff) of Fig. 7. Adds the
benchmark's results to benchmarks/results/sweep.json: the mean over images of every metric, for each
noise; `gdpo-sr tables` shows them. The paper takes 50 noises on RealSR. Parameters are those of
params.yaml, models those of evaluate.models; --profile paper for SD2.1.
"""

import argparse
import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from gdpo.evaluate.benchmark import evaluate_image
from gdpo.files import written_aside
from gdpo.metrics.score import METRICS
from gdpo.model.naosd import NAOSD
from tasks.params import load
from tasks.report import paper
from tasks.run.provenance import evaluated_models, origin
from tasks.run.training import device
from tasks.stages.evaluate import make_upscalers, open_pairs

REPO = Path(__file__).resolve().parents[1]
RESULT = REPO / "benchmarks/results/sweep.json"


def main() -> int:
    """Measure one benchmark and write it beside those that are there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--benchmark", default="sample")
    parser.add_argument("--noises", type=int, default=8)
    parser.add_argument("--profile")
    args = parser.parse_args()
    config = load(REPO / "params.yaml", args.profile)
    metrics = [metric for metric in config.evaluate.metrics if not METRICS[metric].per_set]
    pairs, folders = open_pairs(config, REPO, args.benchmark, metrics)
    variants, names = settings(), evaluated_models(config, REPO)
    by_role = {"ours": names.ours, "baseline": names.baseline}
    models = {
        role: NAOSD.from_pretrained(REPO / config.evaluate.models[name], device=str(device()))
        for role, name in by_role.items()
    }
    variant_models = {key: at(models[key[0]], *key[1:]) for key in variants}
    upscalers = make_upscalers(
        config, REPO, {name(key): model for key, model in variant_models.items()}
    )
    results: dict[str, list[dict[str, Any]]] = {name(key): [] for key in variants}
    for index in tqdm(range(len(pairs)), desc=args.benchmark, unit="image", disable=None):
        result = evaluate_image(
            pairs[index],
            upscalers,
            metrics,
            seed=config.seed,
            noises=args.noises,
            batch=config.evaluate.batch,
        )
        for key in results:
            results[key].append(result.scores[key])
    values: dict[str, Any] = {role: {} for role in by_role}
    for role, t_add, t_diff in variants:
        scores = results[name((role, t_add, t_diff))]
        values[role][f"{t_add},{t_diff}"] = {
            metric: np.mean([image[metric] for image in scores], axis=0).tolist()
            for metric in metrics
        }
    source = origin("tasks.stages.evaluate", config, REPO, args.benchmark, metrics, folders)
    source |= {
        "weights": {role: source["weights"][name] for role, name in by_role.items()},
        "noises": args.noises,
        "images": len(pairs),
    }
    add(args.benchmark, values, source)
    sys.stdout.write(
        f"{RESULT.relative_to(REPO)}: {args.benchmark}, {len(pairs)} images, {args.noises} noises\n"
    )
    return 0


def settings() -> list[tuple[str, int, int]]:
    """("ours" or "baseline", t_add, t_diff) of everything that is measured."""
    return [
        *(("ours", t_add, paper.T_DIFF) for t_add in paper.T_ADD_TABLE_10),
        *(("baseline", t_add, t_diff) for t_add, t_diff in paper.FIGURE_7),
    ]


def name(key: tuple[str, int, int]) -> str:
    """One text for a setting."""
    return "{} {},{}".format(*key)


def at(model: NAOSD, t_add: int, t_diff: int) -> NAOSD:
    """The same networks at other timesteps."""
    other = copy.copy(model)
    other.t_add, other.t_diff = t_add, t_diff
    return other


def add(benchmark: str, values: dict[str, Any], source: dict[str, Any]) -> None:
    """Write the results of one benchmark; those of others stay."""
    before = json.loads(RESULT.read_text()) if RESULT.is_file() else {"results": {}, "origin": {}}
    before["results"][benchmark], before["origin"][benchmark] = values, source
    with written_aside(RESULT) as part:
        part.write_text(json.dumps(before, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
