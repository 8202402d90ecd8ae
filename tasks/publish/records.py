"""The records of published runs and promoted models in the bucket: reading and checking them.

    runs/<id>/manifest.json     every file of the run with its SHA-256, and the run's entry in the
                                lists
    models/latest.json          the pointer: a system's promoted runs, newest first

tasks/publish/publication.py writes the manifests, tasks/publish/promotion.py the pointers.
"""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

from pydantic import BaseModel, Field

from tasks.paths import RUNS_PAGE
from tasks.store.s3 import Store
from tasks.systems import SYSTEMS

# The fields of `_Needed` and of `contents.report_entry`; other versions may have written fewer or
# more.
Manifest = dict[str, Any]
CONNECTIONS = 8  # requests to the bucket at once
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class _File(BaseModel):
    sha256: str
    bytes: Annotated[int, Field(ge=0)]


class _Needed(BaseModel):
    """The fields that every reader of a manifest needs."""

    run: str
    files: dict[str, _File]


def manifests(store: Store) -> list[Manifest]:
    """The manifests of all complete runs, newest first."""
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        published = list(pool.map(lambda run: manifest_or_none(store, run), store.folders("runs/")))
    return sorted(
        (manifest for manifest in published if manifest),
        key=lambda manifest: manifest["run"],
        reverse=True,
    )


def manifest_of(store: Store, run: str) -> Manifest:
    """One run's manifest; ValueError naming the run if there is none."""
    manifest = manifest_or_none(store, run) if RUN_NAME.fullmatch(run) else None
    if manifest is None:
        raise ValueError(
            f"{store.url('runs')}: no complete run named {run!r}; {RUNS_PAGE} lists them"
        )
    return manifest


def manifest_or_none(store: Store, run: str) -> Manifest | None:
    """One run's manifest; None if it is missing or damaged: the upload did not end."""
    try:
        manifest = json.loads(store.read(f"runs/{run}/manifest.json"))
        return dict(manifest) if _Needed.model_validate(manifest, strict=True).run == run else None
    # RecursionError: JSON that is nested too deeply is damage as well. Errors of the store itself,
    # such as a missing permission, are OSErrors and pass.
    except (ValueError, RecursionError):
        return None


def system_of(manifest: Manifest) -> str:
    """The system of a run. ValueError naming the run if this version knows none of that name."""
    system = manifest.get("system", "gdpo")  # versions with one system stated none
    if system not in SYSTEMS:
        raise ValueError(f"runs/{manifest['run']}: of a system {system!r} that is unknown here")
    return str(system)


def promoted(store: Store, system: str = "gdpo") -> tuple[list[dict[str, Any]], str | None]:
    """(the promoted runs of a system, newest first; the pointer's tag for `swap`).

    ([], None) before the first promotion. ValueError naming a pointer that is no list of runs.
    """
    try:
        content, tag = store.fetch(SYSTEMS[system].pointer)
    except ValueError as error:
        if "no such object" in str(error):
            return [], None
        raise
    try:
        return [dict(entry) for entry in json.loads(content)["promoted"]], tag
    except (ValueError, RecursionError, KeyError, TypeError):
        place = store.url(SYSTEMS[system].pointer)
        raise ValueError(
            f"{place}: not a list of promoted runs; bring back the object's last version"
        ) from None


def all_promoted(store: Store) -> list[dict[str, Any]]:
    """The entries of all pointers, each system's newest first and marked `latest`."""
    return [
        {**entry, "latest": place == 0, "system": system}
        for system in SYSTEMS
        for place, entry in enumerate(promoted(store, system)[0])
    ]


def to_json(content: Any) -> bytes:
    """A record as it is stored: a claim hashes these bytes, so their format is fixed."""
    return (json.dumps(content, indent=1) + "\n").encode()


def lost(store: Store, key: str) -> OSError:
    """The error for an object that was written without an error and is not there."""
    return OSError(
        f"{store.url(key)}: the store took it without an error and has not kept it; try again"
    )
