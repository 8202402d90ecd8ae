"""Tool `doctor`: does this machine have what the parameters (and a profile over them) need?

    artefacts    base model, adapters to start from, weights of every metric and loss named, photographs
    machine      Python, packages against pyproject.toml, CPU, memory, disk, GPU

Reads parameters and file names only: no weights, no network. Exit code 1 if something needed is missing. Weights of the
tagger are listed too, as not needed: no stage reads them yet.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gdpo.config import Config
    from gdpo.model.sources import Source

EXAMPLE = "gdpo-sr doctor --profile paper"
FOUND, MISSING, BAD, UNUSED = "found", "MISSING", "BAD", "not used"


@dataclass(frozen=True)
class Artefact:
    """One file or folder: which key asks for it, its state, bytes (expected ones if it is not there), licence, origin."""

    needed_by: str
    path: str
    state: str
    size: int
    licence: str
    where: str
    problem: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The parameters to check for."""
    parser.add_argument("--params", type=Path, default="params.yaml", metavar="FILE", help="default: params.yaml")
    parser.add_argument("--profile", metavar="NAME", help="lay profiles/NAME.yaml over the parameters")
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(args: argparse.Namespace) -> int:
    """Print the findings; 1 if anything needed is missing. BadParams as for any command."""
    from tasks import params

    root = Path.cwd()
    artefacts = list(needed(params.load(args.params, args.profile), root))
    machine = examine(root)
    fine = not any(a.state in (MISSING, BAD) for a in artefacts) and not machine["problems"]
    if args.json:
        result = {"ok": fine, "profile": args.profile, "artefacts": [asdict(a) for a in artefacts], "machine": machine}
        text = json.dumps(result, indent=1)
    else:
        text = describe(artefacts, machine, fine)
    sys.stdout.write(f"{text}\n")
    return 0 if fine else 1


def needed(config: "Config", root: Path) -> Iterator[Artefact]:
    """Everything the configuration names that is not made by a stage, in the order of the pipeline."""
    from gdpo.model.sources import LPIPS_VGG

    yield from _photographs(config, root)
    yield from _base(config.model.base, root)
    if config.pretrain.init is not None:
        yield from _init(root / config.pretrain.init, root)
    if config.pretrain.perceptual == "lpips-vgg":
        yield from (_file("pretrain.perceptual", _hub() / name, root) for name in LPIPS_VGG)
    yield from _metrics(config, root)
    yield from _tagger(root)


def _photographs(config: "Config", root: Path) -> Iterator[Artefact]:
    from gdpo.data.sources import photographs

    for key, spec in (("train", config.degrade.train), ("evaluation", config.degrade.evaluation)):
        try:
            found = photographs(spec, key, root)  # type: ignore[arg-type]
        except ValueError as error:
            yield Artefact(f"degrade.{key}", spec, MISSING, 0, "yours", "a folder of photographs", str(error))
        else:
            size = sum(photo.path.stat().st_size for photo in found)
            yield Artefact(f"degrade.{key}", f"{spec} ({len(found)} files)", FOUND, size, "of each photograph", "")


def _base(base: str, root: Path) -> Iterator[Artefact]:
    """The files of a diffusers folder that `load_base` reads, and whether its schedule is the right one."""
    from gdpo.model.checkpoints import check_scheduler
    from gdpo.model.sources import BASE_FILES, BASE_LICENCE, BASE_SOURCES, Source

    ours = base.startswith("assets/")
    licence = f"{base}/README.md" if ours else BASE_LICENCE
    where = "git checkout of this repository" if ours else "; or ".join(BASE_SOURCES)
    for name, size in BASE_FILES.items():
        artefact = _file("model.base", root / base / name, root, Source(0 if ours else size, licence, where))
        if name == "scheduler/scheduler_config.json" and artefact.state == FOUND:
            try:
                check_scheduler(root / base)
            except ValueError as error:
                artefact = replace(artefact, state=BAD, problem=str(error))
        yield artefact
    vocabulary = [root / base / "tokenizer" / name for name in ("tokenizer.json", "vocab.json")]
    there = next((path for path in vocabulary if path.is_file()), vocabulary[0])
    yield _file("model.base", there, root, Source(0, licence, where))


def _init(folder: Path, root: Path) -> Iterator[Artefact]:
    """The model folder that pretraining starts from: its card, and the adapter files that the card names."""
    card = _file("pretrain.init", folder / "model.json", root)
    if card.state != FOUND:
        yield card
        return
    try:
        names = [entry["file"] for entry in json.loads((folder / "model.json").read_text())["adapters"]]
    except (ValueError, KeyError, TypeError) as error:
        yield replace(card, state=BAD, problem=f"not a model.json of ours ({error!r})")
        return
    yield card
    yield from (_file("pretrain.init", folder / name, root) for name in names)


