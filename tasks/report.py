"""Stage `report`: reports/index.html and reports/assets, a static page that needs no network and no server.

    python -m tasks report

Reads what the other stages wrote and renders tasks/templates/index.html. Links are relative, so the page works from a
file, from a bucket or behind a prefix; the same inputs give the same bytes. Names of photographs are escaped.
"""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from gdpo.config import Config
from gdpo.evaluate import tables
from gdpo.evaluate.verdict import claims, headline, verdict_sentence
from gdpo.training import Hooks, written_aside
from tasks import figures, sections, summary

VERSIONS = ("torch", "diffusers", "transformers", "peft", "pyiqa", "numpy", "pyarrow", "pillow")


def run(config: Config, root: Path, hooks: Hooks) -> None:
    """Write reports/assets and reports/index.html; a missing input is a ValueError that names it."""
    with written_aside(root / "reports/assets") as assets:
        (assets / "figures").mkdir(parents=True)
        page = _render(_context(config, root, assets))
    with written_aside(root / "reports/index.html") as part:
        part.write_text(page, encoding="utf-8")


def summary_text(root: Path) -> str:
    """The table, the verdict and the path of the page as plain text: what a run ends with."""
    return summary.text(summary.read(root), root)


def _render(context: dict[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("index.html").render(context)


def _context(config: Config, root: Path, assets: Path) -> dict[str, Any]:
    results = dict(summary.read(root))
    _forest(assets / "figures/differences.svg", results)
    return {
        "headline": headline(results),
        "verdict": verdict_sentence(results),
        "claims": claims(results),
        "summary": results,
        "metric_headings": [tables.metric_heading(results, metric) for metric in results["metrics"]],
        "label": tables.label,
        "tables": _tables(assets, results),
        "viewer": sections.viewer(root, assets, results),
        "candidates": sections.candidates(root, assets),
        "maps": sections.maps(root, assets, results, config.rollout.grayscale),
        "pretrain": sections.curves(root, assets, "pretrain", {"naosd": "pretrain"}),
        "finetune": sections.curves(
            root, assets, "finetune", {"gdpo": "finetune/gdpo", "control": "finetune/control"}
        ),
        "rollouts": sections.rollouts(root, assets),
        "degrade": sections.counts(root, "reports/degrade/report.json"),
        "select": sections.counts(root, "data/selected/report.json"),
        "params": json.dumps(_params(config), indent=2),
        "versions": [("Python", ".".join(platform.python_version_tuple()[:2])), *((n, version(n)) for n in VERSIONS)],
    }  # fmt: skip


def _params(config: Config) -> dict[str, Any]:
    """All sections, each named: tests/test_pipeline.py reads from this which parameters the stage depends on."""
    stages = (
        config.model, config.degrade, config.pretrain, config.select, config.rollout, config.finetune, config.evaluate,
    )  # fmt: skip
    return {"seed": config.seed, **{type(stage).__name__.lower(): stage.model_dump() for stage in stages}}


def _tables(assets: Path, results: dict[str, Any]) -> dict[str, Markup]:
    """The tables as HTML for the page, and as Markdown and CSV files to take away."""
    (assets / "tables").mkdir()
    found = {}
    for name, table in (("models", tables.models_table(results)), ("differences", tables.differences_table(results))):
        (assets / f"tables/{name}.md").write_text(tables.to_markdown(table), encoding="utf-8")
        (assets / f"tables/{name}.csv").write_text(tables.to_csv(table), encoding="utf-8")
        found[name] = Markup(tables.to_html(table))  # every text in it is escaped
    return found


def _forest(path: Path, results: dict[str, Any]) -> None:
    """GDPO-SR and the control against NAOSD in its within-image standard deviations, right being better."""
    rows = []
    for metric, properties in results["metrics"].items():
        unit = results["models"]["naosd"][metric]["within_image_std"]
        sign = 1 if properties["higher_is_better"] else -1
        for model in ("gdpo", "control"):
            row = tables.difference(results, f"{model}-naosd", metric)
            if unit and row["low"] is not None:
                mean, low, high = (sign * row[key] / unit for key in ("mean", "low", "high"))
                rows.append((tables.label(metric), model, mean, low, high))
    if rows:
        figures.forest(path, rows)
