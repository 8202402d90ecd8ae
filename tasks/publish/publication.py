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
import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, Field

from gdpo.files import sha256, written_aside
from tasks.commands import reporter
from tasks.paths import MODELS_PAGE, RUNS_PAGE
from tasks.publish import contents
from tasks.report.html import environment
from tasks.store.conditional import refresh, swap, swap_or_look
from tasks.store.errors import Conflict
from tasks.store.s3 import Store
from tasks.systems import SYSTEMS

# The fields of `_Needed` and of `contents.report_entry`; other versions may have written fewer or
# more.
Manifest = dict[str, Any]
_log = logging.getLogger(__name__)
UPLOADS = 8
NAMES = 100  # limit of publications with the same second and commit
THUMBNAIL = "thumbnail.webp"
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class _File(BaseModel):
    sha256: str
    bytes: Annotated[int, Field(ge=0)]


class _Needed(BaseModel):
    """The fields that every reader of a manifest needs."""

    run: str
    files: dict[str, _File]


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
    if not _RUN.fullmatch(run):
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
    # Before the first file: two publications of one second and commit must not mix their files.
    run = _claim(store, run, _json(manifest))
    link = address(store, f"runs/{run}/index.html")
    with ThreadPoolExecutor(UPLOADS) as pool:
        list(pool.map(lambda item: store.write(f"runs/{run}/{item[0]}", item[1]), files.items()))
    store.write(f"runs/{run}/{THUMBNAIL}", contents.thumbnail(root, system))
    # Before the manifest, which says that the run is complete.
    _check_arrived(store, run, manifest)
    content = _json({"run": run, **manifest})
    store.write(f"runs/{run}/manifest.json", content)
    _check_holds(store, f"runs/{run}/manifest.json", content)
    list_runs(store)
    return link


def _check_arrived(store: Store, run: str, manifest: Manifest) -> None:
    """OSError naming a file that the store took without an error and does not have."""
    sizes = dict(store.sizes(f"runs/{run}/"))
    for name, file in manifest["files"].items():
        if sizes.get(f"runs/{run}/{name}") != file["bytes"]:
            raise _lost(store, f"runs/{run}/{name}")


def _check_holds(store: Store, key: str, content: bytes) -> None:
    """The same for one object, by its content."""
    if store.tag_if_holds(key, content) is None:
        raise _lost(store, key)


def _lost(store: Store, key: str) -> OSError:
    return OSError(
        f"{store.url(key)}: the store took it without an error and has not kept it; try again"
    )


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


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


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


def manifests(store: Store) -> list[Manifest]:
    """The manifests of all complete runs, newest first."""
    with ThreadPoolExecutor(UPLOADS) as pool:
        published = list(
            pool.map(lambda run: _manifest_or_none(store, run), store.folders("runs/"))
        )
    return sorted(
        (manifest for manifest in published if manifest),
        key=lambda manifest: manifest["run"],
        reverse=True,
    )


def manifest_of(store: Store, run: str) -> Manifest:
    """One run's manifest; ValueError naming the run if there is none."""
    manifest = _manifest_or_none(store, run) if _RUN.fullmatch(run) else None
    if manifest is None:
        raise ValueError(
            f"{store.url('runs')}: no complete run named {run!r}; {RUNS_PAGE} lists them"
        )
    return manifest


def _manifest_or_none(store: Store, run: str) -> Manifest | None:
    try:
        manifest = json.loads(store.read(f"runs/{run}/manifest.json"))
        return dict(manifest) if _Needed.model_validate(manifest, strict=True).run == run else None
    except (ValueError, RecursionError):
        return None


def list_runs(store: Store) -> None:
    """Rewrite runs/index.html (see `refresh`), and create models/index.html if there is none.

    Every page links to models/index.html.
    """
    refresh(store, RUNS_PAGE, lambda: _page("runs.html", runs=manifests(store)))
    # A worker may lack permission to write to models/; then the first promotion creates the page.
    with suppress(PermissionError):
        if store.tag(MODELS_PAGE) is None:
            refresh(store, MODELS_PAGE, partial(_models, store))


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
    known, tag = promoted(store, system)
    if not known or known[0]["run"] != run:
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
            swap(store, pointer, _json({"run": run, "promoted": [entry, *known]}), tag)
        except Conflict as error:
            raise Conflict(
                f"{store.url(pointer)}: somebody promoted another run just now; look, and decide "
                "again"
            ) from error
        # Read again: a gateway may answer 200 and keep nothing. Among all entries and not the
        # first: another promotion may have followed by now.
        if all(entry["run"] != run for entry in promoted(store, system)[0]):
            raise _lost(store, pointer)
    list_models(store)
    return manifest


def system_of(manifest: Manifest) -> str:
    """The system of a run. ValueError naming the run if this version knows none of that name."""
    system = manifest.get("system", "gdpo")  # versions with one system stated none
    if system not in SYSTEMS:
        raise ValueError(f"runs/{manifest['run']}: of a system {system!r} that is unknown here")
    return str(system)


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
        if re.fullmatch(r"evaluate/[^/.][^/]*/per_image\.parquet", name)
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


def list_models(store: Store) -> None:
    """Rewrite models/index.html (see `refresh`) and the cards of the promoted models.

    A promoted run that was deleted gets no card.
    """
    for run in dict.fromkeys(entry["run"] for entry in _all_promoted(store)):
        if _manifest_or_none(store, run):
            refresh(store, f"models/{run}.html", partial(_card, store, run))
    refresh(store, MODELS_PAGE, partial(_models, store))


def _all_promoted(store: Store) -> list[dict[str, Any]]:
    """The entries of all pointers, each system's newest first and marked `latest`."""
    return [
        {**entry, "latest": place == 0, "system": system}
        for system in SYSTEMS
        for place, entry in enumerate(promoted(store, system)[0])
    ]


def _card(store: Store, run: str) -> bytes:
    # The newest entry, if the run was promoted twice.
    entry = next(entry for entry in _all_promoted(store) if entry["run"] == run)
    return _page("card.html", model={**manifest_of(store, run), **entry})


def _models(store: Store) -> bytes:
    promotions = [(_manifest_or_none(store, entry["run"]), entry) for entry in _all_promoted(store)]
    return _page(
        "models.html",
        models=[
            {**(manifest or {}), **entry, "gone": manifest is None}
            for manifest, entry in promotions
        ],
    )


def _page(template: str, **context: Any) -> bytes:
    templates = environment(Path(__file__).parent / "templates")
    return templates.get_template(template).render(context).encode()
