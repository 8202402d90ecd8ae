"""What the evaluate stage leaves in reports/evaluate, file by file; the report reads these.

images/<folder>/{lr,bicubic,naosd,gdpo,control,hr}.png     noise 0 of each model
images/<folder>/candidates/<noise>.png, candidates.json    a few images' whole NAOSD group as training scores it
per_image.parquet                                          a row per image, model and noise
summary.json                                               means, standard errors, paired differences
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gdpo.config import Config
from gdpo.data.shards import Pair
from gdpo.evaluate.benchmark import PAIRS, REFERENCE, REWARD, ImageResult, group_scores, rewards
from gdpo.evaluate.statistics import Scores, summarise
from gdpo.images import write_png
from gdpo.rewards.metrics import higher_is_better


def folder_name(index: int, image: str) -> str:
    """A folder name for an image: its index and the harmless part of its id, so that none leads out of the folder."""
    slug = re.sub(r"[^a-z0-9]+", "-", image.lower()).strip("-")[:60]
    return f"{index:03d}-{slug}".rstrip("-")


def describe(pair: Pair, folder: str) -> dict[str, Any]:
    """An image's entry in summary.json."""
    height, width = pair.hr.shape[:2]
    return {
        "id": pair.id, "source": pair.source, "folder": folder, "height": height, "width": width,
        "detail_share": pair.detail_share,
    }  # fmt: skip


def write_images(folder: Path, pair: Pair, result: ImageResult) -> None:
    """LR, HR and every model's output for noise 0."""
    folder.mkdir(parents=True)
    write_png(folder / "hr.png", pair.hr)
    write_png(folder / "lr.png", pair.lr)
    for model, outputs in result.outputs.items():
        write_png(folder / f"{model}.png", outputs[0])


def write_candidates(folder: Path, pair: Pair, result: ImageResult, config: Config) -> dict[str, Any]:
    """All NAOSD outputs of one image below its folder; returns their metrics, reward and advantage as a group."""
    (folder / "candidates").mkdir()
    values = result.scores[REFERENCE]
    group = group_scores(values, pair.detail_share, config.rollout.fidelity, config.rollout.perception)
    members = []
    for noise, (reward, advantage) in enumerate(zip(*group, strict=True)):
        write_png(folder / f"candidates/{noise}.png", result.outputs[REFERENCE][noise])
        metrics = {metric: float(values[metric][noise]) for metric in values}
        members.append({"metrics": metrics, "reward": reward, "advantage": advantage})
    return {"image": pair.id, "folder": folder.name, "members": members}


def write_results(
    out: Path, config: Config, scores: Scores, images: list[dict[str, Any]], candidates: list[dict[str, Any]]
) -> None:
    """Add the rewards to the scores, and write the rows, the candidates and the summary."""
    fidelity, perception = config.rollout.fidelity, config.rollout.perception
    detail_share = np.array([image["detail_share"] for image in images])
    for model, reward in rewards(scores, detail_share, fidelity, perception).items():
        scores[model][REWARD] = reward
    directions = {metric: metric == REWARD or higher_is_better(metric) for metric in scores[REFERENCE]}
    rows = [
        {"image": image["id"], "model": model, "noise": noise, **{m: float(v[i, noise]) for m, v in values.items()}}
        for i, image in enumerate(images)
        for model, values in scores.items()
        for noise in range(values[REWARD].shape[1])
    ]
    pq.write_table(pa.Table.from_pylist(rows), out / "per_image.parquet", compression="zstd")
    _write_json(out / "candidates.json", candidates)
    summary = {
        "images": len(images),
        "photographs": len({image["source"] for image in images}),
        "seed": config.seed,
        "noises": config.evaluate.noises,
        "color_fix": config.evaluate.color_fix,
        "reward": {"fidelity": fidelity, "perception": perception},
        "metrics": {metric: {"higher_is_better": higher} for metric, higher in directions.items()},
        **summarise(scores, directions, PAIRS, unit_of=REFERENCE),
        "files": images,
    }
    _write_json(out / "summary.json", summary)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
