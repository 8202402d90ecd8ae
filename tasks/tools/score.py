"""Tool `score`: scores any method's output folder against references.

    gdpo-sr score results/mine testset/HR --metrics psnr_y ssim_y

A metric is left out, with the reason, if its weights are missing or an image is too small for it;
the others run. A broken image is named at the end; its row is empty and the means omit it. The exit
code is 1 if an image is broken or no metric is left.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdpo.metrics.table import METRICS
from tasks.report import scored
from tasks.report.scored import MetricValues

if TYPE_CHECKING:
    from gdpo.metrics.folders import MethodImage

EXAMPLE = (
    "gdpo-sr score results/mine testset/HR --metrics psnr_y ssim_y lpips_alex --json scores.json"
)
DEFAULT = ["psnr_y", "ssim_y"]
VARIANTS = (
    "A name says the variant: niqe has pristine parameters of our own, so no published NIQE "
    "compares (that is niqe_pyiqa); "
    "published tables have maniqa_pipal, GDPO's reward maniqa_koniq"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The folders, the metrics, and where the numbers go."""
    parser.add_argument("sr", type=Path, metavar="SR_DIR", help="folder of a method's images")
    parser.add_argument(
        "hr",
        type=Path,
        nargs="?",
        metavar="HR_DIR",
        help="folder of references: same names up to the suffix, same sizes; may be left out for "
        "no-reference metrics",
    )
    parser.add_argument(
        "--metrics",
        type=_names,
        nargs="+",
        action="extend",
        metavar="METRIC",
        help=f"default: {' '.join(DEFAULT)}; known: {', '.join(METRICS)}. {VARIANTS}",
    )
    parser.add_argument(
        "--json",
        type=_target(".json"),
        metavar="FILE",
        help="also write everything as JSON; - prints it instead",
    )
    parser.add_argument(
        "--csv", type=_target(".csv"), metavar="FILE", help="also write one row per image"
    )


def _names(text: str) -> list[str]:
    """An argument type: one metric, or several with commas between them."""
    names = [name for name in text.split(",") if name]
    for name in names:
        if name not in METRICS:
            raise argparse.ArgumentTypeError(
                f"unknown metric {name!r}; known are {', '.join(METRICS)}"
            )
    return names


def _target(suffix: str) -> Any:
    """An argument type: a file to write, which must end in `suffix` ("-" is allowed for .json).

    Checking the suffix keeps a mistyped command from replacing an image or a folder.
    """

    def path(text: str) -> Path:
        if (Path(text).suffix.lower() != suffix and (text, suffix) != ("-", ".json")) or Path(
            text
        ).is_dir():
            raise argparse.ArgumentTypeError(f"must be a file whose name ends in {suffix}")
        return Path(text)

    return path


def main(args: argparse.Namespace) -> int:
    """Pair the images, score them, write the results; 0, or ValueError naming the problem."""
    names = list(dict.fromkeys(name for part in args.metrics or [] for name in part)) or DEFAULT
    _check_reference(names, args.hr)
    from gdpo.files import check_writable
    from gdpo.metrics.folders import method_images, shown

    for target in (args.csv, args.json):
        if target is not None and str(target) != "-":
            check_writable(target)
    pairs = method_images(args.sr, args.hr)
    device = _device()
    left_out = _left_out(names, pairs, device)
    ran = [name for name in names if name not in left_out]
    if not ran:
        raise ValueError(
            "no metric is left: "
            + "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        )
    rows, failed = _score(pairs, [name for name in ran if not METRICS[name].per_set], device)
    result = scored.result(
        args.sr, args.hr, names, left_out, rows, failed, _sets(pairs, rows, ran, device)
    )
    # Printed first: a file that cannot be written must not cost the numbers.
    sys.stdout.write(
        f"{json.dumps(result, indent=1) if str(args.json) == '-' else scored.text(result)}\n"
    )
    if args.csv is not None:
        scored.write_csv(
            args.csv, [name for name in ran if not METRICS[name].per_set], rows, failed
        )
    if args.json is not None and str(args.json) != "-":
        scored.write(args.json, json.dumps(result, indent=1) + "\n")
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(pairs)} images left out: "
            f"{'; '.join(map(shown, failed.values()))}"
        )
    return 0


def _check_reference(names: Sequence[str], hr: Path | None) -> None:
    compare = [name for name in names if METRICS[name].needs_reference]
    if hr is None and compare:
        others = ", ".join(name for name, metric in METRICS.items() if not metric.needs_reference)
        raise ValueError(
            f"HR_DIR is missing: {', '.join(compare)} need references; without: {others}"
        )


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _left_out(names: Sequence[str], pairs: "Sequence[MethodImage]", device: str) -> dict[str, str]:
    """The metrics that cannot be computed, with the reason."""
    from gdpo.metrics.folders import shown
    from gdpo.metrics.score import unusable

    left_out = unusable(names, device)
    smallest = min(pairs, key=lambda pair: min(pair.size))
    for name in names:
        side = METRICS[name].min_side
        if min(smallest.size) < side:
            width, height = smallest.size
            left_out.setdefault(
                name,
                f"needs sides of at least {side} pixels, {shown(smallest.name)} is "
                f"{width}x{height}",
            )
        if METRICS[name].per_set and len(pairs) < 2:
            left_out.setdefault(name, "needs at least two images")
    return left_out


def _score(
    pairs: "Sequence[MethodImage]", names: Sequence[str], device: str
) -> tuple[dict[str, MetricValues], dict[str, str]]:
    """({image: its values}, {broken image: the reason})."""
    from tqdm import tqdm

    from gdpo.metrics.folders import score_pair

    rows: dict[str, MetricValues] = {}
    failed: dict[str, str] = {}
    for pair in tqdm(pairs, desc="score", unit="image", disable=None):  # only on a terminal
        try:
            rows[pair.name] = score_pair(pair, names, device)
        except ValueError as error:
            failed[pair.name] = str(error)
    return rows, failed


def _sets(
    pairs: "Sequence[MethodImage]", rows: dict[str, MetricValues], names: Sequence[str], device: str
) -> MetricValues:
    """The metrics of the whole set: FID over the images that are not broken."""
    if "fid" not in names or len(rows) < 2:
        return {}
    from tqdm import tqdm

    from gdpo.images import read_photo
    from gdpo.metrics.fid import features, frechet_distance

    whole = [pair for pair in pairs if pair.name in rows]
    sides = (
        [pair.image for pair in whole],
        [pair.reference for pair in whole if pair.reference is not None],
    )
    with tqdm(total=2 * len(whole), desc="fid", unit="image", disable=None) as bar:
        one, other = (
            features((read_photo(path) for path in side if not bar.update()), device)
            for side in sides
        )
    return {"fid": frechet_distance(one, other)}
