"""What `gdpo-sr upscale` does with one photograph: read, upscale (with several seeds), write."""

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gdpo.files import shipped
from gdpo.images import resize_plane
from gdpo.model.card import NAME
from gdpo.pictures.read import Picture, read_picture
from gdpo.pictures.write import check_format, write_picture
from gdpo.upscale.candidates import Candidate, candidates
from gdpo.upscale.pipeline import bytes_needed, scaled
from gdpo.upscale.protocol import Settings, SuperResolver
from gdpo.upscale.resolver import load_super_resolver
from tasks.paths import GDPO
from tasks.tools.upscale_jobs import PhotoJob

SHIPPED = "assets/tiny-sd/naosd"
LARGE = 32_000_000  # pixels; before a larger result is begun, its memory and time are stated


@dataclass(frozen=True)
class Upscaling:
    """The options of the command line, and the model that they name."""

    args: argparse.Namespace
    model: SuperResolver

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Upscaling":
        """Load the models. ValueError naming the folder that is missing or wrong."""
        trained = Path(GDPO)
        folder = _named(args.model) or (trained if trained.is_dir() else shipped(SHIPPED))
        if not folder.is_dir():
            raise ValueError(
                f"{folder}: no such model folder; without --model, the one that ships is used"
            )
        if not (folder / NAME).is_file():
            raise ValueError(
                f"{folder / NAME}: no such file, so this is no model for super-resolution but at "
                "most a base; `gdpo-sr import-weights` makes a model folder of released weights"
            )
        device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        tagger = None
        if args.tagger:
            from gdpo.tagger.tagger import Tagger

            tagger = Tagger.from_folder(args.tagger, dape=True, device=device)
        settings = Settings(
            color_fix=args.color_fix,
            tagger=tagger,
            words=args.prompt,
            t_add=args.t_add,
            tile=args.tile,
        )
        dtype = getattr(torch, args.dtype)
        return cls(
            args,
            load_super_resolver(
                folder, device=device, dtype=dtype, base=args.base, settings=settings
            ),
        )

    def run(self, job: PhotoJob, on_tile: Callable[[int, int], None]) -> dict[str, Any]:
        """One photograph: what was made. ValueError naming the file that is wrong."""
        start, deep = time.perf_counter(), self.args.bits == 16
        picture = read_picture(job.photo, deep=deep)
        size = self._size(picture.rgb.shape[0], picture.rgb.shape[1])
        check_format(job.output, *size, deep=deep)
        self._check_memory(job, picture, size)
        if size[0] * size[1] > LARGE:
            sys.stderr.write(f"{job.photo}: {self._forecast(picture, size)}\n")
        rgb, details = self._best(picture, size, on_tile)
        alpha = None if picture.alpha is None else resize_plane(picture.alpha, size)
        write_picture(job.output, replace(picture, rgb=rgb, alpha=alpha))
        if picture.frames > 1:
            details["note"] = f"the first of its {picture.frames} pictures"
        return {
            "output": str(job.output),
            "size": [size[1], size[0]],
            **details,
            "tagged": self.args.tagger is not None,
            "seconds": round(time.perf_counter() - start, 3),
        }

    def _check_memory(self, job: PhotoJob, picture: Picture, size: tuple[int, int]) -> None:
        """ValueError if the result cannot fit: the system would end the process, or stand still."""
        need = bytes_needed(size, picture.rgb.dtype, self.args.color_fix)
        have = _memory()
        if have is not None and need > have:
            raise ValueError(
                f"{job.photo}: {size[1]}x{size[0]} pixels need {need / 1e9:.0f} GB of memory, and "
                f"this machine has {have / 1e9:.0f}; make the result smaller: --scale, --width"
            )

    def _forecast(self, picture: Picture, size: tuple[int, int]) -> str:
        """What a large result takes; the time is that of a piece as large as a tile."""
        pixels, scale = size[0] * size[1], size[0] / picture.rgb.shape[0]
        side = ceil(self.args.tile / scale)
        piece = picture.rgb[:side, :side]
        start = time.perf_counter()
        result = self.model.photo(piece, scale=scale).image
        seconds = time.perf_counter() - start
        # Neighbouring tiles share a quarter of a side, so a pixel is in (4 / 3) ** 2 tiles.
        tiles = pixels / (result.shape[0] * result.shape[1]) * 16 / 9
        minutes = seconds * tiles * self.args.best_of / 60
        text = f"{size[1]}x{size[0]} pixels take about {minutes:.0f} minutes"
        if self.model.identity.kind != "naosd":
            return text
        need = bytes_needed(size, picture.rgb.dtype, self.args.color_fix)
        return f"{text} and {need / 1e9:.1f} GB of memory besides the model"

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the result."""
        pairs = ((self.args.height, height), (self.args.width, width))
        # The smaller factor fits the result into both; the photograph keeps its shape.
        wanted = [want / side for want, side in pairs if want]
        return scaled((height, width), min(wanted) if wanted else self.args.scale)

    def _best(
        self, picture: Picture, size: tuple[int, int], on_tile: Callable[[int, int], None]
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """The result with the best score; its prompt or chain of thought and, of several, its
        seed.
        """
        count, first = self.args.best_of, self.args.seed
        best: Candidate | None = None
        for one in candidates(
            self.model,
            picture.rgb,
            size=size,
            seeds=range(first, first + count),
            by=self.args.by if count > 1 else None,
            on_tile=on_tile,
        ):
            # One by one, and the best alone is kept: a large result takes gigabytes.
            if best is None or one.rank > best.rank:
                best = one
        assert best is not None
        name = "prompt" if self.model.identity.kind == "naosd" else "chain"
        details = {name: best.photo.text} | ({"seed": best.seed} if count > 1 else {})
        return best.photo.image, details


def _named(model: Path | None) -> Path | None:
    """The folder of --model; the name of a model that ships, such as tiny-vlcot, is one as well."""
    if model is None or model.exists() or len(model.parts) > 1:
        return model
    ours = shipped(f"assets/{model}")
    return ours if ours.is_dir() else model


def _memory() -> int | None:
    """The bytes of this machine's memory; None where the system does not say (Windows)."""
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
