"""Runs in the bucket, as pages that people browse: what each run published, and which models are promoted.

    runs/<id>/claim.txt         written first: whose name this is, by the SHA-256 of what is published
    runs/<id>/manifest.json     written last: every file of the run by its SHA-256, and what the lists say about it
    runs/<id>/index.html        the report, with its files; runs/<id>/model/ the model folder
    runs/index.html             all runs, newest first          made from the manifests
    models/latest.json          the promoted runs, newest first: the pointer, written by compare-and-swap
    models/index.html           them with their cards           made from the pointer and the manifests

A run without a manifest was interrupted, and is in no list. All links are relative: the pages work through a static
gateway, behind a prefix, and by `gdpo-sr browse`. Everything but the pointer works on a server without conditional writes.
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jinja2
from PIL import Image

from gdpo.images import read_photo
from gdpo.training import written_aside
from tasks import summary
from tasks.conditional import refresh, swap, swap_or_look
from tasks.params import load, profile_of
from tasks.store import Conflict, Store, sha256_of

Manifest = dict[str, Any]
UPLOADS = 8
NAMES = 100  # publications of one second and commit
THUMBNAIL = "thumbnail.webp"
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def run_id(when: datetime, commit: str) -> str:
    """The name that a run asks for: when it was published (UTC) and the commit. `publish` says which it got."""
    return f"{when:%Y%m%dT%H%M%SZ}-{commit[:8]}"


def publish(root: Path, store_url: str, run: str, *, kind: str, commit: str, when: datetime) -> str:
    """Upload the reports and the model under `root` as runs/<run>/, list the run, and return the report's `address`.

    If another publication has the name, it is <run>-2, and so on; the same one again goes on where it was interrupted.
    ValueError if there is no report.
    """
    if not _RUN.fullmatch(run):
        raise ValueError(f"{run!r} cannot name a run: letters, digits, dots, dashes")
    store = Store.at(store_url)
    files = dict(_files(root))
    if "index.html" not in files:
        raise ValueError(f"{root / summary.REPORT}: no report to publish; `dvc repro report` makes it")
    manifest = _describe(root, kind, commit, when)
    manifest["files"] = {name: {"sha256": sha256_of(path), "bytes": path.stat().st_size} for name, path in files.items()}
    run = _claim(store, run, _json(manifest))
    link = address(store, f"runs/{run}/index.html")
    with ThreadPoolExecutor(UPLOADS) as pool:
        list(pool.map(lambda item: store.write(f"runs/{run}/{item[0]}", item[1]), files.items()))
    store.write(f"runs/{run}/{THUMBNAIL}", _thumbnail(root))
    store.write(f"runs/{run}/manifest.json", _json({"run": run, **manifest}))
    list_runs(store)
    return link


def _claim(store: Store, run: str, content: bytes) -> str:
    """The first of <run>, <run>-2, ... that is free, or whose claim is of this very content."""
    claim = f"{hashlib.sha256(content).hexdigest()}\n".encode()
    for name in (run, *(f"{run}-{number}" for number in range(2, NAMES))):
        with suppress(Conflict):
            swap_or_look(store, f"runs/{name}/claim.txt", claim, None)
            return name
    raise ValueError(f"{store.url(f'runs/{run}')}: {NAMES - 1} runs have this name; publish again a second later")


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def address(store: Store, key: str) -> str:
    """Where people find an object: below GDPO_GATEWAY, an address that serves the bucket, or its s3:// URL.

    It goes into artifacts and logs, so it is no signed link: that holds a key's id, and the token of temporary credentials.
    """
    gateway = os.environ.get("GDPO_GATEWAY", "").rstrip("/")
    if "@" in urlsplit(gateway).netloc:
        raise ValueError("GDPO_GATEWAY: has a user or password in it, which every link would show; leave them out")
    return f"{gateway}/{key}" if gateway else store.url(key)


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    """(name below the run, file): the reports as they are, the model below model/. Links out of the folders stay out."""
    for folder, prefix in ((root / "reports", ""), (root / "models/gdpo", "model/")):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink() and not path.name.startswith("."):
                yield prefix + path.relative_to(folder).as_posix(), path


def _describe(root: Path, kind: str, commit: str, when: datetime) -> Manifest:
    table, verdict = summary.artifact(summary.read(root))
    return {
        "kind": kind,
        "date": when.isoformat(timespec="seconds"),
        "commit": commit,
        "profile": profile_of(root / "params.yaml"),
        "verdict": verdict,
        "table": table,
    }


def _thumbnail(root: Path) -> bytes:
    """The output for the first image of the evaluation, 160 pixels wide: GDPO-SR's, or the last model's if none is `gdpo`."""
    benchmark = load(root / "params.yaml").evaluate.benchmarks[0]
    results = summary.read(root, benchmark)
    models, folder = list(results["models"]), results["files"][0]["folder"]
    model = "gdpo" if "gdpo" in models else models[-1]  # the last may be the control
    image = Image.fromarray(read_photo(root / "reports/evaluate" / benchmark / "images" / folder / f"{model}.png"))
    image.thumbnail((160, 160))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80)
    return buffer.getvalue()


def manifests(store: Store) -> list[Manifest]:
    """The manifests of all whole runs, newest first."""
    with ThreadPoolExecutor(UPLOADS) as pool:
        found = list(pool.map(lambda run: _manifest_or_none(store, run), store.folders("runs/")))
    return sorted((manifest for manifest in found if manifest), key=lambda manifest: manifest["run"], reverse=True)


def manifest_of(store: Store, run: str) -> Manifest:
    """One run's manifest; ValueError naming the run if there is none."""
    manifest = _manifest_or_none(store, run) if _RUN.fullmatch(run) else None
    if manifest is None:
        raise ValueError(f"{store.url('runs')}: there is no whole run {run!r}; runs/index.html lists them")
    return manifest


