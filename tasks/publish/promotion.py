"""Promotion: making a published run the promoted one of its system.

The pointer (tasks/publish/records.py) is written by compare-and-swap, so of two promotions at once
one fails.
"""

import hashlib
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from gdpo.files import sha256, written_aside
from tasks.files.scores import SCORES
from tasks.publish.pages import list_models
from tasks.publish.records import Manifest, lost, manifest_of, promoted, system_of, to_json
from tasks.store.conditional import swap
from tasks.store.errors import Conflict
from tasks.store.s3 import Store
from tasks.systems import SYSTEMS


def promote(store_url: str, run: str, when: datetime) -> Manifest:
    """Make `run` the promoted one of its system and list the models; returns its manifest.

    If `run` is already the promoted one, only the lists are brought up to date; so repeating an
    interrupted promotion completes it. ValueError if the run does not exist or has no model, or if
    a file of the model or scores is missing or differs from the published one. `Conflict` if
    another run was promoted at the same time.
    """
    store = Store.at(store_url)
    manifest = manifest_of(store, run)
    system = system_of(manifest)
    pointer = SYSTEMS[system].pointer
    promotions, tag = promoted(store, system)
    if not promotions or promotions[0]["run"] != run:
        model = [name for name in manifest["files"] if name.startswith("model/")]
        if not model:
            raise ValueError(f"{store.url(f'runs/{run}')}: has no model to promote")
        # Read and hashed here: once promoted, every user gets these bytes.
        for name in [*model, *_scores(manifest)]:
            _check(
                store, manifest, name, hashlib.sha256(store.read(f"runs/{run}/{name}")).hexdigest()
            )
        entry = {
            "run": run,
            "promoted": when.isoformat(timespec="seconds"),
            "commit": manifest.get("commit"),
        }
        try:
            swap(store, pointer, to_json({"run": run, "promoted": [entry, *promotions]}), tag)
        except Conflict as error:
            raise Conflict(
                f"{store.url(pointer)}: another run was promoted at the same time; look at it, "
                "then promote again if yours is still the one"
            ) from error
        # Read again: a gateway may answer 200 and keep nothing. Among all entries and not the
        # first: another promotion may have followed by now.
        if all(entry["run"] != run for entry in promoted(store, system)[0]):
            raise lost(store, pointer)
    list_models(store)
    return manifest


def _check(store: Store, manifest: Manifest, name: str, actual: str) -> None:
    """ValueError naming the file if its SHA-256 `actual` is not the one in the manifest.

    The SHA-256 stored with the object cannot show this: it is replaced together with the object.
    """
    wanted, place = manifest["files"][name]["sha256"], store.url(f"runs/{manifest['run']}/{name}")
    if actual != wanted:
        hashes = f"SHA-256 {actual[:12]}..., in the manifest {wanted[:12]}..."
        raise ValueError(
            f"{place}: not the file that was published ({hashes}); publish the run again"
        )


def _scores(manifest: Manifest) -> Sequence[str]:
    return [
        name
        for name in manifest["files"]
        if re.fullmatch(rf"evaluate/[^/.][^/]*/{re.escape(SCORES)}", name)
    ]


def download_scores(store: Store, manifest: Manifest, folder: Path) -> list[Path]:
    """Download the run's scores to folder/<benchmark>/per_image.parquet; returns the files.

    ValueError if a file differs from the published one.
    """
    paths = []
    for name in _scores(manifest):
        path = folder / Path(name).relative_to("evaluate")
        with written_aside(path) as part:
            store.download(f"runs/{manifest['run']}/{name}", part)
            _check(store, manifest, name, sha256(part))
        paths.append(path)
    return paths
