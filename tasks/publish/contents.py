"""What a published run consists of, read from the clone that the pipeline ran in.

    files        every file of the run's outputs, with its name in the bucket
    report_entry     the run's entry in the lists: kind, date, commit, profile, verdict, table
    thumbnail    the run's picture in the lists

`tasks/publish/publication.py` uploads them to the bucket.
"""

import hashlib
import io
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image

from gdpo.images import read_photo
from gdpo.walk import walk
from tasks.params import load, profile_of
from tasks.report import summary
from tasks.report.tables import evaluated
from tasks.systems import SYSTEMS

NAMED = 5  # links that a warning names


def self_contained(root: Path, scratch: Path, system: str = "gdpo") -> Path:
    """The model folder as it is published: merged, with its adapters in the folder `adapters`.

    models/gdpo names its base by a path of this machine, so it cannot be loaded elsewhere.
    The merged folder is made below `scratch`. A folder that needs no base, or is no model of ours,
    is returned as it is. Errors: ValueError naming the file that is missing or wrong.
    """
    from gdpo.model.card import NAME, read_card, read_identity
    from gdpo.released.export import export_merged

    folder = root / SYSTEMS[system].model
    if not (folder / NAME).is_file() or not _is_of_the_run(folder / NAME, root):
        return folder
    if read_identity(folder).kind != "naosd" or read_card(folder).base == ".":
        return folder
    export_merged(folder, scratch / "model")
    (scratch / "model" / "adapters").mkdir()
    for path in walk(folder).files:
        if path.parent == folder and _is_of_the_run(path, root):
            shutil.copy(path, scratch / "model" / "adapters")
    return scratch / "model"


def files(
    root: Path,
    outs: Sequence[str],
    model: Path | None = None,
    warn: Callable[[str], object] = lambda text: None,
    system: str = "gdpo",
) -> Iterator[tuple[str, Path]]:
    """(name below the run, file) for every file of the outputs `outs`, which are folders or files.

    model: the folder of the model, if another than the one below `root`. Names omit the folder of
    the report; the model's begin with model/. Dot files are left out, and symbolic links with
    everything behind them, except links to files of DVC's cache (`cache.type symlink`); `warn` gets
    a line that names the links. ValueError naming an output that does not exist, or that is neither
    below the report's folder nor the model, or a damaged file of the cache.
    """
    left_out: dict[Path, None] = {}
    own = SYSTEMS[system]
    for out in outs:
        if not own.has(out):
            raise ValueError(
                f"{out!r}: no output that a run consists of: those lie below {own.reports}/, or "
                f"are {own.model}"
            )
        place, prefix, folder = root / out, "", root / own.reports
        if out == own.model:
            place, prefix = model or place, "model/"
            folder = place
        if not place.exists() and not place.is_symlink():
            raise ValueError(
                f"{out}: an output of a stage that is missing here; `dvc pull {out}` fetches it"
            )
        for path in walk(place).files if place.is_dir() else [place]:
            owner = place.parent if out == own.model and model else root
            if path.name.startswith("."):
                continue
            if _is_of_the_run(path, owner):
                yield prefix + path.relative_to(folder).as_posix(), path
            else:
                left_out[_link(path, owner).relative_to(owner)] = None
    if left_out:
        names = [link.as_posix() for link in left_out]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        warn(
            f"links that do not lead into DVC's cache are left out: {', '.join(names[:NAMED])}"
            f"{more}; put the files themselves there"
        )


def _link(path: Path, root: Path) -> Path:
    """The uppermost link on the way from `root` to `path`; `path` itself if there is none."""
    way = [root / folder for folder in reversed(path.relative_to(root).parents)]
    return next((place for place in [*way[1:], path] if place.is_symlink()), path)


def _is_of_the_run(path: Path, root: Path) -> bool:
    """Whether `path` is a file that a stage wrote, in its place or in DVC's cache.

    Any other link may lead to a file that must not be published. A file of the cache is named by
    the MD5 of its content. Errors: ValueError naming one with other content.
    """
    folders = path.relative_to(root).parents
    if not path.is_file() or any((root / folder).is_symlink() for folder in folders):
        return False
    if not path.is_symlink():
        return True
    target = path.resolve()
    named = "".join(target.parts[-2:])
    if "/files/md5/" not in target.as_posix() or not re.fullmatch(r"[0-9a-f]{32}", named):
        return False
    with target.open("rb") as file:
        # MD5 is DVC's, against damage and not against malice.
        actual = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if actual != named:
        raise ValueError(
            f"{path.relative_to(root)}: damaged in DVC's cache; remove {target}, then `dvc pull`"
        )
    return True


def report_entry(
    root: Path, kind: str, commit: str, when: datetime, system: str = "gdpo"
) -> dict[str, Any]:
    """The run's entry in the lists; ValueError if nothing was evaluated."""
    table, verdict = summary.artifact(summary.read(root, system=system))
    return {
        "system": system,
        "kind": kind,
        "date": when.isoformat(timespec="seconds"),
        "commit": commit,
        "profile": profile_of(root / "params.yaml"),
        "verdict": verdict,
        "table": table,
    }


def thumbnail(root: Path, system: str = "gdpo") -> bytes:
    """A picture of at most 160x160 pixels: the output for the first image of the evaluation.

    It is the output of our model (gdpo/evaluate/models.py).
    """
    benchmark = load(root / "params.yaml").evaluate.benchmarks[0]
    results = summary.read(root, benchmark, system)
    folder, model = results["files"][0]["folder"], evaluated(results).ours
    evaluation = root / SYSTEMS[system].evaluations / benchmark
    image = Image.fromarray(read_photo(evaluation / "images" / folder / f"{model}.png"))
    image.thumbnail((160, 160))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80)
    return buffer.getvalue()
