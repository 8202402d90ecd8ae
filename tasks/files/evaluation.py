"""The files that the stage `evaluate` writes to reports/evaluate/<benchmark>; the report reads
them.

    images/<folder>/{lr,bicubic,<model>,...,hr}.png           noise 0 of each model, for at most
                                                              PICTURES images
    images/<folder>/candidates/<noise>.png, candidates.json   for a few images, the reference's
                                                              whole group as training scores it
    per_image.parquet                                         tasks/files/scores.py
    summary.json                                              means, standard errors, paired
                                                              differences, FID per noise

During a run, each finished image is stored atomically in work/evaluate/<benchmark>/images/<folder>:
pictures, result.json and, for FID, features.npz. A run with other inputs sets them aside
(gdpo.items).
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gdpo.config import Config
from gdpo.data.shards import Pair
from gdpo.evaluate.benchmark import REWARD, ImageResult, rewards, stack
from gdpo.evaluate.models import EvaluatedModels
from gdpo.evaluate.statistics import Array, summarise
from gdpo.files import sha256
from gdpo.images import write_png
from gdpo.items import ItemStore
from gdpo.metrics.fid import Features, frechet_distance
from gdpo.metrics.score import higher_is_better
from gdpo.preference.group import reward_of
from tasks.files.results import CANDIDATES, SUMMARY, read_summary
from tasks.files.scores import SCORES, write_scores

PICTURES = 100  # at most this many images, evenly spaced, keep their pictures
_PRIVATE = ("result.json", "features.npz")  # not copied into the results


@dataclass(frozen=True)
class FinishedImage:
    """One finished image: its entry in summary.json, its scores {model: {metric: (N,)}}, and its
    group of candidates or None.
    """

    entry: dict[str, Any]
    scores: dict[str, dict[str, Array]]
    group: dict[str, Any] | None


def folder_name(index: int, image: str) -> str:
    """A folder name for an image: its index and a slug of its id, safe as a path component."""
    # The index in front makes the name unique; the slug is for people who open the folder.
    slug = re.sub(r"[^a-z0-9]+", "-", image.lower()).strip("-")[:60]
    return f"{index:03d}-{slug}".rstrip("-")


def has_pictures(index: int, count: int) -> bool:
    """Whether the pictures of image `index` of `count` are kept."""
    # Evenly spaced and not the first ones: images are ordered by name, and neighbours are often
    # tiles of one photograph.
    return count <= PICTURES or index in {place * count // PICTURES for place in range(PICTURES)}


def is_current(folder: Path, origin: dict[str, Any]) -> bool:
    """Whether `folder` holds results of exactly this origin."""
    try:
        return bool(read_summary(folder)["origin"] == origin)
    except (ValueError, KeyError):
        return False


def image_entry(pair: Pair, folder: str) -> dict[str, Any]:
    """An image's entry in summary.json."""
    height, width = pair.hr.shape[:2]
    return {
        "id": pair.id,
        "source": pair.source,
        "folder": folder,
        "height": height,
        "width": width,
        "detail_share": pair.detail_share,
    }


class ImageStore:
    """Stores the finished images of a run in progress. folder: work/evaluate/<benchmark>.

    inputs: text that identifies all that the images depend on (gdpo.items).
    """

    def __init__(self, folder: Path, inputs: str) -> None:
        self.images = folder / "images"
        self._store = ItemStore(self.images, inputs, "[0-9]*")
        self._store.open()

    def read(self, name: str) -> FinishedImage | None:
        """A finished image, or None if it is missing or a file of it is damaged."""
        folder = self.images / name
        try:
            content = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        # Damaged counts as missing: to make one image again costs seconds.
        if not isinstance(content, dict) or content.pop("sha256", None) != _sums(folder, content):
            return None
        scores = {
            model: {m: np.array(v) for m, v in metrics.items()}
            for model, metrics in content["scores"].items()
        }
        return FinishedImage(content["entry"], scores, content["group"])

    def write(
        self,
        done: FinishedImage,
        pair: Pair,
        result: ImageResult,
        features: dict[str, Features],
        *,
        pictures: bool,
    ) -> None:
        """Store a finished image. features: of its outputs by model, and of `hr`, for FID; may be
        empty.
        """
        # One folder per image, renamed when it is complete: a kill leaves a whole image or none.
        with self._store.write(done.entry["folder"]) as part:
            part.mkdir()
            if pictures:
                _write_images(part, pair, result)
            for noise, output in enumerate(
                result.outputs[done.group["model"]] if done.group else []
            ):
                write_png(part / f"candidates/{noise}.png", output)
            if features:
                # Lossless: the network computes in single precision.
                single: dict[str, Any] = {
                    name: rows.astype(np.float32) for name, rows in features.items()
                }
                np.savez(part / "features.npz", **single)
            scores = {
                model: {m: v.tolist() for m, v in metrics.items()}
                for model, metrics in done.scores.items()
            }
            content = {"entry": done.entry, "scores": scores, "group": done.group}
            _write_json(part / "result.json", {**content, "sha256": _sums(part, content)})

    def features(self, names: Iterable[str]) -> dict[str, Features]:
        """The FID features of all images: {model or "hr": (I, N, D)}."""
        rows: dict[str, list[Features]] = {}
        for name in names:
            with np.load(self.images / name / "features.npz") as arrays:
                for model in arrays.files:
                    rows.setdefault(model, []).append(arrays[model].astype(np.float64))
        return {model: np.stack(arrays) for model, arrays in rows.items()}

    def remove(self) -> None:
        """Delete all stored images."""
        self._store.remove()


