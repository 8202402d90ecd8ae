"""Tool `fetch`: downloads the base model from the first source that works to model.base.

    gdpo-sr fetch --profile paper

    fetch.base      the sources, tried in order: a folder, s3://bucket/prefix, or
                    hf://owner/name@commit (from the hub at HF_ENDPOINT)
    fetch.hashes    the SHA-256 that files must have, whatever the source
    work/fetch/     holds a download until it is complete; complete files are not fetched again

Only the files that `load_base` reads are fetched: fp32 weights as safetensors, configurations and
tokenizer. The noise schedule is checked before the weights are fetched; a v-prediction base is
refused by name. The whole model is loaded once before it moves to model.base. The SHA-256 of every
file goes to <model.base>.source.json. This is the only command that goes online.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EXAMPLE = "gdpo-sr fetch --profile paper"


@dataclass(frozen=True)
class Listing:
    """The files of a source.

    files: names relative to the model folder, with the SHA-256 if the source states it, else None.
    read: downloads the file of a name to a path.
    """

    files: dict[str, str | None]
    read: Callable[[str, Path], object]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The parameters that name the base model and its sources."""
    parser.add_argument(
        "--params", type=Path, default="params.yaml", metavar="FILE", help="default: params.yaml"
    )
    parser.add_argument(
        "--profile", metavar="NAME", help="lay profiles/NAME.yaml over the parameters"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="lay one value over the parameters",
    )
    parser.add_argument("--json", action="store_true", help="print the record as JSON")


def main(args: argparse.Namespace) -> int:
    """Fetch the model and print its source; 0 also if the model already exists.

    ValueError if no source works, or if the existing model does not load.
    """
    from gdpo.model.checkpoints import load_base
    from tasks import params

    config, root = params.load(args.params, args.profile, args.set), Path.cwd()
    target = root / config.model.base
    record_path = target.with_name(f"{target.name}.source.json")
    if target.exists():
        try:
            load_base(target)
        except ValueError as error:
            raise ValueError(f"{error}; move {config.model.base} away to fetch it again") from error
        record = (
            json.loads(record_path.read_text())
            if record_path.is_file()
            else {"source": "unknown", "files": {}}
        )
        line = f"{config.model.base}: is there already, and loads"
    else:
        record = fetch(config.fetch.base, config.fetch.hashes, target, root / "work/fetch", _note)
        record_path.write_text(json.dumps(record, indent=1) + "\n")
        size = sum(file["size"] for file in record["files"].values())
        line = (
            f"{config.model.base}: {len(record['files'])} files, {size:,} bytes, from "
            f"{record['source']}"
        )
    sys.stdout.write((json.dumps(record, indent=1) if args.json else line) + "\n")
    return 0


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
            files = _download(_listing(source), hashes, folder)
        except (ValueError, OSError) as error:
            reasons.append(f"{source}: {' '.join(str(error).split())}")
            note(reasons[-1])
            continue
        with written_aside(target) as part:
            shutil.move(folder, part)
        return {"source": source, "files": files}
    if not reasons:
        raise ValueError(f"{target}: is not there, and fetch.base names no source to get it from")
    raise ValueError(f"{target}: no source of fetch.base works ({'; '.join(reasons)})")


def _download(listing: Listing, hashes: dict[str, str], folder: Path) -> dict[str, dict[str, Any]]:
    """Download the needed files to `folder` and check them; a file with a wrong hash is deleted."""
    from tqdm import tqdm

    from gdpo.model.checkpoints import check_scheduler, load_base, sha256

    names, found = _needed(set(listing.files)), {}
    with tqdm(names, desc="fetch", unit="file", disable=None) as bar:  # only on a terminal
        for name in bar:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_file():
                part = path.with_name(f".{path.name}.part")
                listing.read(name, part)
                os.replace(part, path)
            digest = sha256(path)
            for wanted in (hashes.get(name), listing.files[name]):
                if wanted not in (None, digest):
                    path.unlink()
                    raise ValueError(f"{name} has the SHA-256 {digest}, not {wanted}")
            found[name] = {"size": path.stat().st_size, "sha256": digest}
            if name == "scheduler/scheduler_config.json":
                _or_remove(folder, lambda: check_scheduler(folder))
    _or_remove(folder, lambda: load_base(folder))
    return found


