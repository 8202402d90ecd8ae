"""Published runs and promoted models in the bucket, as pages that people browse.

    runs/<id>/claim.txt         written first: reserves the name for one publication, by the SHA-256
                                of its manifest
    runs/<id>/manifest.json     written last: every file of the run with its SHA-256, and the run's
                                entry in the lists
    runs/<id>/index.html        the report, with its files; runs/<id>/model/ is the model folder
    runs/index.html             all runs, newest first; generated from the manifests
    models/latest.json          the pointer: the promoted runs, newest first; written by
                                compare-and-swap
    models/index.html           the promoted models, with a card each; generated from the pointer
                                and the manifests

A run without a complete manifest was interrupted and is not listed. A promoted run that was deleted
is listed as gone. All links are relative, so the pages work through a static gateway, behind a
prefix, and with `gdpo-sr browse`. Everything but the pointer works on a server without conditional
writes.
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jinja2
from pydantic import BaseModel

from gdpo.files import written_aside
from tasks.publish import contents
from tasks.report import summary
from tasks.store.conditional import refresh, swap, swap_or_look
from tasks.store.s3 import Conflict, Store, sha256_of

# The fields of `_Needed` and of `contents.describe`; other versions may have written fewer or more.
Manifest = dict[str, Any]
UPLOADS = 8
NAMES = 100  # limit of publications with the same second and commit
THUMBNAIL = "thumbnail.webp"
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class _File(BaseModel):
    sha256: str
    bytes: int


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
) -> str:
    """Upload the outputs `outs` under `root` as runs/<run>/, list the run, and return the report's
    `address`.

    outs: relative to `root`, each below reports/ or the folder of the model. If another publication
    has the name, the run becomes <run>-2, and so on. Publishing the same contents again completes
    an interrupted publication. ValueError if an output or the report does not exist.
    """
    if not _RUN.fullmatch(run):
        raise ValueError(f"{run!r} cannot name a run: letters, digits, dots, dashes")
    store = Store.at(store_url)
    files = dict(sorted(contents.files(root, outs)))
    if "index.html" not in files:
        raise ValueError(
            f"{root / summary.REPORT}: no report to publish; `dvc repro report` makes it"
        )
    manifest: Manifest = contents.describe(root, kind, commit, when)
    manifest["files"] = {
        name: {"sha256": sha256_of(path), "bytes": path.stat().st_size}
        for name, path in files.items()
    }
    run = _claim(store, run, _json(manifest))
    link = address(store, f"runs/{run}/index.html")
    with ThreadPoolExecutor(UPLOADS) as pool:
        list(pool.map(lambda item: store.write(f"runs/{run}/{item[0]}", item[1]), files.items()))
    store.write(f"runs/{run}/{THUMBNAIL}", contents.thumbnail(root))
    store.write(f"runs/{run}/manifest.json", _json({"run": run, **manifest}))
    list_runs(store)
    return link


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
        found = list(pool.map(lambda run: _manifest_or_none(store, run), store.folders("runs/")))
    return sorted(
        (manifest for manifest in found if manifest),
        key=lambda manifest: manifest["run"],
        reverse=True,
    )


def manifest_of(store: Store, run: str) -> Manifest:
    """One run's manifest; ValueError naming the run if there is none."""
    manifest = _manifest_or_none(store, run) if _RUN.fullmatch(run) else None
    if manifest is None:
        raise ValueError(
            f"{store.url('runs')}: there is no whole run {run!r}; runs/index.html lists them"
        )
    return manifest


def _manifest_or_none(store: Store, run: str) -> Manifest | None:
    try:
        found = json.loads(store.read(f"runs/{run}/manifest.json"))
        return dict(found) if _Needed.model_validate(found, strict=True).run == run else None
    except ValueError:
        return None


def list_runs(store: Store) -> None:
    """Rewrite runs/index.html (see `refresh`), and create models/index.html if there is none.

    Every page links to models/index.html.
    """
    refresh(store, "runs/index.html", lambda: _page("runs.html", runs=manifests(store)))
    # A worker may lack permission to write to models/; then the first promotion creates the page.
    with suppress(PermissionError):
        if store.tag("models/index.html") is None:
            refresh(store, "models/index.html", partial(_models, store))


