"""Runs in the bucket, as pages that people browse: what each run published, and which models are promoted.

    runs/<id>/manifest.json     written last: every file of the run by its SHA-256, and what the lists say about it
    runs/<id>/index.html        the report, with its files; runs/<id>/model/ the model folder
    runs/index.html             all runs, newest first          made from the manifests
    models/latest.json          the promoted runs, newest first: the pointer, written by compare-and-swap
    models/index.html           them with their cards           made from the pointer and the manifests

A run without a manifest was interrupted, and is in no list. All links are relative: the pages work through a static
gateway, behind a prefix, and by `gdpo-sr browse`.
"""

import io
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from gdpo.images import read_photo
from gdpo.training import written_aside
from tasks import summary
from tasks.params import load, profile_of
from tasks.store import Conflict, Store, sha256_of

Manifest = dict[str, Any]
LINK_S = 7 * 24 * 3600  # the longest that S3 signs for
UPLOADS = 8
THUMBNAIL = "thumbnail.webp"
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def run_id(when: datetime, commit: str) -> str:
    """The name of a run: when it was published (UTC) and the commit."""
    return f"{when:%Y%m%dT%H%M%SZ}-{commit[:8]}"


def publish(root: Path, store_url: str, run: str, *, kind: str, commit: str, when: datetime) -> str:
    """Upload the reports and the model under `root` as runs/<run>/, list the run, and return the report's address.

    The address is below GDPO_GATEWAY if that is set, else a link signed for a week. ValueError if there is no report.
    """
    if not _RUN.fullmatch(run):
        raise ValueError(f"{run!r} cannot name a run: letters, digits, dots, dashes")
    store = Store.at(store_url)
    files = dict(_files(root))
    if "index.html" not in files:
        raise ValueError(f"{root / summary.REPORT}: no report to publish; `dvc repro report` makes it")
    manifest = _describe(root, run, kind, commit, when)
    with ThreadPoolExecutor(UPLOADS) as pool:
        list(pool.map(lambda item: store.write(f"runs/{run}/{item[0]}", item[1]), files.items()))
    store.write(f"runs/{run}/{THUMBNAIL}", _thumbnail(root))
    manifest["files"] = {name: {"sha256": sha256_of(path), "bytes": path.stat().st_size} for name, path in files.items()}
    store.write(f"runs/{run}/manifest.json", (json.dumps(manifest, indent=1) + "\n").encode())
    list_runs(store)
    return address(store, f"runs/{run}/index.html")


def address(store: Store, key: str) -> str:
    """Where a browser opens an object: below GDPO_GATEWAY, an address that serves the bucket; else a signed link."""
    gateway = os.environ.get("GDPO_GATEWAY", "").rstrip("/")
    return f"{gateway}/{key}" if gateway else store.link(key, LINK_S)


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    """(name below the run, file): the reports as they are, the model below model/. Links out of the folders stay out."""
    for folder, prefix in ((root / "reports", ""), (root / "models/gdpo", "model/")):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink() and not path.name.startswith("."):
                yield prefix + path.relative_to(folder).as_posix(), path


def _describe(root: Path, run: str, kind: str, commit: str, when: datetime) -> Manifest:
    results = summary.read(root)
    table, verdict = summary.artifact(results)
    return {
        "run": run,
        "kind": kind,
        "date": when.isoformat(timespec="seconds"),
        "commit": commit,
        "profile": profile_of(root / "params.yaml"),
        "verdict": verdict,
        "table": table,
    }


def _thumbnail(root: Path) -> bytes:
    """GDPO-SR's output for the first image of the evaluation, 160 pixels wide."""
    benchmark = load(root / "params.yaml").evaluate.benchmarks[0]
    folder = summary.read(root, benchmark)["files"][0]["folder"]
    image = Image.fromarray(read_photo(root / "reports/evaluate" / benchmark / "images" / folder / "gdpo.png"))
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
    """Make runs/index.html anew. Of two that publish at once, the later one lists both: each lists after its manifest."""
    store.write("runs/index.html", _page("runs.html", runs=manifests(store)))


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

    ValueError if there is no such run, it has no model, or a file of it is missing or damaged; `Conflict` if somebody
    promoted at the same time.
    """
    store = Store.at(store_url)
    manifest = manifest_of(store, run)
    model = [name for name in manifest["files"] if name.startswith("model/")]
    if not model:
        raise ValueError(f"{store.url(f'runs/{run}')}: has no model to promote")
    for name in model:
        store.read(f"runs/{run}/{name}")  # checks the SHA-256
    known, tag = promoted(store)
    if known and known[0]["run"] == run:
        return manifest
    entry = {"run": run, "promoted": when.isoformat(timespec="seconds"), "commit": manifest["commit"]}
    content = {"run": run, "promoted": [entry, *known]}
    try:
        store.swap("models/latest.json", (json.dumps(content, indent=1) + "\n").encode(), tag)
    except Conflict as error:
        pointer = store.url("models/latest.json")
        raise Conflict(f"{pointer}: somebody promoted another run just now; look, and decide again") from error
    list_models(store)
    return manifest


def bring_scores(store: Store, manifest: Manifest, folder: Path) -> list[Path]:
    """Write the run's scores as folder/<benchmark>/per_image.parquet, one per benchmark; returns the files."""
    found = []
    for name in manifest["files"]:
        parts = Path(name).parts
        if len(parts) == 3 and parts[0] == "evaluate" and parts[2] == "per_image.parquet":
            path = folder / parts[1] / parts[2]
            with written_aside(path) as part:
                store.download(f"runs/{manifest['run']}/{name}", part)
            found.append(path)
    return found


def list_models(store: Store) -> None:
    """Make models/index.html and every promoted model's card anew."""
    entries, _ = promoted(store)
    models = [{**manifest_of(store, entry["run"]), **entry} for entry in entries]
    for model in models:
        store.write(f"models/{model['run']}.html", _page("card.html", model=model, latest=models[0]["run"]))
    store.write("models/index.html", _page("models.html", models=models))


def _page(template: str, **context: Any) -> bytes:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates/store"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(context).encode()
