"""Great Expectations as used here: what fails is said in one line, and the pages are whole without
a network.
"""

import math
import os
import re
import socket
from pathlib import Path

import pyarrow as pa
import pytest

from tasks.checks.expectations import Suite, expect, expect_rows, validate
from tests import tiny

EVIL = "<script>alert(1)</script>"
TABLE = pa.table(
    {
        "id": ["a", "b", "b"],
        "source": [EVIL, "y", None],
        "score": [1.0, 2.0, math.nan],
        "rank": pa.array([1, None, 2], pa.int32()),
        "is_new": [True, False, True],
    }
)
BACK = "../pages/data.html"


def _suite(*expectations, name: str = "rows") -> Suite:
    return Suite(name, "data/some.parquet", TABLE, ["id", "source"], list(expectations))


def _message(tmp_path: Path, *expectations) -> str:
    with pytest.raises(ValueError) as caught:
        validate([_suite(*expectations)], tmp_path / "docs", tmp_path / "failed", BACK)
    return str(caught.value)


def test_what_holds_gets_a_page_and_the_same_one_every_time(tmp_path, monkeypatch):
    """Two sites from equal tables are equal byte for byte; nobody is told about it."""

    def refuse(*_: object) -> None:
        raise AssertionError("a connection to somewhere")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    suites = [
        _suite(
            expect_rows(1),
            expect("values_to_be_between", "rank", min_value=0, max_value=5),
            name="first",
        ),
        _suite(
            expect("values_to_be_in_set", "id", "The id must be known.", value_set=["a", "b"]),
            name="second",
        ),
    ]
    validate(suites, tmp_path / "docs", tmp_path / "failed", BACK)
    validate(suites, tmp_path / "again/docs", tmp_path / "failed", BACK)
    pages = tiny.tree(tmp_path / "docs")
    assert set(pages) == {"docs/first.html", "docs/index.html", "docs/second.html"}
    assert pages == tiny.tree(tmp_path / "again/docs")
    assert all(f'<a href="{BACK}">'.encode() in page for page in pages.values())
    assert not (tmp_path / "failed").exists() and os.environ["GX_ANALYTICS_ENABLED"] == "false"
    assert (
        b"The id must be known." in pages["docs/second.html"]
        and b"first.html" in pages["docs/index.html"]
    )


def test_a_page_needs_no_network_and_tells_nothing_of_the_machine(tmp_path):
    """No script, no address, no path, no time; small; and a style for every state that an icon font
    showed.
    """
    _message(
        tmp_path,
        expect("values_to_be_unique", "id"),
        expect("values_to_not_be_null", "no_column"),
        expect_rows(1),
    )
    for page in (tmp_path / "failed").iterdir():
        text = page.read_text()
        assert not re.search(
            r"<script|<link|<img|https?:|localStorage|newsletter|@import|url\(", text
        ), page
        assert (
            str(tmp_path) not in text
            and str(Path(__file__).parents[3]) not in text
            and "site-packages" not in text
        )
        assert not re.search(r"\b20\d\d-?\d\d-?\d\d", text)
        assert page.stat().st_size < 50_000
    text = (tmp_path / "failed/rows.html").read_text()
    for icon in re.findall(r'class="fas (fa-[a-z-]+)', text):
        assert f".{icon}::before" in text


@pytest.mark.parametrize(
    ("expectation", "says"),
    [
        (
            expect("values_to_be_unique", "id"),
            r"expect_column_values_to_be_unique\(column=id\) fails in 2 of 3 rows, such as \[id "
            r"b, source y\]; \[id b, ",
        ),
        (expect("values_to_match_regex", "id", regex="^a$"), r"regex=\^a\$\) fails in 2 of 3 rows"),
        (
            expect("values_to_be_in_set", "is_new", "No patch is in both.", value_set=[True]),
            r"No patch is in both\..* 1 of 3",
        ),
        (
            expect("values_to_not_be_null", "source"),
            r"column=source\) fails in 1 of 3 rows, such as \[id b, source nan\]",
        ),
        (
            expect("values_to_not_be_null", "score"),
            r"not_be_null\(column=score\) fails in 1 of 3 rows",
        ),
        (expect_rows(10, 20), r"min_value=10, max_value=20\) fails, observed is 3"),
        (
            expect("values_to_be_unique", "other"),
            r'cannot be evaluated: .*column "other".* does not exist',
        ),
        (expect("values_to_be_null", "source"), re.escape(f"such as [id a, source {EVIL}]")),
    ],
)
def test_what_fails_is_said_with_the_table_and_some_rows(tmp_path, expectation, says):
    """In one line, as the command line prints it; the Data Docs there were are not touched."""
    validate([_suite(expect_rows(1))], tmp_path / "docs", tmp_path / "failed", BACK)
    before = tiny.tree(tmp_path / "docs")
    message = _message(tmp_path, expect_rows(1), expectation)
    assert re.search(says, message), message
    assert message.startswith("data/some.parquet: ") and "\n" not in message
    assert message.endswith(
        f"no output was replaced, {tmp_path / 'failed/index.html'} has the details"
    )
    assert tiny.tree(tmp_path / "docs") == before


def test_values_from_outside_are_escaped_on_the_page(tmp_path):
    """GX puts values of a table into cells as they are."""
    _message(tmp_path, expect("values_to_be_in_set", "source", value_set=["y"]))
    text = (tmp_path / "failed/rows.html").read_text()
    assert EVIL not in text and "&lt;script&gt;" in text


def test_all_failures_are_counted(tmp_path):
    """The message has the first."""
    message = _message(
        tmp_path,
        expect("values_to_be_unique", "id"),
        expect_rows(9),
        expect("values_to_be_null", "id"),
    )
    assert "unique" in message and "(and 2 more)" in message


@pytest.mark.parametrize("what", ["values_to_be_unique", "values_to_not_be_null"])
def test_an_empty_table_meets_what_is_asked_of_rows(tmp_path, what):
    """A part without photographs has no patches."""
    suite = Suite(
        "rows", "data/none.parquet", TABLE.slice(0, 0), ["id"], [expect_rows(0), expect(what, "id")]
    )
    validate([suite], tmp_path / "docs", tmp_path / "failed", BACK)
    assert (tmp_path / "docs/rows.html").is_file()
