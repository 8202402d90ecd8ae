"""Great Expectations (GX) on tables in memory: suites in, Data Docs out; a failure is a one-line
error and replaces no output.

    suite = Suite(
        "pairs", "data/shards/train/00", table, ["id"], [expect("values_to_be_unique", "id")]
    )
    validate([suite], docs, failed, "../../pages/data.html")

The context is ephemeral (GX writes no files by itself) and analytics are off. GX is imported inside
the functions because the import takes 4 s; checking 120,000 rows takes less than 1 s
(benchmarks/expectations.py).

GX's renderer and view produce the pages. Our template replaces the page frame, which would load
styles, scripts and a logo from seven hosts, and omits what differs between two runs on equal tables
(times, random element ids). So a page needs no network, and equal tables give equal bytes.
"""

import html
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from jinja2 import ChoiceLoader, DictLoader

from gdpo.files import written_aside

SAMPLES = 3  # failing rows in the error message
SHOWN = 20  # failing values on a page

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; \
max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: .5rem 0 } \
td, th { border: 1px solid #ddd; padding: .3rem .6rem; text-align: left }
h5 { font-size: 1.1rem; margin: 1.5rem 0 .3rem } h6 { font-size: 1rem; margin: .5rem 0 }
.badge { background: #eee; border-radius: .2rem; padding: 0 .3rem; font-family: monospace }
i { font-style: normal; font-weight: bold } \
.text-success { color: #17693a } .text-danger, .text-warning { color: #b3261e }
.fa-check-circle::before { content: "met" } .fa-times::before { content: "not met" }
.fa-exclamation-triangle::before { content: "could not be evaluated" }
@media (prefers-color-scheme: dark) {
  body { color: #ddd; background: #181818 } a { color: #8ab4f8 } \
td, th { border-color: #444 } .badge { background: #333 }
  .text-success { color: #7bd88f } .text-danger, .text-warning { color: #f28b82 }
}
"""
HEAD = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">\
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>%s</title><style>{STYLE}</style></head>
"""
TEMPLATES = {
    "page.j2": HEAD.replace("%s", "{{ page_title }}")
    + """<body><p><a href="index.html">All tables</a></p><h1>{{ page_title }}</h1>
{% for section in sections %}{% set section_loop = loop %}{% include 'section.j2' %}{% endfor %}
<p>Great Expectations {{ ge_version }}</p></body></html>
""",
    "collapse.j2": "",  # would show tracebacks with this machine's paths
}


@dataclass(frozen=True)
class Expectation:
    """One expectation: the name of its class in great_expectations.expectations, and its
    arguments.
    """

    kind: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Suite:
    """The expectations on one table.

    name: of its page. where: the table's path, for messages. keys: the columns that identify a row.
    """

    name: str
    where: str
    table: pa.Table
    keys: list[str]
    expectations: list[Expectation]


def expect(what: str, column: str, says: str | None = None, **arguments: Any) -> Expectation:
    """`ExpectColumn<What>` on a column: expect("values_to_not_be_null", "id"). says: replaces the
    expectation's text on the page.
    """
    words = "".join(word.capitalize() for word in what.split("_"))
    return Expectation(f"ExpectColumn{words}", {"column": column, "description": says, **arguments})


def expect_rows(least: int, most: int | None = None) -> Expectation:
    """Between `least` and `most` rows; `most` None: no upper bound."""
    return Expectation("ExpectTableRowCountToBeBetween", {"min_value": least, "max_value": most})


def validate(suites: Sequence[Suite], docs: Path, failed: Path, report: str) -> None:
    """Check all suites and write their pages to the folder `docs`; on failure to `failed`, leaving
    `docs` unchanged.

    report: address of the page that the pages in `docs` lead back to, relative to `docs`.

    Errors: ValueError with the first failed expectation and up to `SAMPLES` of its rows.
    """
    with _quiet():
        results = [_run(suite) for suite in suites]
        lines = [
            line
            for suite, result in zip(suites, results, strict=True)
            for line in _failures(suite, result)
        ]
        # Pages about a failure never replace those of the last good table.
        with written_aside(failed if lines else docs) as part:
            part.mkdir()
            pages = {
                suite.name: _page(suite, result)
                for suite, result in zip(suites, results, strict=True)
            }
            for name, page in {**pages, "index": _index(suites, results)}.items():
                # Pages about a failure lie outside the report.
                text = page if lines else page.replace("<body>", _back(report), 1)
                (part / f"{name}.html").write_text(text, encoding="utf-8")
    if lines:
        others = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
        raise ValueError(
            f"{lines[0]}{others}; no output was replaced, {failed / 'index.html'} has the details"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Disable analytics, and the warnings that GX and its imports raise about themselves."""
    # Analytics would send an event to a server for every validation.
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read when GX is imported
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _run(suite: Suite) -> Any:
    """GX's result for one suite."""
    import great_expectations as gx
    from great_expectations import expectations
    from great_expectations.data_context.types.base import ProgressBarsConfig

    # An ephemeral context lives in memory. Any other one writes a project folder, in which GX keeps
    # results of earlier runs.
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    # GX has no Arrow source. pandas costs one copy of the table, which has no image columns.
    asset = context.data_sources.add_pandas("tables").add_dataframe_asset(suite.name)
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch(
        {"dataframe": suite.table.to_pandas()}
    )
    chosen = [getattr(expectations, e.kind)(**e.arguments) for e in suite.expectations]
    detail = {
        # SUMMARY stops at SHOWN failing rows; COMPLETE would list all of 120,000.
        "result_format": "SUMMARY",
        "partial_unexpected_count": SHOWN,
        "unexpected_index_column_names": suite.keys,
    }
    return batch.validate(
        gx.ExpectationSuite(suite.name, expectations=chosen), result_format=detail
    )


def _page(suite: Suite, result: Any) -> str:
    """The HTML page of one suite."""
    from great_expectations.render.renderer import ValidationResultsPageRenderer
    from great_expectations.render.view import DefaultJinjaPageView

    # In place, and before rendering: the renderer puts values of the table into HTML as they are.
    for one in result.results:
        one.result = _escaped(one.result)
    document = ValidationResultsPageRenderer().render(result)
    # Keep only the statistics of the overview: the rest is the time and a link to a missing page.
    overview = document.sections[0]
    overview.content_blocks = overview.content_blocks[1:2]
    document.page_title = f"{suite.where}: {suite.name}"
    # The first loader wins, so our frame replaces GX's and its other templates stay.
    view = DefaultJinjaPageView()
    assert view.env.loader is not None
    view.env.loader = ChoiceLoader([DictLoader(TEMPLATES), view.env.loader])
    return (
        "\n".join(line.strip() for line in view.render(document).splitlines() if line.strip())
        + "\n"
    )


def _escaped(value: Any) -> Any:
    """HTML-escape the values of the table: GX does not escape the values it puts into cells."""
    if isinstance(value, str):
        return html.escape(value)
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    return [_escaped(item) for item in value] if isinstance(value, list | tuple) else value


def _back(report: str) -> str:
    return f'<body><p><a href="{html.escape(report)}">GDPO-SR report</a></p>'


def _index(suites: Sequence[Suite], results: Sequence[Any]) -> str:
    """The page that links to all suites."""
    rows = []
    for suite, result in zip(suites, results, strict=True):
        state = "met" if result.success else '<b class="text-danger">not met</b>'
        met = sum(one.success for one in result.results)
        cells = [
            f'<a href="{suite.name}.html">{suite.name}</a>',
            html.escape(suite.where),
            f"{suite.table.num_rows:,}",
        ]
        rows.append(
            "".join(
                f"<td>{cell}</td>"
                for cell in [*cells, f"{met} of {len(result.results)} expectations {state}"]
            )
        )
    head = "".join(f"<th>{name}</th>" for name in ("suite", "table", "rows", "result"))
    table = f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"
    return f"{HEAD.replace('%s', 'Data Docs')}<body><h1>Data Docs</h1>{table}</body></html>\n"


def _failures(suite: Suite, result: Any) -> list[str]:
    """One line per failed expectation, with a few of its rows."""
    return [
        f"{suite.where}: {_failure(one, suite.keys)}" for one in result.results if not one.success
    ]


def _failure(failed: Any, keys: list[str]) -> str:
    config, result = failed.expectation_config, failed.result
    arguments = {
        key: value
        for key, value in config.kwargs.items()
        if key != "batch_id" and value is not None
    }
    text = f"{config.type}({', '.join(f'{key}={value}' for key, value in arguments.items())})"
    if config.description:
        text += f", {config.description},"
    # Without a result the expectation raised, for example on a column of another type.
    if not result:
        reasons = {
            info["exception_message"]
            for info in failed.exception_info.values()
            if isinstance(info, dict)
        }
        return f"{text} cannot be evaluated: {'; '.join(sorted(reasons)) or failed.exception_info}"
    # An expectation on the whole table, such as its number of rows, has no failing rows to show.
    if "unexpected_count" not in result:
        return f"{text} fails, observed is {result.get('observed_value')}"
    shown = dict.fromkeys([*keys, config.kwargs["column"]])
    rows = [
        ", ".join(f"{name} {row[name]}" for name in shown)
        for row in result["partial_unexpected_index_list"]
    ]
    samples = "; ".join(f"[{row}]" for row in rows[:SAMPLES])
    return (
        f"{text} fails in {result['unexpected_count']} of {result['element_count']} rows, such "
        f"as {samples}"
    )