def _manifest_or_none(store: Store, run: str) -> Manifest | None:
    try:
        return dict(json.loads(store.read(f"runs/{run}/manifest.json")))
    except ValueError:
        return None


def list_runs(store: Store) -> None:
    """Make runs/index.html anew (see `refresh`), and models/index.html if there is none, for every page links to it."""
    refresh(store, "runs/index.html", lambda: _page("runs.html", runs=manifests(store)))
    with suppress(PermissionError):  # a worker need not be allowed to write there: then the first promotion makes it
        if store.tag("models/index.html") is None:
            refresh(store, "models/index.html", partial(_models, store))


def promoted(store: Store) -> tuple[list[dict[str, Any]], str | None]:
    """(the promoted runs, newest first; the pointer's tag for `swap`); ([], None) before the first promotion."""
    try:
        content, tag = store.fetch("models/latest.json")
    except ValueError as error:
        if "no such object" in str(error):
            return [], None
        raise
    return list(json.loads(content)["promoted"]), tag


def promote(store_url: str, run: str, when: datetime) -> Manifest:
    """Make `run` the promoted one and list the models; returns its manifest.

    If it is the promoted one already, only what the lists lack is made: the same again completes what was interrupted.
    ValueError if there is no such run, it has no model, or a file of it is missing or not the published one; `Conflict` if
    somebody promoted at the same time.
    """
    store = Store.at(store_url)
    manifest = manifest_of(store, run)
    known, tag = promoted(store)
    if not known or known[0]["run"] != run:
        model = [name for name in manifest["files"] if name.startswith("model/")]
        if not model:
            raise ValueError(f"{store.url(f'runs/{run}')}: has no model to promote")
        for name in [*model, *_scores(manifest)]:
            _check(store, manifest, name, hashlib.sha256(store.read(f"runs/{run}/{name}")).hexdigest())
        entry = {"run": run, "promoted": when.isoformat(timespec="seconds"), "commit": manifest["commit"]}
        try:
            swap(store, "models/latest.json", _json({"run": run, "promoted": [entry, *known]}), tag)
        except Conflict as error:
            pointer = store.url("models/latest.json")
            raise Conflict(f"{pointer}: somebody promoted another run just now; look, and decide again") from error
    list_models(store)
    return manifest


def _check(store: Store, manifest: Manifest, name: str, found: str) -> None:
    """ValueError naming the file if its SHA-256 `found` is not the manifest's; the object's own changes with the object."""
    wanted, place = manifest["files"][name]["sha256"], store.url(f"runs/{manifest['run']}/{name}")
    if found != wanted:
        hashes = f"SHA-256 {found[:12]}..., in the manifest {wanted[:12]}..."
        raise ValueError(f"{place}: not the file that was published ({hashes}); publish the run again")


def _scores(manifest: Manifest) -> Sequence[str]:
    return [name for name in manifest["files"] if re.fullmatch(r"evaluate/[^/.][^/]*/per_image\.parquet", name)]


def bring_scores(store: Store, manifest: Manifest, folder: Path) -> list[Path]:
    """Write the run's scores as folder/<benchmark>/per_image.parquet; the files. ValueError if one is not the published one."""
    found = []
    for name in _scores(manifest):
        path = folder / Path(name).relative_to("evaluate")
        with written_aside(path) as part:
            store.download(f"runs/{manifest['run']}/{name}", part)
            _check(store, manifest, name, sha256_of(part))
        found.append(path)
    return found


def list_models(store: Store) -> None:
    """Make models/index.html and every promoted model's card anew, as `refresh` does."""
    for run in dict.fromkeys(entry["run"] for entry in promoted(store)[0]):
        refresh(store, f"models/{run}.html", partial(_card, store, run))
    refresh(store, "models/index.html", partial(_models, store))


def _card(store: Store, run: str) -> bytes:
    entries, _ = promoted(store)
    entry = next(entry for entry in entries if entry["run"] == run)  # the newest, if it was promoted twice
    return _page("card.html", model={**manifest_of(store, run), **entry}, latest=entries[0]["run"])


def _models(store: Store) -> bytes:
    entries, _ = promoted(store)
    return _page("models.html", models=[{**manifest_of(store, entry["run"]), **entry} for entry in entries])


def _page(template: str, **context: Any) -> bytes:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates/store"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(context).encode()
