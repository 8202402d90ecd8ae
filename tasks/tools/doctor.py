"""Tool `doctor`: does this machine have what the parameters (and a profile over them) need?

    artefacts    base model, adapters to start from, tagger, weights of every metric and loss that
                 the parameters name, photographs
    machine      Python, the packages that gdpo-sr asks for, CPU, memory
    resources    the GPUs that stages ask for, disk for shards and files to fetch; with
                 PREFECT_API_URL, as workers have it, the bucket of DVC's remote

It reads parameters, file names, the headers of the base model's weights and of some photographs.
It uses the network only for photographs and the bucket in S3. Exit code 1 if something needed is
missing. `--shards` reads every row of the LR-HR pairs instead, `--models` hashes the weights that
the cards of models name. While the tagger's folder is incomplete, the files it is made from are
listed too.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import paths
from tasks.tools.artefact import BAD, FOUND, MISSING, UNUSED, Artefact
from tasks.tools.machine import examine

if TYPE_CHECKING:
    from gdpo.config import Config
    from gdpo.model.sources import Source

EXAMPLE = "gdpo-sr doctor --profile paper"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The parameters to check for."""
    parser.add_argument(
        "--params",
        type=Path,
        metavar="FILE",
        help="default: params.yaml of this folder, else the one that ships",
    )
    parser.add_argument(
        "--profile", metavar="NAME", help="override the parameters by profiles/NAME.yaml"
    )
    parser.add_argument(
        "--shards",
        type=Path,
        nargs="?",
        const=paths.SHARDS,
        metavar="FOLDER",
        help="read every row of the shards below FOLDER instead, and list what is damaged; "
        f"default: {paths.SHARDS}",
    )
    parser.add_argument(
        "--models",
        type=Path,
        nargs="?",
        const=paths.MODEL_DIR,
        metavar="FOLDER",
        help="hash the weights of the models below FOLDER instead, and list what is damaged; "
        f"default: {paths.MODEL_DIR}",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(args: argparse.Namespace) -> int:
    """Print the findings; 1 if anything needed is missing. Raises `BadParams`."""
    from tasks import params

    if args.shards is not None:
        from tasks.tools.doctor_data import scan

        return scan(args.shards, args.json)
    if args.models is not None:
        from tasks.tools import doctor_models

        return doctor_models.scan(args.models, args.json)
    from tasks.tools.doctor_resources import problems as resource_problems

    root = Path.cwd()
    config = params.load(args.params or params.default_file(), args.profile)
    artefacts = list(needed(config, root))
    machine = examine(root)
    machine["problems"] += resource_problems(config, root, machine, artefacts)
    fine = not any(a.state in (MISSING, BAD) for a in artefacts) and not machine["problems"]
    if args.json:
        result = {
            "ok": fine,
            "profile": args.profile,
            "artefacts": [asdict(a) for a in artefacts],
            "machine": machine,
        }
        text = json.dumps(result, indent=1)
    else:
        text = to_text(artefacts, machine, fine)
    sys.stdout.write(f"{text}\n")
    return 0 if fine else 1


def needed(config: "Config", root: Path) -> Iterator[Artefact]:
    """Everything the configuration names that no stage makes, in the order of the pipeline."""
    from gdpo.files import here_or_shipped
    from gdpo.pretrain.start import initial_model
    from gdpo.vlcot.start import initial_model as second_initial_model
    from tasks.tools.doctor_data import pairs, photographs

    yield from photographs(config, root)
    yield from _base(config, root)
    start = initial_model(config)
    if start is not None:
        yield from _init(here_or_shipped(root, start), root)
    start = second_initial_model(config)
    if start is not None:
        yield from _vlcot_init(here_or_shipped(root, start), root)
    yield from _metrics(config, root)
    yield from _tagger(config.model.tagger, root)
    yield from pairs(config, root)


def _base(config: "Config", root: Path) -> Iterator[Artefact]:
    """The files that `read_base` reads; BAD if damaged or if the noise schedule is a wrong one."""
    from safetensors import SafetensorError, safe_open

    from gdpo.files import here_or_shipped
    from gdpo.model.base import check_scheduler
    from gdpo.model.sources import BASE_FILES, BASE_LICENCE, VOCABULARY, Source

    base, sources = (
        config.model.base,
        "; or ".join(config.fetch.base) or "fetch.base names no source",
    )
    ours = base.startswith("assets/")
    licence = f"{base}/README.md" if ours else BASE_LICENCE
    where = "ships with gdpo-sr" if ours else f"`gdpo-sr fetch` ({sources})"
    folder = here_or_shipped(root, base)
    for name, size in BASE_FILES.items():
        artefact = _file(
            "model.base", folder / name, root, Source(0 if ours else size, licence, where)
        )
        if name == "scheduler/scheduler_config.json" and artefact.state == FOUND:
            try:
                check_scheduler(folder)
            except ValueError as error:
                artefact = replace(artefact, state=BAD, problem=str(error))
        if name.endswith(".safetensors") and artefact.state == FOUND:
            try:
                # Reads only the header, and compares it with the file's length.
                with safe_open(folder / name, "pt"):
                    pass
            except SafetensorError as error:
                artefact = replace(artefact, state=BAD, problem=f"damaged or cut short ({error})")
        yield artefact
    vocabulary = [folder / "tokenizer" / name for name in ("tokenizer.json", "vocab.json")]
    tokenizer_file = next((path for path in vocabulary if path.is_file()), vocabulary[0])
    yield _file(
        "model.base", tokenizer_file, root, Source(0 if ours else VOCABULARY, licence, where)
    )


def _init(folder: Path, root: Path) -> Iterator[Artefact]:
    """The model folder that pretraining starts from: model.json and the adapter files it names."""
    from gdpo.model.card import NAME, read_card

    card = _file("pretrain.init", folder / NAME, root)
    if card.state == FOUND:
        try:
            names = [entry.file for entry in read_card(folder).adapters]
        except ValueError as error:
            card = replace(card, state=BAD, problem=str(error))
        else:
            yield from (_file("pretrain.init", folder / name, root) for name in names)
    yield card


def _vlcot_init(folder: Path, root: Path) -> Iterator[Artefact]:
    """The model folder that RealSR-R1's training goes on from: model.json and what it names."""
    from gdpo.model.card import NAME, read_as
    from gdpo.vlcot.folder import Card

    card = _file("vlcot.init", folder / NAME, root)
    if card.state == FOUND:
        try:
            names = read_as(Card, folder).sha256
        except ValueError as error:
            card = replace(card, state=BAD, problem=str(error))
        else:
            yield from (_file("vlcot.init", folder / name, root) for name in names)
    yield card


def _metrics(config: "Config", root: Path) -> Iterator[Artefact]:
    """The weights of every metric, each file once.

    First those that a stage's losses and metrics need, then the others that `gdpo-sr score` knows.
    """
    from gdpo.metrics.score import METRICS, files
    from gdpo.model.sources import LPIPS_VGG
    from tasks.tools.fetch_weights import asked_for

    keys: dict[Path, list[str]] = {}
    if config.pretrain.perceptual == "lpips-vgg":
        keys = {_hub() / name: ["pretrain.perceptual"] for name in LPIPS_VGG}
    for key, names in asked_for(config).items():
        for name in names:
            if name not in METRICS:
                raise ValueError(f"{key}: unknown metric {name!r}; known are {', '.join(METRICS)}")
            for path in files(name):
                keys.setdefault(path, []).append(f"{key} ({name})")
    for path, who in keys.items():
        yield _file(", ".join(who), path, root)
    for name in METRICS:
        for path in files(name):
            if path not in keys:
                artefact = _file(f"gdpo-sr score --metrics {name}", path, root)
                yield artefact if artefact.state == FOUND else replace(artefact, state=UNUSED)


def _tagger(folder: str | None, root: Path) -> Iterator[Artefact]:
    """The tagger's folder and, while it is incomplete, the files it is made from."""
    from gdpo.model.sources import TAGGER, Source, source_of
    from gdpo.tagger.tagger import COMMAND, FILES

    advice = (
        []
        if folder is None
        else [
            _file(
                "model.tagger",
                root / folder / name,
                root,
                Source(size, "Apache-2.0", f"`{COMMAND.format(folder)}`"),
            )
            for name, size in FILES.items()
        ]
    )
    yield from advice
    if advice and all(artefact.state == FOUND for artefact in advice):
        return
    note = (
        f"read once, to make {folder}" if folder else "model.tagger is null: prompts have no tags"
    )
    for name in TAGGER:
        source = source_of(Path(name))
        yield Artefact(
            "(model.tagger)", name, UNUSED, source.size, source.licence, source.where, note
        )


def _hub() -> Path:
    import torch

    return Path(torch.hub.get_dir())


def _file(key: str, path: Path, root: Path, source: "Source | None" = None) -> Artefact:
    from gdpo.metrics.table import weight_sources
    from gdpo.model.sources import source_of

    known = source or weight_sources().get(path.name) or source_of(path)
    shown = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
    if path.is_file() and path.stat().st_size:
        return Artefact(key, shown, FOUND, path.stat().st_size, known.licence, known.where)
    problem = "empty file" if path.is_file() else ""
    return Artefact(key, shown, MISSING, known.size, known.licence, known.where, problem)


def to_text(artefacts: list[Artefact], machine: dict[str, Any], fine: bool) -> str:
    """The findings as text: one line per artefact, with its problem below.

    Missing artefacts of the same origin share one line that says where to get them.
    """
    from tasks.run.fingerprint import REPORTED

    lines = []
    for a, following in zip(artefacts, [*artefacts[1:], None], strict=True):
        lines.append(f"{a.state:9}{_bytes(a.size):>9}  {a.path}  [{a.needed_by}; {a.licence}]")
        last = following is None or (following.state, following.where) != (a.state, a.where)
        where = f"from: {a.where}" if a.state in (MISSING, UNUSED) and last else ""
        lines += [f"{'':20}{text}" for text in (a.problem, where) if text]
    gpus = ", ".join(f"{gpu['name']} {_bytes(gpu['memory'])}" for gpu in machine["gpus"]) or "none"
    packages = machine["packages"]
    versions = ", ".join(f"{name} {packages.get(name, 'absent')}" for name in REPORTED)
    lines += [
        f"Python {machine['python']}, {versions}",
        f"{machine['cpus']} CPUs, {_bytes(machine['memory'])} memory, "
        f"{_bytes(machine['disk_free'])} free disk, GPU: {gpus}",
        *machine["problems"],
    ]
    missing = sum(a.state in (MISSING, BAD) for a in artefacts)
    return "\n".join(
        [
            *lines,
            "ready"
            if fine
            else f"not ready: {missing} of {len(artefacts)} artefacts missing or bad"
            + (f", {len(machine['problems'])} other problems" if machine["problems"] else ""),
        ]
    )


def _bytes(size: int) -> str:
    if not size:
        return "?"
    unit, name = next(
        (u, n) for u, n in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"), (1, "B")) if size >= u
    )
    return f"{size / unit:.4g} {name}"
