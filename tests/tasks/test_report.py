"""The report: complete, self-contained, the same bytes every time, and safe from the names of photographs."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gdpo.config import Config
from gdpo.training import Hooks
from tasks import report, sections
from tests.tasks import fabricated


class Page(HTMLParser):
    """What a browser would see: addresses, element ids, texts, and the data-viewer script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.images_without_alt = 0
        self.scripts = 0
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.addresses += [value for key in ("src", "href") if (value := values.get(key))]
        self.ids += [value for key, value in attrs if key == "id" and value]
        self.images_without_alt += tag == "img" and not values.get("alt")
        self.scripts += tag == "script"

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    from tasks.params import load

    folder = tmp_path_factory.mktemp("report")
    fabricated.outputs(folder)
    report.run(load(root / "params.yaml"), folder, Hooks())
    return folder


def _page(built: Path) -> str:
    return (built / "reports/index.html").read_text()


def test_every_address_is_relative_and_exists(built: Path) -> None:
    page = Page(_page(built))
    assert len(page.addresses) > 30
    for address in page.addresses:
        if address.startswith("#"):
            assert address[1:] in page.ids
        elif address != "data:,":
            assert (built / "reports" / address).is_file(), address
    assert "http" not in re.sub(r"<script.*?</script>", "", _page(built), flags=re.S)
    assert page.images_without_alt == 0
    assert len(page.ids) == len(set(page.ids))


def test_names_come_out_as_text(built: Path) -> None:
    text = _page(built)
    assert "alert(1)</script>" not in text and "<script>alert" not in text
    page = Page(text)
    assert page.scripts == 2
    for name in fabricated.NAMES:
        assert any(name in part for part in page.texts), name


def test_nothing_is_written_outside_the_report(built: Path) -> None:
    written = {path.relative_to(built).parts[:2] for path in built.rglob("*") if path.is_file()}
    assert {parts for parts in written if parts[0] == "reports"} == {
        ("reports", name) for name in ("index.html", "assets", "evaluate", "pretrain", "finetune", "degrade")
    }
    assert not [path for path in (built / "reports").iterdir() if path.name.startswith(".")]


def test_the_figures_follow_the_readers_colour_scheme_and_load_nothing(built: Path) -> None:
    files = sorted((built / "reports/assets/figures").glob("*.svg"))
    assert len(files) == 1 + 2 + 2 + 3  # differences, pretrain, finetune, rollouts
    for file in files:
        svg = file.read_text()
        assert "prefers-color-scheme:dark" in svg and "var(--ink)" in svg
        assert "#010203" not in svg and "<script" not in svg


def test_the_same_inputs_give_the_same_bytes(built: Path, tmp_path: Path, sample_config: Config) -> None:
    fabricated.outputs(tmp_path)
    report.run(sample_config, tmp_path, Hooks())
    for file in sorted((built / "reports").rglob("*")):
        if file.is_file():
            assert (tmp_path / file.relative_to(built)).read_bytes() == file.read_bytes(), file


def test_summary_text_has_the_table_and_the_path(built: Path) -> None:
    text = report.summary_text(built)
    assert "GDPO-SR beats NAOSD on the reward" in text
    assert str(built / "reports/index.html") in text
    assert re.search(r"^NAOSD +\d+\.\d+ ± ", text, flags=re.M)


def test_a_missing_input_is_named_and_nothing_is_left(tmp_path: Path, sample_config: Config) -> None:
    fabricated.outputs(tmp_path)
    (tmp_path / "reports/finetune/control/metrics.jsonl").unlink()
    with pytest.raises(ValueError, match=r"reports/finetune/control/metrics.jsonl: missing"):
        report.run(sample_config, tmp_path, Hooks())
    assert not (tmp_path / "reports/assets").exists() and not (tmp_path / "reports/index.html").exists()


def test_counts_are_readable_lines(tmp_path: Path) -> None:
    rows = list(range(13))
    content = {"a": {"b": 0, "c": 0.12345}, "note": "", "list": [], "rows": [{}, {}], "many": rows}
    (tmp_path / "r.json").write_text(json.dumps(content))
    expected = {
        "a / b": "0",
        "a / c": "0.1235",
        "note": "none",
        "list": "none",
        "rows": "2 entries",
        "many": "13 entries",
    }
    assert dict(sections.counts(tmp_path, "r.json")) == expected
