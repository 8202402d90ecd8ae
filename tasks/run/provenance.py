"""Where an evaluation's numbers come from: the commit of the code, hashes of weights and data,
versions of the metrics.

The commit is the last one that changed the code this stage runs, not the one that is checked out:
results committed with their hashes (dvc.lock) would otherwise never be made again with the same
bytes. Two workers at one commit agree on it. Beside it stands a hash of that code, which is right
without git and for changes that are in no commit.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from dulwich.errors import NotGitRepository
from dulwich.object_store import iter_tree_contents
from dulwich.objects import Blob, Commit
from dulwich.repo import Repo

from gdpo.config import Config
from gdpo.metrics.score import versions

REPOSITORY = Path(__file__).resolve().parents[2]
CODE = ("gdpo", "tasks/stages/evaluate.py", "tasks/files/evaluation.py", "tasks/files/tags.py")
UNKNOWN = "unknown"


def fingerprint(settings: dict[str, Any], inputs: list[Path]) -> str:
    """A text that is equal only for equal settings and equal input folders (every file's bytes).

    A checkpoint carries it, so that a run never resumes from one made with other settings or other
    data. Shards, which may be
    half a terabyte, are no such folder: `Shards.fingerprint()` goes into the settings.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for folder in inputs:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            digest.update(str(path.relative_to(folder)).encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def commit(repository: Path = REPOSITORY) -> str:
    """The last commit that changed CODE, with `+changes` if files of it differ; `unknown` outside a
    git checkout.
    """
    try:
        with Repo(str(repository)) as repo:
            found = next(
                iter(repo.get_walker(paths=[place.encode() for place in CODE], max_entries=1)), None
            )
            if found is None:
                return UNKNOWN
            head = repo[repo.head()]
            assert isinstance(head, Commit)
            changed = _blobs(repository) != _committed(repo, head)
            return found.commit.id.decode() + ("+changes" if changed else "")
    except (
        NotGitRepository,
        KeyError,
        OSError,
    ):  # KeyError: a history that is not here, or no commit yet
        return UNKNOWN


def _committed(repo: Repo, commit: Commit) -> dict[bytes, bytes]:
    """Path -> blob id of the Python files of CODE in a commit."""
    entries = {
        entry.path: entry.sha for entry in iter_tree_contents(repo.object_store, commit.tree)
    }
    places = [place.encode() for place in CODE]
    ours = (
        path
        for path in entries
        if any(path == place or path.startswith(place + b"/") for place in places)
    )
    return {path: entries[path] for path in ours if path.endswith(b".py")}


def _blobs(repository: Path) -> dict[bytes, bytes]:
    """Path -> blob id of the Python files of CODE as they lie there."""
    return {
        path.relative_to(repository).as_posix().encode(): Blob.from_string(path.read_bytes()).id
        for path in _files(repository)
    }


def code(repository: Path = REPOSITORY) -> str:
    """A hash of the files of CODE, 16 hex digits."""
    digest = hashlib.sha256()
    for path in _files(repository):
        digest.update(path.relative_to(repository).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _files(repository: Path) -> list[Path]:
    places = [repository / place for place in CODE]
    return [
        path
        for place in places
        for path in (sorted(place.rglob("*.py")) if place.is_dir() else [place])
    ]


def origin(
    config: Config, root: Path, benchmark: str, metrics: list[str], data: list[Path]
) -> dict[str, Any]:
    """What the numbers of one benchmark depend on, as plain values; the metadata of
    per_image.parquet.

    data: the folders of LR and HR images, or of shards. Equal for equal code, weights, data and
    settings.
    """
    settings = config.evaluate
    peers = settings.pairs[benchmark].peers if benchmark in settings.pairs else {}
    return {
        "benchmark": benchmark,
        "commit": commit(),
        "code": code(),
        "weights": {
            name: fingerprint({}, [root / folder]) for name, folder in settings.models.items()
        },
        "tagger": None
        if config.model.tagger is None
        else fingerprint({}, [root / config.model.tagger]),
        "peers": {name: fingerprint({}, [root / folder]) for name, folder in peers.items()},
        "data": fingerprint({}, data),
        "metrics": versions(metrics),
        "seed": config.seed,
        "noises": noises(config, benchmark),
        "color_fix": settings.color_fix,
        "precision": settings.precision,
        "batch": settings.batch,  # decides how sums in low precision are rounded
        "reward": config.reward.model_dump(),
    }


def noises(config: Config, benchmark: str) -> int:
    """Noise seeds per image on a benchmark."""
    own = config.evaluate.pairs[benchmark].noises if benchmark in config.evaluate.pairs else None
    return own or config.evaluate.noises