def _metrics(config: "Config", root: Path) -> Iterator[Artefact]:
    """The weights of every metric that a stage computes, each file once."""
    from gdpo.rewards.metrics import METRICS, NIQE_FILE

    asked: dict[str, list[str]] = {
        "select.score": [config.select.score],
        "rollout.fidelity": config.rollout.fidelity,
        "rollout.perception": config.rollout.perception,
        "evaluate.metrics": config.evaluate.metrics,
    }
    keys: dict[Path, list[str]] = {}
    for key, names in asked.items():
        for name in names:
            if name not in METRICS:
                raise ValueError(f"{key}: unknown metric {name!r}; known are {', '.join(METRICS)}")
            for path in [NIQE_FILE] if name == "niqe" else [_hub() / file for file in METRICS[name].weights]:
                keys.setdefault(path, []).append(f"{key} ({name})")
    for path, who in keys.items():
        yield _file(", ".join(who), path, root)


def _tagger(root: Path) -> Iterator[Artefact]:
    from gdpo.model.sources import TAGGER, source_of

    for name in TAGGER:
        source = source_of(Path(name))
        note = "no stage reads it yet: pairs have no tags, the prompt is model.prompt alone"
        yield Artefact("(tagger)", name, UNUSED, source.size, source.licence, source.where, note)


def _hub() -> Path:
    import torch

    return Path(torch.hub.get_dir())


def _file(key: str, path: Path, root: Path, source: "Source | None" = None) -> Artefact:
    from gdpo.model.sources import source_of

    known = source or source_of(path)
    shown = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
    if path.is_file() and path.stat().st_size:
        return Artefact(key, shown, FOUND, path.stat().st_size, known.licence, known.where)
    problem = "empty file" if path.is_file() else ""
    return Artefact(key, shown, MISSING, known.size, known.licence, known.where, problem)


def examine(root: Path) -> dict[str, Any]:
    """What runs here: versions, processors, memory, disk, GPUs; "problems" lists what does not fit pyproject.toml."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    versions, problems = _versions(root)
    return {
        "python": platform.python_version(),
        "packages": versions,
        "cpus": os.cpu_count(),
        "memory": memory,
        "disk_free": shutil.disk_usage(root).free,
        "cuda": torch.version.cuda,
        "gpus": [{"name": gpu.name, "memory": gpu.total_memory} for gpu in gpus],
        "problems": problems,
    }


def _versions(root: Path) -> tuple[dict[str, str], list[str]]:
    """Installed versions of what pyproject.toml asks for, and one line per package (or Python) that does not fit."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    path = root / "pyproject.toml"
    if not path.is_file():
        return {}, [f"{path.name}: no such file; run this in the repository"]
    project = tomllib.loads(path.read_text())["project"]
    versions: dict[str, str] = {}
    problems = []
    if not SpecifierSet(project["requires-python"]).contains(platform.python_version()):
        problems.append(f"Python is {platform.python_version()}, pyproject.toml asks for {project['requires-python']}")
    for text in project["dependencies"]:
        requirement = Requirement(text)
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            problems.append(f"{requirement.name} is not installed; `make .venv` installs everything")
            continue
        versions[requirement.name] = found
        if not requirement.specifier.contains(found, prereleases=True):
            problems.append(f"{requirement.name} is {found}, pyproject.toml asks for {requirement.specifier}")
    return versions, problems


def describe(artefacts: list[Artefact], machine: dict[str, Any], fine: bool) -> str:
    """The findings as text: one line per artefact, its problem below, and for absent ones of one origin where to get them."""
    lines = []
    for a, following in zip(artefacts, [*artefacts[1:], None], strict=True):
        lines.append(f"{a.state:9}{_bytes(a.size):>9}  {a.path}  [{a.needed_by}; {a.licence}]")
        last = following is None or (following.state, following.where) != (a.state, a.where)
        where = f"from: {a.where}" if a.state in (MISSING, UNUSED) and last else ""
        lines += [f"{'':20}{text}" for text in (a.problem, where) if text]
    gpus = ", ".join(f"{gpu['name']} {_bytes(gpu['memory'])}" for gpu in machine["gpus"]) or "none"
    chosen = ("torch", "diffusers", "transformers", "peft", "pyiqa")
    versions = ", ".join(f"{name} {machine['packages'].get(name, 'absent')}" for name in chosen)
    lines += [
        f"Python {machine['python']}, {versions}",
        f"{machine['cpus']} CPUs, {_bytes(machine['memory'])} memory, {_bytes(machine['disk_free'])} free disk, GPU: {gpus}",
        *machine["problems"],
    ]
    missing = sum(a.state in (MISSING, BAD) for a in artefacts)
    return "\n".join([*lines, "ready" if fine else f"not ready: {missing} of {len(artefacts)} artefacts missing or bad"])


def _bytes(size: int) -> str:
    if not size:
        return "?"
    unit, name = next((u, n) for u, n in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"), (1, "B")) if size >= u)
    return f"{size / unit:.4g} {name}"
