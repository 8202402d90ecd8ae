"""Tool `push-to-hub`: puts a model on the Hugging Face hub, as a pipeline of diffusers with a card.

    gdpo-sr push-to-hub models/gdpo owner/name --licence cc-by-sa-4.0 --dry-run

What is uploaded is first written to upload/NAME: the merged model, as `gdpo-sr export` writes it,
and README.md, whose metadata the hub reads: licence, library, task and metrics. With --dry-run it
stays there and nothing goes online. The metrics are those of the evaluation in --evaluation, of the
model whose name there is that of the folder.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdpo.config.evaluation import BICUBIC
from gdpo.files import written_aside
from tasks import paths
from tasks.files.results import read_summary

if TYPE_CHECKING:
    from gdpo.model.card import Card

EXAMPLE = "gdpo-sr push-to-hub models/gdpo owner/name --licence cc-by-sa-4.0 --dry-run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, its place on the hub, its licence and its evaluation."""
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="a model folder, e.g. models/gdpo")
    add("repository", metavar="OWNER/NAME", help="on the hub; created if it does not exist")
    add(
        "--licence",
        required=True,
        metavar="ID",
        help="the hub's name of it, e.g. cc-by-sa-4.0 or openrail++; the base model's binds",
    )
    add(
        "--evaluation",
        type=Path,
        metavar="FILE",
        help=f"{paths.EVALUATED}/<benchmark>/summary.json with this model; default: no metrics",
    )
    add("-o", "--output", type=Path, metavar="FOLDER", help="default: upload/NAME")
    add("--dry-run", action="store_true", help="write the folder and stay offline")
    add("--private", action="store_true", help="make the repository private")
    add("--json", action="store_true", help="print the files and their sizes as JSON")


def main(args: argparse.Namespace) -> int:
    """Write the folder, and upload it unless it is a dry run. ValueError naming what is wrong."""
    from gdpo.model.card import read_card
    from gdpo.released.export import export_merged

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", args.repository):
        raise ValueError(f"{args.repository!r}: not a name on the hub, which is OWNER/NAME")
    if not args.model.is_dir():
        raise ValueError(f"{args.model}: no such model folder")
    target = args.output or Path("upload", args.repository.partition("/")[2])
    if target.exists():
        raise ValueError(f"{target}: already exists; remove it or choose another --output")
    card, summary = read_card(args.model), _evaluation(args.evaluation, args.model.name)
    text = readme(card, args.model.name, args.repository, args.licence, summary)
    with written_aside(target) as part:
        export_merged(args.model, part)
        (part / "README.md").write_text(text, encoding="utf-8")
    if not args.dry_run:
        _upload(target, args.repository, private=args.private)
    _tell(args, target)
    return 0


def _evaluation(file: Path | None, model: str) -> Mapping[str, Any] | None:
    if file is None:
        return None
    summary = read_summary(file)
    if model not in summary.get("models", {}):
        raise ValueError(f"{file}: has no model {model!r}")
    return summary


def readme(
    card: "Card",
    model: str,
    repository: str,
    licence: str,
    summary: Mapping[str, Any] | None,
) -> str:
    """The model card: metadata as YAML, description, usage, metrics.

    model: its name in `summary`, an evaluation's summary.json, or None.
    """
    from huggingface_hub import EvalResult, ModelCardData

    from gdpo.metrics.table import METRICS

    # The reward is a number of this project, relative to NAOSD, and no metric of the hub.
    names = [name for name in (summary or {}).get("metrics", {}) if name in METRICS]
    results = [
        EvalResult(
            task_type="image-to-image",
            task_name="super-resolution x4",
            dataset_type=summary["benchmark"],
            dataset_name=summary["benchmark"],
            metric_type=name,
            metric_name=METRICS[name].label,
            metric_value=round(summary["models"][model][name]["mean"], 4),
        )
        for name in names
        if summary is not None
    ]
    data = ModelCardData(
        license=licence,
        library_name="diffusers",
        pipeline_tag="image-to-image",
        tags=["super-resolution", "one-step", "gdpo-sr"],
        model_name=card.label,
        metrics=names or None,
        eval_results=results or None,
    )
    parts = [f"---\n{data.to_yaml()}\n---", f"# {card.label}", _about(card), _usage(repository)]
    if summary is not None and names:
        parts.append(_metrics(summary, model, names))
    parts.append(f"## Licence\n\n{licence}, which has to agree with that of the base model.")
    return "\n\n".join(parts) + "\n"


def _about(card: "Card") -> str:
    role = {
        "baseline": "trained without a reward",
        "reward": "post-trained with a reward (Group Direct Preference Optimization)",
        "control": "the control: post-trained with shuffled rewards, which teach nothing",
    }[card.role]
    noise = "no noise is injected" if card.t_add is None else f"noise is injected at {card.t_add}"
    hashes = "\n".join(f"- `{name}`: `{digest}`" for name, digest in card.base_sha256.items())
    return (
        f"Super-resolution in one diffusion step (x4), {role}; {noise}, denoised at timestep "
        f"{card.t_diff}. Adapters are merged in fp32. SHA-256 of the base's weights:\n\n{hashes}"
    )


def _usage(repository: str) -> str:
    return (
        "## Use\n\n```python\nfrom diffusers import DiffusionPipeline\nfrom PIL import Image\n\n"
        f'pipe = DiffusionPipeline.from_pretrained("{repository}", trust_remote_code=True)\n'
        'pipe(Image.open("photo.jpg")).images[0].save("large.png")\n```\n\n'
        "`pipeline.py` is the code that runs; it needs torch and diffusers."
    )


def _metrics(summary: Mapping[str, Any], model: str, names: list[str]) -> str:
    from tasks.report.tables import metric_heading, number, sample

    shown = [name for name in (BICUBIC, model) if name in summary["models"]]
    lines = ["| | " + " | ".join(metric_heading(summary, name) for name in names) + " |"]
    lines.append("|---" * (len(names) + 1) + "|")
    for name in shown:
        values = [summary["models"][name][metric] for metric in names]
        texts = [f"{number(v['mean'], 3)} ± {number(v['standard_error'], 3)}" for v in values]
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    table = "\n".join(lines)
    return (
        f"## Evaluation\n\nBenchmark `{summary['benchmark']}`: mean ± standard error over "
        f"{sample(summary)}, of the mean over {summary['noises']} noises.\n\n{table}"
    )


def _upload(folder: Path, repository: str, *, private: bool) -> None:
    from huggingface_hub import HfApi

    from tasks.tools.sources import online

    api = HfApi(os.environ.get("HF_ENDPOINT"))
    with online():
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder)


def _tell(args: argparse.Namespace, folder: Path) -> None:
    files = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    if args.json:
        what = {"repository": args.repository, "uploaded": not args.dry_run}
        sys.stdout.write(json.dumps({**what, "folder": str(folder), "files": files}) + "\n")
        return
    for name, size in files.items():
        sys.stdout.write(f"{size:>13,}  {name}\n")
    done = "nothing was uploaded (dry run)" if args.dry_run else f"uploaded to {args.repository}"
    sys.stdout.write(f"{folder}: {len(files)} files, {sum(files.values()):,} bytes; {done}\n")
