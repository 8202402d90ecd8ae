"""What the page does with uploads, without Gradio: check, upscale with each seed, write.

    for made in upscaled(request, folder, report, is_cancelled): ...

Every result is a PNG with the photograph's EXIF and resolution; its record says how it was made.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gdpo.config.fields import ColorFix
from gdpo.images import resize_bicubic, resize_plane
from gdpo.metrics.table import METRICS
from gdpo.model.card import read_identity
from gdpo.pictures.read import Picture, read_picture
from gdpo.pictures.write import write_picture
from gdpo.upscale.candidates import Candidate, candidates
from gdpo.upscale.pipeline import scaled
from gdpo.upscale.protocol import Settings
from tasks.app.models import resolver, strength

JUDGE = "niqe"  # as `gdpo-sr upscale --best-of` does by default
MOST_PHOTOS, MOST_SEEDS, MOST_BYTES = 12, 8, 40_000_000
MOST_PIXELS = 16_000_000  # of one result

Report = Callable[[float, str], None]


class Cancelled(Exception):
    """The user cancelled the request."""


@dataclass(frozen=True)
class Request:
    """The input of one request.

    photos: uploaded files. model, device: as in `gdpo-sr upscale`. seed: the first of `count`.
    t_add: None for the model's own; of no meaning to a model without noise.
    """

    photos: list[Path]
    model: Path
    device: str
    scale: float
    t_add: int | None
    color_fix: ColorFix
    seed: int
    count: int

    def check(self) -> None:
        """ValueError naming what is missing or out of range."""
        if not self.photos:
            raise ValueError("no photograph; upload one, or take an example")
        if len(self.photos) > MOST_PHOTOS:
            raise ValueError(f"{len(self.photos)} photographs; at most {MOST_PHOTOS} at once")
        if self.seed < 0:
            raise ValueError(f"seed must be a whole number from 0 up, got {self.seed}")


@dataclass(frozen=True)
class Result:
    """One result: the file, the bicubic enlargement that it stands beside, and its record."""

    file: Path
    enlarged: Path
    record: dict[str, Any]


def upscaled(
    request: Request,
    folder: Path,
    report: Report,
    is_cancelled: Callable[[], bool],
    on_bad: Callable[[str], None],
) -> Iterator[Result]:
    """The results of all photographs, photograph by photograph, in files below `folder`.

    report: called with the share that is done and what is being done. on_bad: called with one line
    about a photograph that cannot be upscaled; the others are done.
    Errors: ValueError in one line for a wrong request or model, or if the only photograph is bad.
    `Cancelled` soon after `is_cancelled` says so.
    """
    request.check()
    report(0.0, "loading the model")
    t_add = request.t_add if strength(read_identity(request.model)) is not None else None
    settings = Settings(color_fix=request.color_fix, t_add=t_add)
    model = resolver(request.model, request.device, settings)
    seeds = range(request.seed, request.seed + request.count)
    for number, photo in enumerate(request.photos):
        place = folder / str(number)
        place.mkdir()

        def passed(done: int, total: int, number: int = number, name: str = photo.name) -> None:
            if is_cancelled():
                raise Cancelled
            report((number + done / total) / len(request.photos), name)

        try:
            picture = _read(photo, request.scale)
            size = scaled(picture.rgb.shape[:2], request.scale)
            enlarged = place / f"{photo.stem}_bicubic.png"
            write_picture(enlarged, _with(picture, resize_bicubic(picture.rgb, size), size))
            passed(0, 1)
            by = JUDGE if min(size) >= METRICS[JUDGE].min_side else None
            for one in candidates(
                model, picture.rgb, size=size, seeds=seeds, by=by, on_tile=passed
            ):
                file = place / f"{photo.stem}_x{request.scale:g}_seed{one.seed}.png"
                write_picture(file, _with(picture, one.photo.image, size))
                record = _record(request, t_add, number, photo, one, size)
                yield Result(file, enlarged, record | {"kind": model.identity.kind})
        except ValueError as error:
            if len(request.photos) == 1:
                raise
            on_bad(str(error))


def best(records: list[dict[str, Any]]) -> list[int]:
    """Positions of the best result of each photograph, in the order of the photographs."""
    winners: dict[int, int] = {}
    for position, record in enumerate(records):
        other = winners.setdefault(record["number"], position)
        if record["rank"] > records[other]["rank"]:
            winners[record["number"]] = position
    return list(winners.values())


def _read(photo: Path, scale: float) -> Picture:
    """The picture, if the result is not too large. ValueError naming the upload."""
    try:
        with Image.open(photo) as image:  # before the memory for its pixels is taken
            _check_size(photo, (image.height, image.width), scale)
    except (OSError, SyntaxError, Image.DecompressionBombError):
        pass  # a 16-bit file that only OpenCV opens, or none: `read_picture` says which
    try:
        picture = read_picture(photo)
    except ValueError as error:  # the server's folder of uploads is not shown
        raise ValueError(str(error).replace(str(photo), photo.name)) from error
    _check_size(photo, picture.rgb.shape[:2], scale)
    return picture


def _check_size(photo: Path, size: tuple[int, ...], scale: float) -> None:
    height, width = scaled(size, scale)
    if height * width > MOST_PIXELS:
        raise ValueError(
            f"{photo.name}: the result would have {width}x{height} pixels, and this page makes at "
            f"most {MOST_PIXELS // 1_000_000} million; choose a smaller scale, or use "
            "`gdpo-sr upscale`, which has no limit"
        )


def _with(picture: Picture, rgb: np.ndarray, size: tuple[int, int]) -> Picture:
    """The picture enlarged: these colours, its own transparency and metadata."""
    alpha = None if picture.alpha is None else resize_plane(picture.alpha, size)
    return replace(picture, rgb=rgb, alpha=alpha)


def _record(
    request: Request,
    t_add: int | None,
    number: int,
    photo: Path,
    one: Candidate,
    size: tuple[int, int],
) -> dict[str, Any]:
    return {
        "photograph": photo.name,
        "number": number,
        "model": read_identity(request.model).label,
        "seed": one.seed,
        JUDGE: None if one.score is None else round(one.score, 4),
        "rank": one.rank,
        "scale": request.scale,
        "width": size[1],
        "height": size[0],
        "t_add": t_add,
        "color_fix": request.color_fix,
        "text": one.photo.text,
    }