def _or_remove(folder: Path, check: Callable[[], object]) -> None:
    """Run `check`; delete the download if it fails, so that the next attempt starts afresh."""
    try:
        check()
    except ValueError as error:
        shutil.rmtree(folder)
        raise ValueError(str(error).replace(f"{folder}/", "")) from error


def _needed(there: set[str]) -> list[str]:
    """The files to fetch, the schedule first and the weights last.

    ValueError naming the first file that the source lacks.
    """
    from gdpo.model.sources import BASE_FILES

    for name in BASE_FILES:
        stem, _, kind = name.rpartition(".")
        if name not in there and f"{stem}.fp16.{kind}" in there:
            raise ValueError(
                f"has {stem}.fp16.{kind} and no {name}; NAOSD is trained on fp32 weights"
            )
        if name not in there:
            raise ValueError(
                f"has no {name}"
                + ("; pickled weights are not read" if kind == "safetensors" else "")
            )
    # Only files directly in that folder: a name with ".." in a bucket or hub must not be written to
    # another place.
    tokenizer = {name for name in there if re.fullmatch(r"tokenizer/[^/\\]+\.(json|txt)", name)}
    if (
        "tokenizer/tokenizer.json" not in there
        and not {"tokenizer/vocab.json", "tokenizer/merges.txt"} <= there
    ):
        raise ValueError("has no tokenizer/vocab.json and tokenizer/merges.txt")
    return sorted(
        tokenizer | set(BASE_FILES),
        key=lambda name: (name.endswith(".safetensors"), "scheduler" not in name, name),
    )


def _listing(source: str) -> Listing:
    """The files of a source. ValueError or OSError if it does not exist or does not answer."""
    if source.startswith("hf://"):
        return _hub(*source.removeprefix("hf://").split("@"))
    if source.startswith("s3://"):
        from tasks.store.s3 import Store

        store = Store.at(source)
        return Listing(dict.fromkeys(store.keys()), store.download)
    folder = Path(source)
    if not folder.is_dir():
        raise ValueError("no such folder")
    files = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
    return Listing(dict.fromkeys(files), lambda name, path: shutil.copyfile(folder / name, path))


def _hub(repository: str, commit: str) -> Listing:
    from huggingface_hub import HfApi

    # Read here, because the library reads it only once, when it is first imported.
    endpoint = os.environ.get("HF_ENDPOINT")

    def read(name: str, path: Path) -> None:
        cache = path.parent / ".hub"
        with _online():
            got = HfApi(endpoint).hf_hub_download(
                repository, name, revision=commit, local_dir=cache
            )
        os.replace(got, path)
        shutil.rmtree(cache)

    with _online():
        tree = HfApi(endpoint).list_repo_tree(repository, revision=commit, recursive=True)
        files = {
            entry.path: getattr(entry, "lfs", None) for entry in tree if hasattr(entry, "size")
        }
    return Listing({name: lfs.sha256 if lfs else None for name, lfs in files.items()}, read)


@contextmanager
def _online() -> Iterator[None]:
    """Let the hub's library go online, and turn its errors into OSError.

    The command line sets HF_HUB_OFFLINE for every command.
    """
    from httpx import HTTPError
    from huggingface_hub import constants
    from huggingface_hub.errors import EntryNotFoundError

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, False
    try:
        yield
    except (HTTPError, EntryNotFoundError) as error:
        raise OSError(" ".join(str(error).split())) from error
    finally:
        constants.HF_HUB_OFFLINE = before
