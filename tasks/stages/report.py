"""Stage `report`: reports/index.html, reports/pages and reports/assets, a static site that needs no
network and no server.

    python -m tasks report

    index.html                        verdict, changes since the promoted run, slider, main table,
                                      claims
    pages/benchmark-<name>.html       every picture, tables, paired differences, groups of
                                      candidates, detail maps
    pages/tables.html                 the paper's tables with our figures beside the paper's
    pages/training.html               curves of both trainings and of the control; statistics of
                                      the rollouts
    pages/data.html                   photographs, pairs, selection with reasons, links to Data Docs
    pages/provenance.html             parameters, versions, commit and hashes of the evaluated files

Reads the outputs of the other stages and promoted/ (in git); renders tasks/report/templates. Links
are relative, so the site works from a file, from a bucket or behind a prefix. Equal inputs give
equal bytes. Names are HTML-escaped.
"""

import json
import platform
import re
import shutil
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from gdpo.config import Config
from gdpo.files import written_aside
from gdpo.metrics.table import METRICS
from gdpo.train.loop import Hooks
from tasks.report import curves, figures, sections, tables, verdict
from tasks.report.gallery import Gallery, read_text
from tasks.report.paper_tables import paper_tables, write

VERSIONS = ("torch", "diffusers", "transformers", "peft", "pyiqa", "numpy", "pyarrow", "pillow")
TEMPLATES = Path(__file__).parents[1] / "report/templates"
Page = dict[str, Any]  # the variables of one template


def run(config: Config, root: Path, hooks: Hooks) -> None:
    """Write reports/assets, reports/pages and reports/index.html.

    Errors: ValueError naming a missing input.
    """
    with written_aside(root / "reports/assets") as assets:
        (assets / "figures").mkdir(parents=True)
        for name in ("style.css", "report.js"):
            shutil.copyfile(TEMPLATES / name, assets / name)
        texts = _render(_pages(config, root, assets))
    with written_aside(root / "reports/pages") as folder:
        folder.mkdir()
        for name, text in texts.items():
            if name != "index":
                _write(folder / f"{name}.html", text)
    with written_aside(root / "reports/index.html") as part:
        _write(part, texts["index"])


def _write(path: Path, text: str) -> None:
    path.write_bytes(
        text.encode("utf-8", "replace")
    )  # a file name may hold bytes that are not UTF-8