def promoted(store: Store) -> tuple[list[dict[str, Any]], str | None]:
    """(the promoted runs, newest first; the pointer's tag for `swap`).

    ([], None) before the first promotion.
    """
    try:
        content, tag = store.fetch("models/latest.json")
    except ValueError as error:
        if "no such object" in str(error):
            return [], None
        raise
    return list(json.loads(content)["promoted"]), tag


def promote(store_url: str, run: str, when: datetime) -> Manifest:
    """Make `run` the promoted one and list the models; returns its manifest.

    If `run` is already the promoted one, only the lists are brought up to date; so repeating an
    interrupted promotion completes it. ValueError if the run does not exist or has no model, or if
    a file of the model or scores is missing or differs from the published one. `Conflict` if
    another run was promoted at the same time.
    """
    store = Store.at(store_url)
    manifest = manifest_of(store, run)
    known, tag = promoted(store)
    if not known or known[0]["run"] != run:
        model = [name for name in manifest["files"] if name.startswith("model/")]
        if not model:
            raise ValueError(f"{store.url(f'runs/{run}')}: has no model to promote")
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
            swap(store, "models/latest.json", _json({"run": run, "promoted": [entry, *known]}), tag)
        except Conflict as error:
            pointer = store.url("models/latest.json")
            raise Conflict(
                f"{pointer}: somebody promoted another run just now; look, and decide again"
            ) from error
    list_models(store)
    return manifest


def _check(store: Store, manifest: Manifest, name: str, found: str) -> None:
    """ValueError naming the file if its SHA-256 `found` is not the one in the manifest.

    The SHA-256 stored with the object cannot show this: it is replaced together with the object.
    """
    wanted, place = manifest["files"][name]["sha256"], store.url(f"runs/{manifest['run']}/{name}")
    if found != wanted:
        hashes = f"SHA-256 {found[:12]}..., in the manifest {wanted[:12]}..."
        raise ValueError(
            f"{place}: not the file that was published ({hashes}); publish the run again"
        )


def _scores(manifest: Manifest) -> Sequence[str]:
    return [
        name
        for name in manifest["files"]
        if re.fullmatch(r"evaluate/[^/.][^/]*/per_image\.parquet", name)
    ]


def bring_scores(store: Store, manifest: Manifest, folder: Path) -> list[Path]:
    """Download the run's scores to folder/<benchmark>/per_image.parquet; returns the files.

    ValueError if a file differs from the published one.
    """
    found = []
    for name in _scores(manifest):
        path = folder / Path(name).relative_to("evaluate")
        with written_aside(path) as part:
            store.download(f"runs/{manifest['run']}/{name}", part)
            _check(store, manifest, name, sha256_of(part))
        found.append(path)
    return found


def list_models(store: Store) -> None:
    """Rewrite models/index.html (see `refresh`) and the cards of the promoted models.

    A promoted run that was deleted gets no card.
    """
    for run in dict.fromkeys(entry["run"] for entry in promoted(store)[0]):
        if _manifest_or_none(store, run):
            refresh(store, f"models/{run}.html", partial(_card, store, run))
    refresh(store, "models/index.html", partial(_models, store))


def _card(store: Store, run: str) -> bytes:
    entries, _ = promoted(store)
    # The newest entry, if the run was promoted twice.
    entry = next(entry for entry in entries if entry["run"] == run)
    return _page("card.html", model={**manifest_of(store, run), **entry}, latest=entries[0]["run"])


def _models(store: Store) -> bytes:
    entries, _ = promoted(store)
    found = [(_manifest_or_none(store, entry["run"]), entry) for entry in entries]
    return _page(
        "models.html",
        models=[
            {**(manifest or {}), **entry, "gone": manifest is None} for manifest, entry in found
        ],
    )


def _page(template: str, **context: Any) -> bytes:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(context).encode()
