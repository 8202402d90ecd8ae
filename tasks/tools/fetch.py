"""Tool `fetch`: downloads the base model from the first source that works to model.base.

    gdpo-sr fetch --profile paper

    fetch.base      the sources, tried in order: a folder, s3://bucket/prefix, or
                    hf://owner/name@commit (from the hub at HF_ENDPOINT)
    fetch.weights   sources of the metrics' weights, with --metrics (fetch_weights.py)
    fetch.hashes    the SHA-256 that files must have, whatever the source
    work/fetch/     holds a download until it is complete; complete files are not fetched again

Only the files that `read_base` reads are fetched: fp32 weights as safetensors, configurations and
tokenizer. The noise schedule is checked before the weights are fetched; a v-prediction base is
refused by name. The whole model is loaded once before it moves to model.base. The SHA-256 of every
file goes to <model.base>.source.json. Only this command and push-to-hub go online.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gdpo.errors import one_line
from tasks import paths
from tasks.arguments import add_params
from tasks.tools.sources import Listing, listing, online

EXAMPLE = "gdpo-sr fetch --profile paper"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The parameters that name the base model and its sources."""
    add_params(parser)
    parser.add_argument(
        "--model",
        type=Path,
        metavar="FOLDER",
        help="instead: the base hf://owner/name@revision that this folder's model.json names, to "
        "the hub's cache",
    )
    parser.add_argument(
        "--metrics",
        nargs="*",
        metavar="NAME",
        help="instead: the weights of these metrics, without names of all that the parameters need",
    )
    parser.add_argument("--json", action="store_true", help="print the record as JSON")


def main(args: argparse.Namespace) -> int:
    """Fetch the model and print its source; 0 also if the model already exists.

    ValueError if no source works, or if the existing model does not load.
    """
    if args.metrics is not None:
        return _metrics(args)
    if args.model is not None:
        base = to_cache(args.model)
        sys.stdout.write((json.dumps({"base": str(base)}) if args.json else str(base)) + "\n")
        return 0
    from tasks import params

    config, root = params.load(args.params, args.profile, args.set), Path.cwd()
    target = root / config.model.base
    record_path = target.with_name(f"{target.name}.source.json")
    if target.exists():
        record: dict[str, Any] = {"source": "unknown", "files": {}}
        if record_path.is_file():
            record = json.loads(record_path.read_text())
        line = f"{config.model.base}: already exists, {_checked(target, record)}"
    else:
        record = fetch(
            config.fetch.base, config.fetch.hashes, target, paths.work(root, "fetch"), _note
        )
        record_path.write_text(json.dumps(record, indent=1) + "\n")
        size = sum(file["size"] for file in record["files"].values())
        line = (
            f"{config.model.base}: {len(record['files'])} files, {size:,} bytes, from "
            f"{record['source']}"
        )
    sys.stdout.write((json.dumps(record, indent=1) if args.json else line) + "\n")
    return 0


def _metrics(args: argparse.Namespace) -> int:
    import torch

    from tasks import params
    from tasks.tools.fetch_weights import fetch_weights

    config, hub = params.load(args.params, args.profile, args.set), Path(torch.hub.get_dir())
    for line in fetch_weights(config, args.metrics, hub, _note):
        sys.stdout.write(f"{line}\n")
    return 0


def _checked(target: Path, record: dict[str, Any]) -> str:
    """What a model that is there was checked by: its record, or without one by loading it.

    Errors: ValueError if a file is not of the recorded size, or the model does not load.
    """
    again = f"move {os.path.relpath(target)} away to fetch it again"
    for name, file in record["files"].items():
        if not (target / name).is_file() or (target / name).stat().st_size != file["size"]:
            raise ValueError(f"{target / name}: is not the {file['size']} bytes fetched; {again}")
    if record["files"]:
        return f"its files as fetched from {record['source']}"
    _note(f"{target}: already exists, loading it to check it ...")
    from gdpo.model.base import read_base  # torch and the model classes: seconds

    try:
        read_base(target)
    except ValueError as error:
        raise ValueError(f"{error}; {again}") from error
    return "and loads"


def to_cache(model: Path) -> Path:
    """Download the base on the hub that the card of `model` names to the hub's cache, and check it.

    Returns its folder. ValueError or OSError in one line if it is not there or another model.
    """
    from huggingface_hub import HfApi

    from gdpo.model.card import hub_base, read_card
    from gdpo.model.checkpoints import read_folder

    repository, revision = hub_base(model, read_card(model))
    api, names = (
        HfApi(os.environ.get("HF_ENDPOINT")),
        _needed(set(listing(f"hf://{repository}@{revision}").files)),
    )
    with online():
        for name in names:
            api.hf_hub_download(repository, name, revision=revision)
    return read_folder(model).base