def _sums(folder: Path, content: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of what belongs to a finished image: the content of result.json, and its files."""
    # sort_keys: the content read back from JSON must have the hash of the content that was written.
    own = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    others = {
        path.relative_to(folder).as_posix(): sha256(path)
        for path in files
        if path.name != "result.json"
    }
    return {"result.json": own, **others}


def _write_images(folder: Path, pair: Pair, result: ImageResult) -> None:
    """LR, HR and every model's output for noise 0."""
    write_png(folder / "hr.png", pair.hr)
    write_png(folder / "lr.png", pair.lr)
    for model, outputs in result.outputs.items():
        write_png(folder / f"{model}.png", outputs[0])


def candidate_group(
    pair: Pair, folder: str, reference: str, values: dict[str, Array], config: Config
) -> dict[str, Any]:
    """All outputs of the reference for one image as a training group: their metrics, rewards and
    advantages.
    """
    group = reward_of(
        {metric: scores.tolist() for metric, scores in values.items()},
        pair.detail_share,
        config.reward,
    )
    members = [
        {
            "metrics": {metric: float(values[metric][noise]) for metric in values},
            "reward": reward,
            "advantage": advantage,
        }
        for noise, (reward, advantage) in enumerate(zip(*group, strict=True))
    ]
    return {"image": pair.id, "folder": folder, "model": reference, "members": members}


def write_results(
    out: Path, config: Config, origin: dict[str, Any], images: list[FinishedImage], kept: ImageStore
) -> None:
    """Write the results of all images to `out`.

    Adds the rewards to the scores first: their unit, the reference's within-image spread, needs all
    images.
    """
    models = EvaluatedModels.of_origin(origin, "origin")
    reference = models.baseline
    scores = stack([done.scores for done in images])
    detail_share = np.array([done.entry["detail_share"] for done in images])
    by_model = rewards(scores, detail_share, config.reward, reference)
    for model, reward in by_model.items():
        scores[model][REWARD] = reward
    directions = {
        metric: metric == REWARD or higher_is_better(metric) for metric in scores[reference]
    }
    out.mkdir()
    write_scores(
        out / SCORES, origin, {done.entry["id"]: done.entry["source"] for done in images}, scores
    )
    shown = [done.entry for i, done in enumerate(images) if has_pictures(i, len(images))]
    for entry in shown:
        place = Path("images") / entry["folder"]
        shutil.copytree(
            kept.images / entry["folder"], out / place, ignore=shutil.ignore_patterns(*_PRIVATE)
        )
    _write_json(out / CANDIDATES, [done.group for done in images if done.group])
    summary = {
        "benchmark": origin["benchmark"],
        "images": len(images),
        "photographs": len({done.entry["source"] for done in images}),
        "seed": config.seed,
        "noises": origin["noises"],
        "color_fix": config.evaluate.color_fix,
        "reference": reference,
        "reward": origin["reward"],
        "metrics": {metric: {"higher_is_better": higher} for metric, higher in directions.items()},
        **summarise(
            scores,
            directions,
            models.comparisons(),
            unit_of=reference,
            photographs=[done.entry["source"] for done in images],
        ),
        "sets": _sets(origin, images, kept),
        "origin": origin,
        "files": shown,
    }
    _write_json(out / SUMMARY, summary)


def _sets(
    origin: dict[str, Any], images: list[FinishedImage], kept: ImageStore
) -> dict[str, dict[str, list[float]]]:
    """{set metric: {model: one value per noise}}; a set is all images' outputs for one noise."""
    if "fid" not in origin["metrics"]:
        return {}
    features = kept.features(done.entry["folder"] for done in images)
    hr_ID = features.pop("hr")[:, 0]
    return {
        "fid": {
            model: [
                frechet_distance(rows_IND[:, noise], hr_ID) for noise in range(rows_IND.shape[1])
            ]
            for model, rows_IND in features.items()
        }
    }


def _write_json(path: Path, content: Any) -> None:
    # NaN is no JSON: browsers and other readers of summary.json would fail where Python does not.
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
