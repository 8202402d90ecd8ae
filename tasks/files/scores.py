"""per_image.parquet, the scores of one benchmark: the only place that writes and reads it.

A row per image, model and noise: columns `image`, `photograph`, `model`, `noise`, then one per
metric. Files written before the column `photograph` existed are read as well. The metadata holds
the provenance (tasks/run/provenance.py), each entry as JSON.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gdpo.errors import one_line
from gdpo.evaluate.statistics import Scores

SCORES = "per_image.parquet"
KEYS = ("image", "model", "noise")
PHOTOGRAPH = "photograph"
# model -> image -> metric -> mean over noises
ImageMeans = dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class ImageScores:
    """The content of one file. origin: the provenance of the evaluation."""

    table: pa.Table
    origin: dict[str, Any]

    @property
    def metrics(self) -> list[str]:
        """The names of all columns that hold scores, `reward` included."""
        return [name for name in self.table.column_names if name not in (*KEYS, PHOTOGRAPH)]

    @property
    def photographs(self) -> dict[str, str]:
        """Image -> the photograph it was cut from; empty if the file does not name them."""
        if PHOTOGRAPH not in self.table.column_names:
            return {}
        names = (self.table[column].to_pylist() for column in ("image", PHOTOGRAPH))
        return dict(zip(*names, strict=True))

    def of_noise(self, noise: int) -> dict[tuple[str, str], dict[str, float]]:
        """{(image, model): {metric: score}} for one noise."""
        rows = self.table.filter(pc.equal(self.table["noise"], noise)).to_pylist()
        return {(row["image"], row["model"]): {m: row[m] for m in self.metrics} for row in rows}

    def image_means(self, metrics: Iterable[str], noises: int | None = None) -> ImageMeans:
        """Means over the first `noises` noises (None: all); metrics without a score are left out.

        Models of different noise counts share the columns, and an image may lack a metric.
        """
        table = self.table
        if noises is not None:
            table = table.filter(pc.less(table["noise"], noises))
        present = [metric for metric in metrics if metric in self.metrics]
        means: ImageMeans = {}
        for row in _means(table, ["model", "image"], present):
            values = {m: row[f"{m}_mean"] for m in present if row[f"{m}_mean"] is not None}
            means.setdefault(row["model"], {})[row["image"]] = values
        return means

    def noise_means(self, metrics: Iterable[str]) -> dict[str, dict[str, list[float]]]:
        """{model: {metric: mean over images for each noise, in the order of the noises}}."""
        present = [metric for metric in metrics if metric in self.metrics]
        means: dict[str, dict[str, list[float]]] = {}
        for row in _means(self.table.sort_by("noise"), ["model", "noise"], present):
            for metric in present:
                by_metric = means.setdefault(row["model"], {})
                by_metric.setdefault(metric, []).append(row[f"{metric}_mean"])
        return means


def _means(table: pa.Table, keys: list[str], metrics: list[str]) -> list[dict[str, Any]]:
    """One row per combination of `keys`, in order of appearance; threads would change the sums."""
    # Threads add in an order that varies, and the last bits of a mean would vary with it.
    grouped = table.group_by(keys, use_threads=False)
    rows: list[dict[str, Any]] = grouped.aggregate([(m, "mean") for m in metrics]).to_pylist()
    return rows


def read_scores(path: Path) -> ImageScores:
    """Read one file. Errors: ValueError naming it if it is missing, damaged or something else."""
    try:
        table = pq.read_table(path)
        metadata = table.schema.metadata or {}
        origin = {
            key.decode(): json.loads(value)
            for key, value in metadata.items()
            if key != b"ARROW:schema"
        }
    except (OSError, pa.ArrowException, ValueError) as error:
        raise ValueError(
            f"{path}: not a file of the evaluate stage ({one_line(error)}); evaluate again"
        ) from error
    if not {*KEYS} <= {*table.column_names}:
        raise ValueError(
            f"{path}: not a file of the evaluate stage (no column {', '.join(KEYS[:-1])} or "
            f"{KEYS[-1]}); evaluate again"
        )
    return ImageScores(table, origin)


def write_scores(
    path: Path, origin: Mapping[str, Any], images: Mapping[str, str], scores: Scores
) -> None:
    """Write the scores {model: {metric: (images, noises)}} in the order of `images`.

    images: image -> the photograph it was cut from.
    """
    rows = [
        {
            "image": image,
            PHOTOGRAPH: photograph,
            "model": model,
            "noise": noise,
            **{metric: float(array[i, noise]) for metric, array in values.items()},
        }
        for i, (image, photograph) in enumerate(images.items())
        for model, values in scores.items()
        # Each model has its own number of noises: bicubic and other methods' outputs have one.
        for noise in range(next(iter(values.values())).shape[1])
    ]
    metadata = {name: json.dumps(value) for name, value in origin.items()}
    table = pa.Table.from_pylist(rows).replace_schema_metadata(metadata)
    pq.write_table(table, path, compression="zstd")
