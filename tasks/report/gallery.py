"""The pictures of the report, made from one benchmark's folder reports/evaluate/<benchmark>.

    viewer        images of all models at the same scale, with their scores (noise 0)
    candidates    groups of the baseline's outputs as training scores them
    maps          the pixels that count as detail in the reward

Pictures are stored as WebP under reports/assets/images/<benchmark>, in folders named by `evaluate`:
no path contains a photograph's own name. Addresses are relative to reports/.
"""

from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from gdpo.config.evaluation import BICUBIC
from gdpo.images import read_photo, to_tensor
from gdpo.metrics.table import METRICS
from gdpo.rewards.detail import PIPELINE_GRAYSCALE, detail_map
from tasks import paths
from tasks.files.results import read_candidates
from tasks.files.scores import SCORES, read_scores
from tasks.report.tables import evaluated, label, number

VIEWER_IMAGES, MAP_IMAGES = 24, 6  # at most, spread evenly over the benchmark
LONGEST_SIDE, THUMB_SIDE = 1024, 112
LOSSLESS_SIDE = 256  # larger images are stored at WebP quality 90: the report stays below 15 MB


def read_text(root: Path, path: str) -> str:
    """The text of another stage's output; path: relative to `root`. Errors: ValueError if the file
    is missing.
    """
    if not (root / path).is_file():
        raise ValueError(f"{path}: missing; run the stage that writes it, or `dvc repro`")
    return (root / path).read_text(encoding="utf-8")


class Gallery:
    """The pictures of one benchmark: their sources and their WebP files."""

    def __init__(self, root: Path, benchmark: str, summary: dict[str, Any]) -> None:
        self.root, self.benchmark, self.summary = root, benchmark, summary
        self.models = evaluated(summary)
        self.source = root / paths.EVALUATED / benchmark

    def webp(self, image: np.ndarray, assets: Path, name: str, side: int = LONGEST_SIDE) -> str:
        """Write an image to ASSETS/images/<benchmark>/NAME.webp; returns its address."""
        path = assets / "images" / self.benchmark / f"{name}.webp"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(image)
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        small = side > THUMB_SIDE and max(picture.size) <= LOSSLESS_SIDE
        picture.save(
            path, "WEBP", lossless=small, quality=90 if side > THUMB_SIDE else 80, method=4
        )
        return quote(f"assets/images/{self.benchmark}/{name}.webp")

    def views(self) -> dict[str, str]:
        """{file stem: label} of the views that every image has: LR, the models, the original."""
        names = {
            "lr": "Low resolution",
            **{model: self.models.label(model) for model in self.summary["models"]},
            "hr": "Original",
        }
        folders = [self.source / "images" / file["folder"] for file in self.summary["files"]]
        return {
            view: name
            for view, name in names.items()
            if all((f / f"{view}.png").is_file() for f in folders)
        }

    def viewer(self, assets: Path) -> dict[str, Any]:
        """The data of the before/after viewer: for each image the address of every view, and the
        scores for noise 0; and the two views that it starts with.
        """
        metrics, views, ours = list(self.summary["metrics"]), self.views(), self.models.ours
        scores = {
            key: _score_texts({m: values[m] for m in metrics})
            for key, values in read_scores(self.source / SCORES).of_noise(0).items()
        }
        images = []
        for file in evenly(self.summary["files"], VIEWER_IMAGES):
            pictures = {
                view: read_photo(self.source / "images" / file["folder"] / f"{view}.png")
                for view in views
            }
            thumb = pictures["hr" if "hr" in views else ours]
            images.append(
                {
                    "name": file["id"],
                    "thumb": self.webp(thumb, assets, f"{file['folder']}/thumb", THUMB_SIDE),
                    "views": {
                        view: self.webp(picture, assets, f"{file['folder']}/{view}")
                        for view, picture in pictures.items()
                    },
                    "scores": {
                        model: scores[file["id"], model]
                        for model in views
                        if (file["id"], model) in scores
                    },
                    "size": [file["width"], file["height"]],
                }
            )
        return {
            "views": views,
            "images": images,
            "of": self.summary["images"],
            "left": BICUBIC if BICUBIC in views else next(iter(views)),
            "right": ours if ours in views else list(views)[-1],
        }

    def candidates(self, assets: Path) -> list[dict[str, Any]]:
        """Groups of the baseline's outputs, each sorted by advantage, best first."""
        return [
            {"name": group["image"], "members": self._members(group, assets)}
            for group in read_candidates(f"{paths.EVALUATED}/{self.benchmark}", self.root)
            if (
                self.source / "images" / group["folder"]
            ).is_dir()  # a large benchmark keeps pictures of some images only
        ]

    def _members(self, group: dict[str, Any], assets: Path) -> list[dict[str, Any]]:
        largest = max([abs(member["advantage"]) for member in group["members"]] + [1e-9])
        members = []
        for noise, member in enumerate(group["members"]):
            image = read_photo(self.source / "images" / group["folder"] / f"candidates/{noise}.png")
            members.append(
                {
                    **{
                        key: number(member[key], 2, sign=key == "advantage")
                        for key in ("reward", "advantage")
                    },
                    "weight": member["advantage"],
                    "bar": round(50 * abs(member["advantage"]) / largest),
                    "noise": noise,
                    "url": self.webp(image, assets, f"{group['folder']}/candidate-{noise}"),
                    "scores": list(
                        zip(
                            map(label, member["metrics"]),
                            _score_texts(member["metrics"]),
                            strict=True,
                        )
                    ),
                }
            )
        return sorted(members, key=lambda member: (-member["weight"], member["noise"]))

    def maps(self, assets: Path) -> list[dict[str, Any]]:
        """HR images: pixels that the reward counts as detail are tinted orange, smooth ones are
        dimmed.
        """
        tinted_images = []
        for file in evenly(self.summary["files"], MAP_IMAGES):
            hr = read_photo(self.source / "images" / file["folder"] / "hr.png")
            detail = detail_map(to_tensor(hr)[None], PIPELINE_GRAYSCALE)[0].numpy()[..., None]
            gray = hr.mean(axis=2, keepdims=True)
            tinted = np.where(
                detail, 0.55 * gray + 0.45 * np.array([255, 140, 40]), 0.45 * gray + 20
            )
            url = self.webp(tinted.round().astype(np.uint8), assets, f"{file['folder']}/detail")
            tinted_images.append(
                {"name": file["id"], "url": url, "percent": round(100 * file["detail_share"])}
            )
        return tinted_images


def evenly(items: list[Any], most: int) -> list[Any]:
    """At most `most` of the items, evenly spaced."""
    return (
        [items[index * len(items) // most] for index in range(most)] if len(items) > most else items
    )


def _score_texts(values: dict[str, float]) -> list[str]:
    return [
        number(value, METRICS[metric].decimals if metric in METRICS else 3)
        for metric, value in values.items()
    ]
