"""Published runs and promoted models in the bucket, as pages that people browse.

    runs/<id>/claim.txt         written first: reserves the name for one publication, by the SHA-256
                                of its manifest
    runs/<id>/manifest.json     written last: every file of the run with its SHA-256, and the run's
                                entry in the lists
    runs/<id>/index.html        the report, with its files; runs/<id>/model/ is the model, as a
                                merged folder that needs no base
    runs/index.html             all runs, newest first; generated from the manifests
    models/latest.json          the pointer: GDPO-SR's promoted runs, newest first; written by
                                compare-and-swap
    models/vlcot/latest.json    RealSR-R1's
    models/index.html           the promoted models, with a card each; generated from the pointers
                                and the manifests

A run without a complete manifest was interrupted and is not listed. A promoted run that was deleted
is listed as gone. All links are relative, so the pages work through a static gateway, behind a
prefix, and with `gdpo-sr browse`. Everything but the pointer works on a server without conditional
writes. A run is of one system (`tasks.systems.SYSTEMS`), which its manifest states.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from gdpo.files import sha256
from tasks.commands import reporter
from tasks.publish import contents
from tasks.publish.pages import list_runs
from tasks.publish.records import CONNECTIONS, RUN_NAME, Manifest, lost, to_json
from tasks.store.conditional import swap_or_look
from tasks.store.errors import Conflict
from tasks.store.s3 import Store
from tasks.systems import SYSTEMS

_log = logging.getLogger(__name__)
NAMES = 100  # limit of publications with the same second and commit
THUMBNAIL = "thumbnail.webp"


def run_id(when: datetime, commit: str) -> str:
    """The preferred name of a run: the time of publication (UTC) and the commit.

    `publish` appends a number if the name is taken.
    """
    return f"{when:%Y%m%dT%H%M%SZ}-{commit[:8]}"


def publish(
    root: Path,
    store_url: str,
    run: str,
    *,
    outs: Sequence[str],
    kind: str,
    commit: str,
    when: datetime,
    warn: Callable[[str], object] = _log.warning,
    system: str = "gdpo",
) -> str:
    """Upload the outputs `outs` under `root` as runs/<run>/, list the run, and return the report's
    `address`.

    outs: relative to `root`, each below the folder of the system's report, or its model. If another
    publication has the name, the run becomes <run>-2, and so on. Publishing the same contents again
    completes an interrupted publication. warn: gets a line about links that are left out.
    system: a key of `tasks.systems.SYSTEMS`. ValueError if an output or the report does not exist.
    """
    if not RUN_NAME.fullmatch(run):
        raise ValueError(f"{run!r} cannot name a run: letters, digits, dots, dashes")
    store = Store.at(store_url)
    with TemporaryDirectory() as scratch:
        has_model = SYSTEMS[system].model in outs
        model = contents.self_contained(root, Path(scratch), system) if has_model else None
        files = dict(sorted(contents.files(root, outs, model, warn, system)))
        manifest = contents.report_entry(root, kind, commit, when, system)
        return _upload(root, store, run, files, manifest)


def _upload(root: Path, store: Store, run: str, files: dict[str, Path], manifest: Manifest) -> str:
    """Upload the files, the manifest last; returns the report's address."""
    system = manifest["system"]
    if "index.html" not in files:
        report, stage = root / SYSTEMS[system].report, reporter(system)
        raise ValueError(f"{report}: no report to publish; `dvc repro {stage}` writes it")
    manifest["files"] = {
        name: {"sha256": sha256(path), "bytes": path.stat().st_size} for name, path in files.items()
    }
    # Before the first file: two publications of one second and commit must not mix their files. The
    # claim holds the manifest's hash, so a repeated publication gets its own name back.
    run = _claim(store, run, to_json(manifest))
    link = address(store, f"runs/{run}/index.html")
    # list(): `map` raises an upload's error only when its result is read.
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(lambda item: store.write(f"runs/{run}/{item[0]}", item[1]), files.items()))
    store.write(f"runs/{run}/{THUMBNAIL}", contents.thumbnail(root, system))
    # Before the manifest, whose presence means that the run is complete.
    _check_arrived(store, run, manifest)
    content = to_json({"run": run, **manifest})
    store.write(f"runs/{run}/manifest.json", content)
    _check_holds(store, f"runs/{run}/manifest.json", content)
    list_runs(store)
    return link


def _check_arrived(store: Store, run: str, manifest: Manifest) -> None:
    """OSError naming a file that the store took without an error and does not have."""
    sizes = dict(store.sizes(f"runs/{run}/"))
    for name, file in manifest["files"].items():
        if sizes.get(f"runs/{run}/{name}") != file["bytes"]:
            raise lost(store, f"runs/{run}/{name}")


def _check_holds(store: Store, key: str, content: bytes) -> None:
    """The same for one object, by its content."""
    if store.tag_if_holds(key, content) is None:
        raise lost(store, key)


def _claim(store: Store, run: str, content: bytes) -> str:
    """Reserve a name: the first of <run>, <run>-2, ... that is free or claimed by this content."""
    claim = f"{hashlib.sha256(content).hexdigest()}\n".encode()
    for name in (run, *(f"{run}-{number}" for number in range(2, NAMES))):
        with suppress(Conflict):
            swap_or_look(store, f"runs/{name}/claim.txt", claim, None)
            return name
    raise ValueError(
        f"{store.url(f'runs/{run}')}: {NAMES - 1} runs have this name; publish again a second later"
    )


def address(store: Store, key: str) -> str:
    """The address of an object for people: below GDPO_GATEWAY if set, otherwise its s3:// URL.

    GDPO_GATEWAY is the address of a server that serves the bucket. Addresses go into artifacts and
    logs. They are not signed links, because those contain an access key's id, and the token of
    temporary credentials.
    """
    gateway = os.environ.get("GDPO_GATEWAY", "").rstrip("/")
    if "@" in urlsplit(gateway).netloc:
        raise ValueError(
            "GDPO_GATEWAY: has a user or password in it, which every link would show; leave them "
            "out"
        )
    return f"{gateway}/{key}" if gateway else store.url(key)
