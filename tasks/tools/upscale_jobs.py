"""The work of `gdpo-sr upscale`: which photographs, and which file each result goes to.

photo.jpg                    -> photo_x4.png beside it
photo.jpg -o out.webp        -> out.webp
holiday/ more/*.jpg -o out   -> out/..., with the folders below holiday/
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from gdpo.files import check_writable
from gdpo.pictures.write import FORMATS, check_format
from gdpo.walk import is_hidden, walk

# What is looked for in folders. A file that is named is tried whatever its extension is.
READABLE = (*FORMATS, ".bmp", ".gif", ".heif", ".jp2", ".ppm", ".pgm")


@dataclass(frozen=True)
class PhotoJob:
    """One photograph and the file that its result goes to."""

    photo: Path
    output: Path


def check(job: PhotoJob, *, overwrite: bool, skip: bool, deep: bool) -> None:
    """Check before the model is loaded that the photograph is there and the result can be written.

    deep: with 16 bits.
    Errors: ValueError naming the file and what to do.
    """
    photo, output = job.photo, job.output
    if not photo.is_file():
        raise ValueError(f"{photo}: no such photograph")
    if output.is_dir():
        raise ValueError(f"{output}: is a folder, not a file; choose another --output")
    if output.exists():
        if output.samefile(photo):
            raise ValueError(f"{output}: is the photograph itself; choose another --output")
        if not overwrite and not skip:
            raise ValueError(f"{output}: already exists; --overwrite or --skip-existing")
    check_format(output, 1, 1, deep=deep)
    check_writable(output)


def jobs(
    inputs: Sequence[str], output: Path | None, suffix: str | None, form: str, scale: str
) -> list[PhotoJob]:
    """The photographs of `inputs` (files, folders, patterns) with their outputs, sorted by input.

    output: a file or a folder; None: beside each photograph. suffix: goes behind the name; None:
    nothing in a folder of its own, `scale` beside the photographs. form: extension of the names
    that are made here.
    Errors: ValueError naming the input without photographs, or the output that cannot be.
    """
    photos = [pair for text in inputs for pair in _photographs(text)]
    if output is not None and output.suffix.lower() in FORMATS and _is_one_file(photos, inputs):
        return [PhotoJob(photos[0][0], output)]
    if output is not None and not output.is_dir():
        if output.suffix and _is_one_file(photos, inputs):
            raise ValueError(f"{output}: unknown extension; use one of {', '.join(FORMATS)}")
        if output.suffix.lower() in FORMATS:
            raise ValueError(f"{output}: must be a folder, because there are several photographs")
    end = suffix if suffix is not None else (scale if output is None else "")
    jobs: dict[Path, PhotoJob] = {}
    for photo, below in photos:
        folder = photo.parent if output is None else output / below
        target = folder / f"{photo.stem}{end}{form}"
        if target in jobs and jobs[target].photo != photo:  # a.jpg and a.png
            target = folder / f"{photo.name}{end}{form}"
        other = jobs.setdefault(target, PhotoJob(photo, target)).photo
        if other != photo:
            raise ValueError(
                f"{photo} and {other}: both results would be {target}; name the folder above them"
            )
    # Results beside the photographs, of an earlier run over the folder, are no photographs.
    return [job for job in jobs.values() if output is not None or job.photo not in jobs]


def _is_one_file(photos: list[tuple[Path, Path]], inputs: Sequence[str]) -> bool:
    return len(photos) == 1 and not Path(inputs[0]).is_dir()


def _photographs(text: str) -> Iterator[tuple[Path, Path]]:
    """(photograph, its folder below the input) of one input."""
    path = Path(text)
    if path.is_dir():
        tree = walk(path)
        photographs = sorted(
            below
            for below in [*tree.files, *tree.broken]
            if below.suffix.lower() in READABLE and not is_hidden(below, path)
        )
        if not photographs:
            raise ValueError(f"{path}: no photographs in this folder")
        yield from ((one, one.parent.relative_to(path)) for one in photographs)
    elif path.exists() or not any(sign in text for sign in "*?["):
        yield path, Path()
    else:
        matches = sorted(Path(name) for name in glob(text, recursive=True))
        if not matches:
            raise ValueError(f"{text}: no file matches")
        yield from ((one, Path()) for one in matches if one.is_file())
