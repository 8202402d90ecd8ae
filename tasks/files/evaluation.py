"""The files that the stage `evaluate` writes to reports/evaluate/<benchmark>; the report reads
them.

    images/<folder>/{lr,bicubic,<model>,...,hr}.png           noise 0 of each model, for at most
                                                              PICTURES images
    images/<folder>/candidates/<noise>.png, candidates.json   for a few images, the reference's
                                                              whole group as training scores it
    per_image.parquet                                         a row per image, model and noise; the
                                                              metadata is the origin
    summary.json                                              means, standard errors, paired
                                                              differences, FID per noise

During a run, each finished image is stored atomically in work/evaluate/<benchmark>/images/<folder>:
pictures, result.json and, for FID, features.npz. A run with another fingerprint deletes them.
"""

import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gdpo.config import Config
from gdpo.data.shards import Pair
from gdpo.evaluate.benchmark import REWARD, ImageResult, comparisons, rewards, stack
from gdpo.evaluate.statistics import Array, Scores, summarise
from gdpo.files import written_aside
from gdpo.images import write_png
from gdpo.metrics.fid import Features, frechet_distance
from gdpo.metrics.score import higher_is_better
from gdpo.preference.group import reward_of

PICTURES = 100  # at most this many images, evenly spaced, keep their pictures
_PRIVATE = ("result.json", "features.npz")  # not copied into the results


@dataclass(frozen=True)
class Done:
    """One finished image: its entry in summary.json, its scores {model: {metric: (N,)}}, and its
    group of candidates or None.
    """

    entry: dict[str, Any]
    scores: dict[str, dict[str, Array]]
    group: dict[str, Any] | None


def folder_name(index: int, image: str) -> str:
    """A folder name for an image: its index and a slug of its id, safe as a path component."""
    slug = re.sub(r"[^a-z0-9]+", "-", image.lower()).strip("-")[:60]
    return f"{index:03d}-{slug}".rstrip("-")


def has_pictures(index: int, count: int) -> bool:
    """Whether the pictures of image `index` of `count` are kept."""
    return count <= PICTURES or index in {place * count // PICTURES for place in range(PICTURES)}


def is_current(folder: Path, origin: dict[str, Any]) -> bool:
    """Whether `folder` holds results of exactly this origin."""
    try:
        return bool(
            json.loads((folder / "summary.json").read_text(encoding="utf-8"))["origin"] == origin
        )
    except (OSError, ValueError, KeyError):
        return False


def describe(pair: Pair, folder: str) -> dict[str, Any]:
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


class Kept:
    """The finished images of a run in progress. folder: work/evaluate/<benchmark>.

    Deletes the images of a run with another fingerprint.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.images = folder / "images"
        self._mark = folder / "fingerprint"
        if not self._mark.is_file() or self._mark.read_text() != fingerprint:
            self.remove()
            with written_aside(self._mark) as part:
                part.write_text(fingerprint)

    def read(self, name: str) -> Done | None:
        """A finished image, or None if it is missing or damaged."""
        try:
            found = json.loads((self.images / name / "result.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):  # missing or damaged: evaluated again
            return None
        scores = {
            model: {m: np.array(v) for m, v in metrics.items()}
            for model, metrics in found["scores"].items()
        }
        return Done(found["entry"], scores, found["group"])

    def write(
        self,
        done: Done,
        pair: Pair,
        result: ImageResult,
        features: dict[str, Features],
        *,
        pictures: bool,
    ) -> None:
        """Store a finished image. features: of its outputs by model, and of `hr`, for FID; may be
        empty.
        """
        with written_aside(self.images / done.entry["folder"]) as part:
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
            _write_json(
                part / "result.json", {"entry": done.entry, "scores": scores, "group": done.group}
            )

    def features(self, names: Iterable[str]) -> dict[str, Features]:
        """The FID features of all images: {model or "hr": (I, N, D)}."""
        rows: dict[str, list[Features]] = {}
        for name in names:
            with np.load(self.images / name / "features.npz") as found:
                for model in found.files:
                    rows.setdefault(model, []).append(found[model].astype(np.float64))
        return {model: np.stack(found) for model, found in rows.items()}

    def remove(self) -> None:
        """Delete all stored images."""
        self._mark.unlink(missing_ok=True)
        shutil.rmtree(self.images, ignore_errors=True)


def _write_images(folder: Path, pair: Pair, result: ImageResult) -> None:
    """LR, HR and every model's output for noise 0."""
    write_png(folder / "hr.png", pair.hr)
    write_png(folder / "lr.png", pair.lr)
    for model, outputs in result.outputs.items():
        write_png(folder / f"{model}.png", outputs[0])


def candidates(
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
    out: Path, config: Config, origin: dict[str, Any], images: list[Done], kept: Kept
) -> None:
    """Write the results of all images to `out`.

    Adds the rewards to the scores first: their unit, the reference's within-image spread, needs all
    images.
    """
    reference, *_ = config.evaluate.models
    scores = stack([done.scores for done in images])
    detail_share = np.array([done.entry["detail_share"] for done in images])
    found = rewards(scores, detail_share, config.reward, reference)
    for model, reward in found.items():
        scores[model][REWARD] = reward
    directions = {
        metric: metric == REWARD or higher_is_better(metric) for metric in scores[reference]
    }
    out.mkdir()
    _write_rows(out / "per_image.parquet", origin, images, scores)
    shown = [done.entry for i, done in enumerate(images) if has_pictures(i, len(images))]
    for entry in shown:
        place = Path("images") / entry["folder"]
        shutil.copytree(
            kept.images / entry["folder"], out / place, ignore=shutil.ignore_patterns(*_PRIVATE)
        )
    _write_json(out / "candidates.json", [done.group for done in images if done.group])
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
            scores, directions, comparisons(list(config.evaluate.models)), unit_of=reference
        ),
        "sets": _sets(origin, images, kept),
        "origin": origin,
        "files": shown,
    }
    _write_json(out / "summary.json", summary)


def _write_rows(path: Path, origin: dict[str, Any], images: list[Done], scores: Scores) -> None:
    """A row per image, model and noise; each entry of the origin as JSON in the file's metadata."""
    rows = [
        {
            "image": done.entry["id"],
            "model": model,
            "noise": noise,
            **{m: float(v[i, noise]) for m, v in values.items()},
        }
        for i, done in enumerate(images)
        for model, values in scores.items()
        for noise in range(values[REWARD].shape[1])
    ]
    metadata = {name: json.dumps(value) for name, value in origin.items()}
    pq.write_table(
        pa.Table.from_pylist(rows).replace_schema_metadata(metadata), path, compression="zstd"
    )


def _sets(
    origin: dict[str, Any], images: list[Done], kept: Kept
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
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
