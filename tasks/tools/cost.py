"""Tool `cost`: parameters and multiply-accumulates (MACs) of a model, counted from shapes alone.

    infer      one super-resolution, by network; for sd2.1 beside Table 4 of the paper
    pretrain   one step of NAOSD, per image
    rl         one step of GDPO, per LR image (G = 6), as released and as implemented here

vlcot is RealSR-R1: one chain of thought (infer), or a step of GRPO per prompt (rl, G = 5).

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
FULL_SIZE = ("sd2.1", "vlcot")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to count, and how to print it."""
    parser.add_argument(
        "--model",
        default="sd2.1",
        metavar="NAME",
        help="sd2.1, vlcot or a diffusers folder; default: sd2.1",
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
    if args.model in FULL_SIZE and not args.json:
        sys.stderr.write(f"{args.model}: counting the networks of full size, some seconds ...\n")
    if args.model == "vlcot":
        chain = vlcot(args.size, args.step)
        text = json.dumps(chain, indent=1) if args.json else describe_vlcot(chain)
        sys.stdout.write(f"{text}\n")
        return 0

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
    text = json.dumps(result, indent=1) if args.json else to_text(result)
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
        "total": {key: sum(component[key] for component in rows) for key in keys},
    }
    if networks.tagger is not None and size == TABLE_4_SIZE:
        counted = result["total"]["macs_without_attention"] - cost.dape_macs(networks)
        parameters = result["total"]["parameters"], counted
        published = cost.PUBLISHED_PARAMETERS, cost.PUBLISHED_MACS
        result["published"] = {
            "parameters": published[0],
            "macs": published[1],
            "ours_counted_the_same_way": {"parameters": parameters[0], "macs": counted},
            "difference": [
                round(ours / theirs - 1, 4)
                for ours, theirs in zip(parameters, published, strict=True)
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


def to_text(result: dict[str, Any]) -> str:
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
    for component in [*result["components"], {"name": "total", **result["total"]}]:
        macs = f"{component['macs'] / 1e9:>10.1f}{component['macs_without_attention'] / 1e9:>20.1f}"
        lines.append(f"{component['name']:20}{component['parameters'] / 1e6:>14.2f}{macs}")
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


def vlcot(size: int, step: str) -> dict[str, Any]:
    """RealSR-R1's tokens, parameters, bytes, and MACs of a chain or of a step of GRPO."""
    from gdpo.cost import vlcot as cost

    if step == "pretrain":
        raise ValueError("--step pretrain counts a step of NAOSD; vlcot has infer and rl")
    tokens, model = cost.tokens(size), cost.trunk()
    macs = {"one chain": cost.forward_macs(model, tokens.total).total}
    if step == "rl":
        macs |= cost.group_macs(model, size)
    return {
        "model": "vlcot",
        "size": size,
        "step": step,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "lora_parameters": cost.lora_parameters(model),
        "tokens": {
            "prompt": tokens.prompt,
            "images": list(tokens.images),
            "answer": tokens.answer,
            "total": tokens.total,
        },
        "bytes": cost.memory(model, tokens.total),
        "macs": macs,
    }


def describe_vlcot(result: dict[str, Any]) -> str:
    """The result of `vlcot` as text."""
    tokens = result["tokens"]
    lines = [
        f"RealSR-R1 at {result['size']}x{result['size']}: {result['parameters'] / 1e9:.2f} B "
        f"parameters, LoRA of rank 16 {result['lora_parameters'] / 1e6:.1f} M",
        f"tokens: prompt {tokens['prompt']}, images "
        f"{' + '.join(str(count) for count in tokens['images'])}, answer {tokens['answer']}, "
        f"in all {tokens['total']}",
        "",
        f"{'GB':34}",
        *(f"  {name:32}{value / 1e9:>12.6f}" for name, value in result["bytes"].items()),
        "",
        f"{'TFLOP (2 per MAC)':34}",
        *(f"  {name:32}{2 * value / 1e12:>12.1f}" for name, value in result["macs"].items()),
    ]
    return "\n".join(lines)
