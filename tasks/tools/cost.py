"""Tool `cost`: parameters and multiply-accumulates (MACs) of a model, counted from shapes alone.

    infer      one super-resolution, by network; for sd2.1 beside Table 4 of the paper
    pretrain   one step of NAOSD, per image
    rl         one step of GDPO, per LR image (G = 6), as released and as implemented here

No weights are read. sd2.1 is SD2.1-base with the released tagger; of a folder only the
configuration files are read.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gdpo.cost.architectures import Networks
    from gdpo.cost.count import Part

EXAMPLE = "gdpo-sr cost --model sd2.1 --size 512 --step rl"
TABLE_4_SIZE = 512


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to count, and how to print it."""
    parser.add_argument(
        "--model",
        default="sd2.1",
        metavar="NAME",
        help="sd2.1 or a diffusers folder; default: sd2.1",
    )
    parser.add_argument(
        "--size",
        type=int,
        default=TABLE_4_SIZE,
        metavar="PX",
        help="side of the image; default: 512",
    )
    parser.add_argument(
        "--step", choices=["infer", "pretrain", "rl"], default="infer", help="default: infer"
    )
    parser.add_argument("--json", action="store_true", help="print whole numbers as JSON")


def main(args: argparse.Namespace) -> int:
    """Count and print; ValueError naming the folder's file, or the size, that is not valid."""
    from gdpo.cost import architectures
    from gdpo.cost import count as cost

    networks = (
        architectures.sd21()
        if args.model == "sd2.1"
        else architectures.from_folder(Path(args.model))
    )
    if args.step == "infer":
        result = inference(networks, args.size)
    else:
        step = cost.rl_step if args.step == "rl" else cost.pretrain_step
        result = training(step(networks, args.size))
    result = {"model": args.model, "size": args.size, "step": args.step, **result}
    text = json.dumps(result, indent=1) if args.json else describe(result)
    sys.stdout.write(f"{text}\n")
    return 0


def inference(networks: "Networks", size: int) -> dict[str, Any]:
    """Components and totals; with a tagger and at Table 4's size also the published figures."""
    from gdpo.cost import count as cost

    rows: list[dict[str, Any]] = [
        {
            "name": part.name,
            "parameters": part.parameters,
            "macs": part.macs.total,
            "macs_without_attention": part.macs.linear,
        }
        for part in cost.inference(networks, size)
    ]
    keys = ("parameters", "macs", "macs_without_attention")
    result: dict[str, Any] = {
        "components": rows,
        "total": {key: sum(row[key] for row in rows) for key in keys},
    }
    if networks.tagger is not None and size == TABLE_4_SIZE:
        counted = result["total"]["macs_without_attention"] - cost.dape_macs(networks)
        found = result["total"]["parameters"], counted
        published = cost.PUBLISHED_PARAMETERS, cost.PUBLISHED_MACS
        result["published"] = {
            "parameters": published[0],
            "macs": published[1],
            "ours_counted_the_same_way": {"parameters": found[0], "macs": counted},
            "difference": [
                round(ours / theirs - 1, 4) for ours, theirs in zip(found, published, strict=True)
            ],
        }
    return result


def training(parts: "list[Part]") -> dict[str, Any]:
    """Parts with the MACs of one call, the number of calls in each variant, and the sums."""
    columns = list(parts[0].calls)
    return {
        "parts": [
            {"name": part.name, "macs": part.macs.total, "calls": part.calls} for part in parts
        ],
        "total": {
            column: sum(part.macs.total * part.calls[column] for part in parts)
            for column in columns
        },
    }


def describe(result: dict[str, Any]) -> str:
    """The result as a text table."""
    what = {
        "infer": "inference",
        "pretrain": "a step of NAOSD, per image",
        "rl": "a step of GDPO, per LR image",
    }
    title = f"{result['model']} at {result['size']}x{result['size']}, {what[result['step']]}"
    return "\n".join(
        [title, *(_components(result) if result["step"] == "infer" else _parts(result))]
    )


def _components(result: dict[str, Any]) -> list[str]:
    lines = [f"{'':20}{'M parameters':>14}{'GMAC':>10}{'without attention':>20}"]
    for row in [*result["components"], {"name": "total", **result["total"]}]:
        macs = f"{row['macs'] / 1e9:>10.1f}{row['macs_without_attention'] / 1e9:>20.1f}"
        lines.append(f"{row['name']:20}{row['parameters'] / 1e6:>14.2f}{macs}")
    if "published" in result:
        table = result["published"]
        ours, (params, macs) = (
            table["ours_counted_the_same_way"],
            [f"{value:+.1%}" for value in table["difference"]],
        )
        lines += [
            "",
            f"Table 4: {table['parameters'] / 1e9:.2f} B parameters, {table['macs'] / 1e12:.2f} "
            "T. Ours counted the same way: "
            f"{ours['parameters'] / 1e9:.3f} B ({params}), {ours['macs'] / 1e12:.3f} T ({macs}):",
            "MACs without attention, and without the tagger's layers that carry LoRA in the "
            "release (inferred).",
        ]
    return lines


def _parts(result: dict[str, Any]) -> list[str]:
    columns = list(result["total"])
    lines = [f"{'TMAC':34}{'one call':>10}" + "".join(f"{column:>16}" for column in columns)]
    for part in result["parts"]:
        cells = "".join(f"{part['macs'] * calls / 1e12:>16.2f}" for calls in part["calls"].values())
        lines.append(f"{part['name']:34}{part['macs'] / 1e12:>10.3f}{cells}")
    totals = "".join(f"{value / 1e12:>16.2f}" for value in result["total"].values())
    return [*lines, f"{'total':44}{totals}"]
