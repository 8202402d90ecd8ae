"""What a published run consists of, read from the clone that the pipeline ran in.

    files        every file of the run's outputs, with its name in the bucket
    describe     the run's entry in the lists: kind, date, commit, profile, verdict, table
    thumbnail    the run's picture in the lists

`tasks/publish/publication.py` uploads them to the bucket.
"""

import io
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from gdpo.images import read_photo
from tasks.params import load, profile_of
from tasks.report import summary

MODEL = "models/gdpo"


def files(root: Path, outs: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """(name below the run, file) for every file of the outputs `outs`, which are folders or files.

    Names omit reports/; the model's begin with model/. Symbolic links, everything behind them, and
    dot files are left out. ValueError naming an output that does not exist, or that is neither
    below reports/ nor the model.
    """
    for out in outs:
        top, *below = PurePosixPath(out).parts or [""]
        if out != MODEL and (top != "reports" or not below or ".." in below):
            raise ValueError(
                f"{out!r}: no output that a run consists of: those lie below reports/, or are "
                f"{MODEL}"
            )
        folder, prefix = (root / MODEL, "model/") if out == MODEL else (root / "reports", "")
        place = root / out
        if not place.exists() and not place.is_symlink():
            raise ValueError(
                f"{out}: a stage made it, and it is not there; `dvc pull {out}` brings it"
            )
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.is_file() and not path.name.startswith(".") and not _behind_link(path, root):
                yield prefix + path.relative_to(folder).as_posix(), path


def _behind_link(path: Path, root: Path) -> bool:
    below = path.relative_to(root)
    return any((root / part).is_symlink() for part in (below, *below.parents[:-1]))


def describe(root: Path, kind: str, commit: str, when: datetime) -> dict[str, Any]:
    """The run's entry in the lists; ValueError if nothing was evaluated."""
    table, verdict = summary.artifact(summary.read(root))
    return {
        "kind": kind,
        "date": when.isoformat(timespec="seconds"),
        "commit": commit,
        "profile": profile_of(root / "params.yaml"),
        "verdict": verdict,
        "table": table,
    }


def thumbnail(root: Path) -> bytes:
    """A picture of at most 160x160 pixels: the output for the first image of the evaluation.

    It is GDPO-SR's output, or the last model's if there is no model `gdpo`.
    """
    benchmark = load(root / "params.yaml").evaluate.benchmarks[0]
    results = summary.read(root, benchmark)
    models, folder = list(results["models"]), results["files"][0]["folder"]
    model = "gdpo" if "gdpo" in models else models[-1]  # the last may be the control
    image = Image.fromarray(
        read_photo(root / "reports/evaluate" / benchmark / "images" / folder / f"{model}.png")
    )
    image.thumbnail((160, 160))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80)
    return buffer.getvalue()