def _render(pages: dict[str, Page]) -> dict[str, str]:
    """{page: HTML}; the first benchmark's page is second in the menu, after the summary."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    addresses = {
        name: "index.html" if name == "index" else quote(f"pages/{name}.html") for name in pages
    }
    menu = [(name, page["title"], addresses[name]) for name, page in pages.items()]
    texts = {}
    for name, page in pages.items():
        template = environment.get_template(f"{page['template']}.html")
        base = "" if name == "index" else "../"
        texts[name] = template.render(
            page, name=name, menu=menu, base=base, label=tables.label, sample=tables.sample
        )
    return texts


def _pages(config: Config, root: Path, assets: Path) -> dict[str, Page]:
    """{file stem: content}, in the order of the menu."""
    benchmarks = {
        name: _benchmark(config, root, assets, name) for name in config.evaluate.benchmarks
    }
    first = next(iter(benchmarks.values()))
    return {
        "index": {
            **first,
            "template": "index",
            "title": "Summary",
            "benchmarks": list(benchmarks.values()),
        },
        **{f"benchmark-{name}": page for name, page in benchmarks.items()},
        "tables": _paper(root, assets),
        "training": _training(config, root, assets),
        "data": _data(config, root),
        "provenance": _provenance(config, root, list(benchmarks)),
    }


def _benchmark(config: Config, root: Path, assets: Path, name: str) -> Page:
    results = json.loads(read_text(root, f"reports/evaluate/{name}/summary.json"))
    gallery = Gallery(root, name, results)
    forest = assets / "figures" / name / "differences.svg"
    return {
        "template": "benchmark",
        "title": name,
        "address": quote(f"pages/benchmark-{name}.html"),
        "headline": verdict.headline(results),
        "gain": verdict.gain(results),
        "claims": verdict.claims(results),
        "since": _since(root, name, results),
        "summary": results,
        "metric_headings": [
            tables.metric_heading(results, metric) for metric in results["metrics"]
        ],
        "tables": _tables(assets, name, results),
        "variants": _variants(results),
        "sets": _sets(results),
        "forest": _asset("figures", name, "differences.svg")
        if _forest(forest, results, results["reference"])
        else None,
        "viewer_data": gallery.viewer(assets),
        "candidates": gallery.candidates(assets),
        "maps": gallery.maps(assets, config.rollout.grayscale),
    }


def _since(root: Path, benchmark: str, results: dict[str, Any]) -> dict[str, Any] | None:
    found = sections.since(root, benchmark, results)
    if found is None:
        return None
    changes, moved = found
    known = sections.origins(root / f"reports/evaluate/{benchmark}/per_image.parquet")
    table = verdict.changes_table(results, changes)
    return {
        "sentence": verdict.change_sentence(changes),
        "table": _html(table),
        "moved": moved,
        "known": bool(known),
    }


def _paper(root: Path, assets: Path) -> Page:
    found = paper_tables(root)
    write(found, assets / "paper")
    shown = [
        {
            "name": table.name,
            "caption": table.caption,
            "html": _html(table),
            "address": _asset("paper", table.name),
        }
        for table in found
    ]
    return {"template": "tables", "title": "Paper", "tables": shown}


def _training(config: Config, root: Path, assets: Path) -> Page:
    groups = curves.read_groups(root, config.reward)
    return {
        "template": "training",
        "title": "Training",
        "finetune": curves.trainings(
            root, assets, "finetune", {"gdpo": "finetune/gdpo", "control": "finetune/control"}
        ),
        "batches": curves.batches(root, assets, groups, config.seed, config.finetune),
        "pretrain": curves.trainings(root, assets, "pretrain", {"naosd": "pretrain"}),
        "rollouts": curves.rollouts(assets, groups),
    }


def _data(config: Config, root: Path) -> Page:
    parts = [*config.degrade.parts, "evaluation"]
    checked = [
        *(f"degrade/{part}" for part in parts),
        "select",
        *(f"rollout/{part}" for part in config.rollout.parts),
    ]
    select = json.loads(read_text(root, "data/selected/report.json"))
    return {
        "template": "data",
        "title": "Data",
        "reasons": sections.reasons(select["reasons"]),
        "select": sections.flat({key: value for key, value in select.items() if key != "reasons"}),
        "photographs": sections.photographs(root),
        "degrade": sections.parts(root, parts),
        "data_docs": sections.data_docs(root, checked),
    }


def _provenance(config: Config, root: Path, names: list[str]) -> Page:
    return {
        "template": "provenance",
        "title": "Provenance",
        "origins": [
            (name, sections.origins(root / f"reports/evaluate/{name}/per_image.parquet"))
            for name in names
        ],
        "versions": [
            ("Python", ".".join(platform.python_version_tuple()[:2])),
            *((n, version(n)) for n in VERSIONS),
        ],
        "params": re.sub(r"\[[^][{}]*\]", _one_line, json.dumps(_params(config), indent=2)),
    }


def _one_line(numbers: re.Match[str]) -> str:
    """A list that json.dumps spread over several lines, on one line."""
    return re.sub(r"\n *", " ", numbers[0]).replace("[ ", "[").replace(" ]", "]")


def _params(config: Config) -> dict[str, Any]:
    """All sections of the configuration.

    Every section is named explicitly: tests/test_pipeline.py derives from this function which
    parameters the stage depends on.
    """
    stages = (
        config.model,
        config.degrade,
        config.pretrain,
        config.select,
        config.reward,
        config.rollout,
        config.finetune,
        config.evaluate,
    )
    return {
        "seed": config.seed,
        **{type(stage).__name__.lower(): stage.model_dump() for stage in stages},
    }


def _asset(*parts: str) -> str:
    """The address of a file under reports/assets, relative to reports/."""
    return quote("/".join(["assets", *parts]))


def _html(table: tables.Table) -> Markup:
    return Markup(tables.to_html(table))  # to_html escapes every text


def _tables(assets: Path, benchmark: str, results: dict[str, Any]) -> dict[str, Any]:
    """Write the tables as Markdown and CSV files for download; returns them as HTML."""
    folder = assets / "tables" / benchmark
    folder.mkdir(parents=True)
    found: dict[str, Any] = {}
    for name, table in (
        ("models", tables.models_table(results)),
        ("differences", tables.differences_table(results)),
    ):
        (folder / f"{name}.md").write_text(tables.to_markdown(table), encoding="utf-8")
        (folder / f"{name}.csv").write_text(tables.to_csv(table), encoding="utf-8")
        found[name] = {"html": _html(table), "address": _asset("tables", benchmark, name)}
    return found


def _variants(results: dict[str, Any]) -> list[tuple[str, str]]:
    """(label, our name and exact definition) of every metric; the templates describe the reward."""
    names = [name for name in (*results["metrics"], *results.get("sets", {})) if name in METRICS]
    return [(tables.label(name), f"{name}: {METRICS[name].variant}") for name in names]


def _sets(results: dict[str, Any]) -> list[tuple[str, str]]:
    """(metric and model, mean ± standard deviation over noises) of metrics of whole image sets,
    such as FID.
    """
    found = results.get("sets", {})
    return [
        (
            f"{tables.label(metric)}, {tables.label(model)}",
            f"{mean(v):.2f} ± {stdev(v) if len(v) > 1 else 0:.2f}",
        )
        for metric, models in found.items()
        for model, v in models.items()
    ]


def _forest(path: Path, results: dict[str, Any], reference: str) -> bool:
    """Draw every model's difference to the reference, in the reference's within-image standard
    deviations; right is better.

    Returns whether there was anything to draw.
    """
    rows = []
    for metric, properties in results["metrics"].items():
        unit = results["models"][reference][metric]["within_image_std"]
        sign = 1 if properties["higher_is_better"] else -1
        for model in results["models"]:
            row = verdict.find(results, f"{model}-{reference}", metric)
            if unit and row and row["low"] is not None:
                mean, low, high = (sign * row[key] / unit for key in ("mean", "low", "high"))
                rows.append((tables.label(metric), model, mean, low, high))
    if rows:
        path.parent.mkdir(parents=True, exist_ok=True)
        figures.forest(path, rows)
    return bool(rows)
