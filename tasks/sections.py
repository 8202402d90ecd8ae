"""The parts of the report that are made from files of one stage each; a function returns what its block shows.

    viewer        evaluate    images of all models on one scale, with the scores of what is shown (noise 0)
    candidates    evaluate    groups of NAOSD outputs as training scores them
    maps          evaluate    which pixels count as detail in the reward
    curves        pretrain, finetune
    rollouts      rollout
    counts        degrade, select

Images become WebP under `assets`, in the folders that evaluate named: a photograph's own name is no part
of any path.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from gdpo.evaluate.tables import label, number
from gdpo.images import read_photo, to_tensor
from gdpo.rewards.complexity import Grayscale, detail_map
from tasks import figures

VIEWS = {
    "lr": "Low resolution", "bicubic": "Bicubic", "naosd": "NAOSD", "gdpo": "GDPO-SR", "control": "Control",
    "hr": "Original",
}  # fmt: skip
VIEWER_IMAGES, MAP_IMAGES = 24, 6  # at most, spread evenly over the benchmark
LONGEST_LIST = 12  # entries of a report.json that are listed one by one
LOSSLESS_SIDE = 256  # larger images are stored at WebP quality 90: the report stays below 15 MB
DECIMALS = {"psnr_y": 2, "piqe": 1, "musiq": 2}


def read_text(root: Path, path: str) -> str:
    """A file that another stage wrote, named relative to `root`."""
    if not (root / path).is_file():
        raise ValueError(f"{path}: missing; run the stage that writes it, or `dvc repro`")
    return (root / path).read_text(encoding="utf-8")


def _webp(image: np.ndarray, assets: Path, name: str) -> str:
    """Write an image to assets/NAME.webp and return its address relative to the page."""
    path = assets / f"{name}.webp"
    path.parent.mkdir(parents=True, exist_ok=True)
    lossless = max(image.shape[:2]) <= LOSSLESS_SIDE
    Image.fromarray(image).save(path, "WEBP", lossless=lossless, quality=90, method=4)
    return f"assets/{name}.webp"


def _spread(items: list[Any], most: int) -> list[Any]:
    return [items[index * len(items) // most] for index in range(most)] if len(items) > most else items


def _score_texts(values: dict[str, float]) -> list[str]:
    return [number(value, DECIMALS.get(metric, 3)) for metric, value in values.items()]


def viewer(root: Path, assets: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """Data of the before/after viewer: for each image the address of every view and the scores of noise 0."""
    metrics = list(summary["metrics"])
    table = pq.read_table(root / "reports/evaluate/per_image.parquet", filters=[("noise", "=", 0)]).to_pylist()
    scores = {(row["image"], row["model"]): _score_texts({metric: row[metric] for metric in metrics}) for row in table}
    images = []
    for file in _spread(summary["files"], VIEWER_IMAGES):
        source = root / "reports/evaluate/images" / file["folder"]
        addresses = {v: _webp(read_photo(source / f"{v}.png"), assets, f"images/{file['folder']}/{v}") for v in VIEWS}
        images.append({
            "name": file["id"],
            "views": addresses,
            "scores": {view: scores[file["id"], view] for view in VIEWS if (file["id"], view) in scores},
            "size": [file["width"], file["height"]],
        })  # fmt: skip
    return {"views": VIEWS, "images": images}


def candidates(root: Path, assets: Path) -> list[dict[str, Any]]:
    """Groups of NAOSD outputs, best advantage first."""
    found = []
    for group in json.loads(read_text(root, "reports/evaluate/candidates.json")):
        folder = root / "reports/evaluate/images" / group["folder"] / "candidates"
        members = [
            {
                **{key: number(member[key], 2, sign=True) for key in ("reward", "advantage")},
                "weight": member["advantage"],
                "noise": noise,
                "url": _webp(read_photo(folder / f"{noise}.png"), assets, f"images/{group['folder']}/candidate-{noise}"),
                "scores": list(zip(map(label, member["metrics"]), _score_texts(member["metrics"]), strict=True)),
            }
            for noise, member in enumerate(group["members"])
        ]
        members.sort(key=lambda member: (-member["weight"], member["noise"]))
        found.append({"name": group["image"], "members": members})
    return found


def maps(root: Path, assets: Path, summary: dict[str, Any], grayscale: Grayscale) -> list[dict[str, Any]]:
    """HR images with what the reward takes for detail tinted orange and what it takes for smooth dimmed."""
    found = []
    for file in _spread(summary["files"], MAP_IMAGES):
        hr = read_photo(root / "reports/evaluate/images" / file["folder"] / "hr.png")
        detail = detail_map(to_tensor(hr)[None], grayscale)[0].numpy()[..., None]
        gray = hr.mean(axis=2, keepdims=True)
        tinted = np.where(detail, 0.55 * gray + 0.45 * np.array([255, 140, 40]), 0.45 * gray + 20).round().astype(np.uint8)
        url = _webp(tinted, assets, f"images/{file['folder']}/detail")
        found.append({"name": file["id"], "url": url, "percent": round(100 * file["detail_share"])})
    return found


def curves(root: Path, assets: Path, name: str, runs: dict[str, str]) -> list[dict[str, str]]:
    """One figure per logged value of a training; runs: {run: folder under reports/}."""
    logs = {
        run: [json.loads(line) for line in read_text(root, f"reports/{folder}/metrics.jsonl").splitlines()]
        for run, folder in runs.items()
    }
    keys = dict.fromkeys(key for rows in logs.values() for row in rows for key in row if key != "step")
    found = []
    for index, key in enumerate(keys):
        series = {
            run: ([row["step"] for row in rows if key in row], [row[key] for row in rows if key in row])
            for run, rows in logs.items()
        }
        file = f"figures/{name}-{index:02d}.svg"
        figures.curves(assets / file, key.replace("_", " "), series)
        ends = "; ".join(f"{run} from {y[0]:.4g} to {y[-1]:.4g}" for run, (_, y) in series.items() if y)
        found.append({"url": f"assets/{file}", "alt": f"{key} over training steps: {ends}"})
    return found


def rollouts(root: Path, assets: Path) -> dict[str, Any]:
    """Figures of the rollout set: rewards of all candidates, and the spread of every metric inside a group."""
    files = sorted((root / "data/rollouts").glob("*.parquet"))
    rows = [row for file in files for row in pq.read_table(file, columns=["reward", "metrics"]).to_pylist()]
    if not rows:
        raise ValueError("data/rollouts: no rollouts; run the stage `rollout`, or `dvc repro`")
    reward_BG = np.array([row["reward"] for row in rows])
    plots = [("Reward", "attribute-aware reward of a candidate", reward_BG.ravel())]
    for metric in rows[0]["metrics"]:
        values_BG = np.array([row["metrics"][metric] for row in rows], dtype=np.float64)
        plots.append((label(metric), "standard deviation inside a group", values_BG.std(axis=1, ddof=1)))
    found = []
    for index, (title, xlabel, values) in enumerate(plots):
        file = f"figures/rollout-{index:02d}.svg"
        figures.histogram(assets / file, title, xlabel, values)
        found.append({"url": f"assets/{file}", "alt": f"Histogram of {title}, {xlabel}: median {np.median(values):.4g}"})
    flat = int((reward_BG.max(axis=1) == reward_BG.min(axis=1)).sum())
    return {"figures": found, "groups": len(rows), "group": reward_BG.shape[1], "without_spread": flat}


def counts(root: Path, path: str) -> list[tuple[str, str]]:
    """A stage's JSON of counts as (name, text) lines."""
    return _flat(json.loads(read_text(root, path)))


def _flat(content: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings become `a / b`; what is long (a count per photograph, say) becomes its length."""
    if isinstance(content, dict | list) and len(content) > LONGEST_LIST:
        return [(prefix, f"{len(content)} entries")]
    if isinstance(content, dict) and content:
        return [line for key, value in content.items() for line in _flat(value, f"{prefix} / {key}" if prefix else key)]
    if isinstance(content, list) and any(isinstance(item, dict | list) for item in content):
        return [(prefix, f"{len(content)} entries")]
    if isinstance(content, list):
        return [(prefix, ", ".join(map(str, content)) or "none")]
    if content in ("", None, {}):
        return [(prefix, "none")]
    return [(prefix, f"{content:.4g}" if isinstance(content, float) else str(content))]
