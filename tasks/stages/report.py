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
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gdpo.config import Config
from gdpo.config.fields import EVALUATION
from gdpo.files import written_aside
from gdpo.hooks import Hooks
from tasks import paths
from tasks.files.scores import SCORES, read_scores
from tasks.report import curves, sections, tables
from tasks.report.benchmark_page import Page, asset, benchmark_page, html_of
from tasks.report.gallery import read_text
from tasks.report.html import copy_assets, environment
from tasks.report.paper_tables import paper_tables, write
from tasks.run.fingerprint import REPORTED, versions


def run(config: Config, root: Path, hooks: Hooks) -> None:
    """Write reports/assets, reports/pages and reports/index.html.

    Errors: ValueError naming a missing input.
    """
    with written_aside(root / paths.ASSETS) as assets:
        (assets / "figures").mkdir(parents=True)
        copy_assets(assets)
        texts = _render(_pages(config, root, assets))
    with written_aside(root / paths.PAGES) as folder:
        folder.mkdir()
        for name, text in texts.items():
            if name != "index":
                _write(folder / f"{name}.html", text)
    with written_aside(root / paths.INDEX) as part:
        _write(part, texts["index"])


def _write(path: Path, text: str) -> None:
    # A file name may hold bytes that are not UTF-8, which Python reads as lone surrogates.
    path.write_bytes(text.encode("utf-8", "replace"))


def _render(pages: dict[str, Page]) -> dict[str, str]:
    """{page: HTML}; the first benchmark's page is second in the menu, after the summary."""
    templates = environment()
    templates.filters["metric_label"] = tables.label
    addresses = {
        name: "index.html" if name == "index" else quote(f"pages/{name}.html") for name in pages
    }
    menu = [(name, page["title"], addresses[name]) for name, page in pages.items()]
    texts = {}
    for name, page in pages.items():
        template = templates.get_template(f"{page['template']}.html")
        base = "" if name == "index" else "../"
        texts[name] = template.render(
            page, name=name, menu=menu, base=base, label=tables.label, sample=tables.sample
        )
    return texts


def _pages(config: Config, root: Path, assets: Path) -> dict[str, Page]:
    """{file stem: content}, in the order of the menu."""
    benchmarks = {name: benchmark_page(root, assets, name) for name in config.evaluate.benchmarks}
    first = next(iter(benchmarks.values()))
    return {
        "index": {
            **first,
            "template": "index",
            "title": "Summary",
            "benchmarks": list(benchmarks.values()),
            "has_evidence": sections.evidence(root) is not None,
        },
        **{f"benchmark-{name}": page for name, page in benchmarks.items()},
        "tables": _paper(root, assets),
        "training": _training(config, root, assets),
        **({"evidence": evidence} if (evidence := sections.evidence(root)) else {}),
        "data": _data(config, root),
        "provenance": _provenance(config, root, list(benchmarks)),
    }


def _paper(root: Path, assets: Path) -> Page:
    written = paper_tables(root)
    write(written, assets / "paper")
    shown = []
    for table in written:
        measured = [row for row in table.rows if any(cell.value is not None for cell in row)]
        absent = [row for row in table.rows if row not in measured]
        shown.append(
            {
                "name": table.name,
                "caption": table.caption,
                "html": html_of(replace(table, rows=measured)),
                "address": asset("paper", table.name),
                "absent": len(absent),
                "absent_html": html_of(replace(table, rows=absent, notes=())),
            }
        )
    return {"template": "tables", "title": "Paper", "tables": shown}


def _training(config: Config, root: Path, assets: Path) -> Page:
    groups = curves.group_values(root, config.reward)
    runs = {name: f"{paths.FINETUNED}/{name}" for name in paths.FINETUNE_RUNS}
    rewarded = next(iter(runs.values()))
    batches, no_batches = curves.batches(
        root, assets, groups, config.seed, config.finetune, rewarded
    )
    return {
        "template": "training",
        "title": "Training",
        "learned": curves.learned(root, runs),
        "finetune": curves.trainings(root, assets, "finetune", runs),
        "batches": batches,
        "no_batches": no_batches,
        "pretrain": curves.trainings(root, assets, "pretrain", {"naosd": paths.PRETRAINED}),
        "rollouts": curves.rollouts(assets, groups),
    }


def _data(config: Config, root: Path) -> Page:
    parts = [*config.degrade.parts, EVALUATION]
    checked = [
        *(f"degrade/{part}" for part in parts),
        "select",
        *(f"rollout/{part}" for part in config.rollout.parts),
    ]
    select = json.loads(read_text(root, f"{paths.SELECTED}/{paths.STAGE_REPORT}"))
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
            (name, sections.origins(read_scores(root / paths.EVALUATED / name / SCORES).origin))
            for name in names
        ],
        "versions": [
            ("Python", ".".join(platform.python_version_tuple()[:2])),
            *versions(REPORTED).items(),
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
