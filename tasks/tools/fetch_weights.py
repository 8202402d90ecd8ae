"""`gdpo-sr fetch --metrics`: the weights of metrics and of the perceptual loss, into torch.hub's
folder ($TORCH_HOME/hub), each file from the first source that has it.

    fetch.weights     the sources, tried in order: a folder, s3://bucket/prefix,
                      hf://owner/name@revision, https://host/path
    hashes            the first eight digits of the SHA-256 that a published name ends with, or the
                      whole one in HASHES, must be met
    <file>.source     where the file came from, its SHA-256, its licence

A file that already exists is not fetched. A source that does not answer is reported in one line
and skipped from then on.
"""

import json
import re
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from gdpo.config import Config
from gdpo.data.selection import metric_of
from gdpo.errors import one_line
from gdpo.files import sha256, written_aside
from gdpo.metrics.table import metric
from gdpo.model.sources import LPIPS_VGG, Source, source_of
from tasks.tools.sources import Listing, listing

# Of names without a hash; from OpenAI's address of the file.
HASHES = {"RN50.pt": "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"}
TIMEOUT_S = 30.0
Note = Callable[[str], None]


def asked_for(config: Config) -> dict[str, list[str]]:
    """The metrics that the parameters name: {key: names}."""
    score = "score" if config.select.rule == "quality" else "difficulty"
    return {
        f"select.{score}": [metric_of(config.select)],
        "reward.fidelity": config.reward.fidelity,
        "reward.perception": config.reward.perception,
        "rollout.metrics": config.rollout.metrics,
        "evaluate.metrics": config.evaluate.metrics,
        "grpo.metrics": config.grpo.metrics,
    }


def needed(config: Config, names: list[str]) -> dict[str, Source]:
    """The files of these metrics, or of all that the parameters need: {path below the hub: source}.

    Errors: ValueError for an unknown metric.
    """
    wanted = names or [name for group in asked_for(config).values() for name in group]
    files = {path: source for name in wanted for path, source in metric(name).weights.items()}
    if not names and config.pretrain.perceptual == "lpips-vgg":
        files |= {path: source_of(Path(path)) for path in LPIPS_VGG}
    return files


def fetch_weights(config: Config, names: list[str], hub: Path, note: Note) -> Iterator[str]:
    """Fetch what is not there yet; a line for each file.

    names: of metrics; []: all that the parameters name. note: called with the reason for each
    source that failed. Errors: ValueError naming the files that no source has.
    """
    absent, listings = list[str](), dict[str, Listing | None]()
    for path, source in needed(config, names).items():
        target = hub / path
        if target.is_file() and target.stat().st_size:
            yield f"{target}: already exists"
            continue
        origin = _first(config.fetch.weights, listings, path, target, note)
        if origin is None:
            absent.append(f"{target.name} ({source.where})")
            continue
        record = {"source": origin, "sha256": sha256(target), "licence": source.licence}
        with written_aside(target.with_name(f"{target.name}.source")) as part:
            part.write_text(json.dumps(record, indent=1) + "\n")
        yield f"{target}: {target.stat().st_size:,} bytes, {source.licence}, from {origin}"
    if absent:
        raise ValueError(
            f"no source of fetch.weights has {', '.join(absent)}; put them into {hub} by hand"
        )


def _first(
    sources: list[str], listings: dict[str, Listing | None], path: str, target: Path, note: Note
) -> str | None:
    """Fetch one file from the first source that works; the source, or None.

    listings: those of the sources so far, each asked for once; None: it did not answer.
    """
    for source in sources:
        if source not in listings and not source.startswith("https://"):
            listings[source] = _listing(source, note)
        name = _name(source, listings.get(source), path)
        if name is None:
            continue
        try:
            with written_aside(target) as part:
                _read(source, listings.get(source), name, part)
                # Before the rename: no metric can read a file with a wrong hash.
                _check_hash(target.name, sha256(part))
            return source
        except (ValueError, OSError, HTTPException) as error:
            note(f"{source}: {target.name}: {one_line(error)}")
    return None


def _check_hash(name: str, digest: str) -> None:
    in_name = re.search(r"-([0-9a-f]{8})\.\w+$", name)
    wanted = HASHES.get(name, in_name.group(1) if in_name else "")
    if not digest.startswith(wanted):
        raise ValueError(f"has the SHA-256 {digest}, not {wanted}...")


def _listing(source: str, note: Note) -> Listing | None:
    try:
        return listing(source)
    except (ValueError, OSError) as error:
        note(f"{source}: {one_line(error)}")
        return None


def _name(source: str, files: Listing | None, path: str) -> str | None:
    """The name of a file at a source, by its path below the hub or alone; None if it lacks it."""
    names = (path, Path(path).name)
    if source.startswith("https://"):
        return names[1]
    return next((name for name in names if files is not None and name in files.files), None)


def _read(source: str, files: Listing | None, name: str, part: Path) -> None:
    """Copy a file of a source to `part`."""
    if files is not None:
        files.read(name, part)
        return
    address = f"{source.rstrip('/')}/{name}"
    with urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer, part.open("wb") as file:
        _copy(answer, file, name)


def _copy(answer: HTTPResponse, file: BinaryIO, name: str) -> None:
    """Copy an answer to a file, with a progress bar on a terminal. ValueError if it breaks off."""
    whole = answer.length
    with tqdm(total=whole, desc=name, unit="B", unit_scale=True, disable=None) as bar:
        while data := answer.read(1 << 20):
            file.write(data)
            bar.update(len(data))
    if whole is not None and file.tell() != whole:
        raise ValueError(f"broke off after {file.tell():,} of {whole:,} bytes")