def _note(text: str) -> None:
    sys.stderr.write(f"gdpo-sr: note: {text}\n")


def fetch(
    sources: list[str],
    hashes: dict[str, str],
    target: Path,
    work: Path,
    note: Callable[[str], None],
) -> dict[str, Any]:
    """Put the base model of the first source that works at `target`.

    hashes: the SHA-256 that files must have. note: called with the reason for each source that
    failed. Returns {"source": ..., "files": {name: {"size": ..., "sha256": ...}}}. ValueError with
    every source's reason if none works; then there is nothing at `target`, and complete files stay
    in `work` for another attempt.
    """
    from gdpo.files import written_aside

    reasons = []
    for source in sources:
        folder = work / hashlib.sha256(source.encode()).hexdigest()[:12]
        try:
            files = _download(listing(source), hashes, folder)
        except (ValueError, OSError) as error:
            reasons.append(f"{source}: {one_line(error)}")
            note(reasons[-1])
            continue
        # By way of a scratch folder: `work` may be on another file system, where a move copies.
        with written_aside(target) as part:
            shutil.move(folder, part)
        return {"source": source, "files": files}
    if not reasons:
        raise ValueError(f"{target}: is not there, and fetch.base names no source to get it from")
    raise ValueError(f"{target}: no source of fetch.base works ({'; '.join(reasons)})")


def _download(listing: Listing, hashes: dict[str, str], folder: Path) -> dict[str, dict[str, Any]]:
    """Download the needed files to `folder` and check them; a file with a wrong hash is deleted."""
    from tqdm import tqdm

    from gdpo.files import sha256
    from gdpo.model.base import check_scheduler, read_base

    names, actual = _needed(set(listing.files)), {}
    with tqdm(names, desc="fetch", unit="file", disable=None) as bar:  # only on a terminal
        for name in bar:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_file():
                part = path.with_name(f".{path.name}.part")
                listing.read(name, part)
                # Complete under its name or not at all: another attempt goes on from these files.
                os.replace(part, path)
            digest = sha256(path)
            for wanted in (hashes.get(name), listing.files[name]):
                if wanted not in (None, digest):
                    path.unlink()
                    raise ValueError(f"{name} has the SHA-256 {digest}, not {wanted}")
            actual[name] = {"size": path.stat().st_size, "sha256": digest}
            # The first file, checked at once: a base with another schedule is of no use, and
            # gigabytes would follow.
            if name == "scheduler/scheduler_config.json":
                _or_remove(folder, lambda: check_scheduler(folder))
    _or_remove(folder, lambda: read_base(folder))
    return actual


def _or_remove(folder: Path, check: Callable[[], object]) -> None:
    """Run `check`; delete the download if it fails, so that the next attempt starts afresh."""
    try:
        check()
    except ValueError as error:
        shutil.rmtree(folder)
        raise ValueError(str(error).replace(f"{folder}/", "")) from error


def _needed(available: set[str]) -> list[str]:
    """The files to fetch, the schedule first and the weights last.

    ValueError naming the first file that the source lacks.
    """
    from gdpo.model.sources import BASE_FILES

    for name in BASE_FILES:
        stem, _, kind = name.rpartition(".")
        if name not in available and f"{stem}.fp16.{kind}" in available:
            raise ValueError(
                f"has {stem}.fp16.{kind} and no {name}; NAOSD is trained on fp32 weights"
            )
        if name not in available:
            raise ValueError(
                f"has no {name}"
                + ("; pickled weights are not read" if kind == "safetensors" else "")
            )
    # Only files directly in that folder: a name with ".." in a bucket or hub must not be written to
    # another place.
    tokenizer = {name for name in available if re.fullmatch(r"tokenizer/[^/\\]+\.(json|txt)", name)}
    if (
        "tokenizer/tokenizer.json" not in available
        and not {"tokenizer/vocab.json", "tokenizer/merges.txt"} <= available
    ):
        raise ValueError("has no tokenizer/vocab.json and tokenizer/merges.txt")
    return sorted(
        tokenizer | set(BASE_FILES),
        key=lambda name: (name.endswith(".safetensors"), "scheduler" not in name, name),
    )
