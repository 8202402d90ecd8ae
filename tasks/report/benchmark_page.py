"""The page of one evaluated benchmark: its verdict, tables, pictures and changes."""

from pathlib import Path
from statistics import mean, stdev
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from gdpo.evaluate.benchmark import REWARD
from gdpo.evaluate.models import EvaluatedModels
from gdpo.metrics.table import METRICS
from tasks import paths
from tasks.files.results import read_summary
from tasks.report import changes, figures, sections, tables, verdict
from tasks.report.gallery import Gallery

Page = dict[str, Any]  # the variables of one template


def benchmark_page(root: Path, assets: Path, name: str) -> Page:
    """The variables of templates/benchmark.html; writes the figures and pictures to `assets`."""
    results = read_summary(f"{paths.EVALUATED}/{name}", root)
    gallery, models = Gallery(root, name, results), tables.evaluated(results)
    forest = assets / "figures" / name / "differences.svg"
    return {
        "template": "benchmark",
        "title": name,
        "address": quote(f"pages/benchmark-{name}.html"),
        "headline": verdict.headline(results),
        "explanations": verdict.explanations(results),
        "baseline": models.label(models.baseline),
        "ours": models.label(models.ours),
        "rewarded": models.identities[models.ours].role == "reward",
        "control": models.control is not None,
        "claims": verdict.claims(results),
        "since": _since(root, name, results),
        "summary": results,
        "metric_headings": [
            tables.metric_heading(results, metric) for metric in results["metrics"]
        ],
        "tables": _tables(assets, name, results),
        "variants": _variants(results),
        "sets": _sets(results),
        "forest": asset("figures", name, "differences.svg")
        if _forest(forest, results, models)
        else None,
        "viewer_data": gallery.viewer(assets),
        "candidates": gallery.candidates(assets),
        "maps": gallery.maps(assets),
    }


def _since(root: Path, benchmark: str, results: dict[str, Any]) -> dict[str, Any] | None:
    since = sections.since(root, benchmark, results)
    if since is None:
        return None
    changed, moved = since
    table = changes.changes_table(results, changed)
    return {
        "sentence": changes.change_sentence(changed, tables.evaluated(results)),
        "table": html_of(table),
        "moved": moved,
    }


def asset(*parts: str) -> str:
    """The address of a file under reports/assets, relative to reports/."""
    return quote("/".join(["assets", *parts]))


def html_of(table: tables.Table) -> Markup:
    """A table as HTML that the templates do not escape again."""
    return Markup(tables.to_html(table))  # to_html escapes every text


def _tables(assets: Path, benchmark: str, results: dict[str, Any]) -> dict[str, Any]:
    """Write the tables as Markdown and CSV files for download; returns them as HTML."""
    folder = assets / "tables" / benchmark
    folder.mkdir(parents=True)
    shown: dict[str, Any] = {}
    for name, table in (
        ("models", tables.models_table(results)),
        ("differences", tables.differences_table(results)),
    ):
        (folder / f"{name}.md").write_text(tables.to_markdown(table), encoding="utf-8")
        (folder / f"{name}.csv").write_text(tables.to_csv(table), encoding="utf-8")
        shown[name] = {"html": html_of(table), "address": asset("tables", benchmark, name)}
    return shown


def _variants(results: dict[str, Any]) -> list[tuple[str, str]]:
    """(label, our name and exact definition) of every metric; the templates describe the reward."""
    names = [name for name in (*results["metrics"], *results.get("sets", {})) if name in METRICS]
    return [(tables.label(name), f"{name}: {METRICS[name].variant}") for name in names]


def _sets(results: dict[str, Any]) -> list[tuple[str, str]]:
    """(metric and model, mean ± standard deviation over noises) of metrics of whole image sets,
    such as FID.
    """
    sets, models = results.get("sets", {}), tables.evaluated(results)
    return [
        (
            f"{tables.label(metric)}, {models.label(model)}",
            f"{mean(v):.2f} ± {stdev(v) if len(v) > 1 else 0:.2f}",
        )
        for metric, by_model in sets.items()
        for model, v in by_model.items()
    ]


def _forest(path: Path, results: dict[str, Any], models: EvaluatedModels) -> bool:
    """Draw every model's difference to the baseline, in the baseline's within-image standard
    deviations; right is better.

    Returns whether there was anything to draw.
    """
    baseline, rows = models.baseline, []
    for metric, properties in results["metrics"].items():
        own = results["models"][baseline][metric]["within_image_std"]
        unit = 1.0 if metric == REWARD else own  # the reward is in such deviations already
        sign = 1 if properties["higher_is_better"] else -1
        for model in results["models"]:
            difference = verdict.find(results, model, baseline, metric)
            if unit and difference and difference["low"] is not None:
                mean, low, high = (sign * difference[key] / unit for key in ("mean", "low", "high"))
                rows.append((tables.label(metric), models.label(model), mean, low, high))
    if rows:
        path.parent.mkdir(parents=True, exist_ok=True)
        roles = {models.label(name): card.role for name, card in models.identities.items()}
        figures.forest(path, rows, models.label(baseline), roles)
    return bool(rows)
