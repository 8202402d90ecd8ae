"""The report: complete, self-contained, the same bytes every time, and safe from the names of
photographs.
"""

import json
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from gdpo.config import Config
from gdpo.hooks import Hooks
from tasks.report import sections
from tasks.report.gallery import evenly
from tasks.stages import report
from tests.tasks import fabricated

PAGES = (
    "index",
    "pages/benchmark-sample",
    "pages/tables",
    "pages/training",
    "pages/evidence",
    "pages/data",
    "pages/provenance",
)
MOST_BYTES = 15_000_000


class Page(HTMLParser):
    """What a browser would see: addresses, element ids, texts, and what a reader without eyes
    misses.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.images_without_alt = 0
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.addresses += [value for key in ("src", "href") if (value := values.get(key))]
        self.ids += [value for key, value in attrs if key == "id" and value]
        self.images_without_alt += tag == "img" and not values.get("alt")
        self.tags.append(tag)
        self.handlers += [key for key, _ in attrs if key.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    from tasks.params import load

    folder = tmp_path_factory.mktemp("report")
    fabricated.outputs(folder)
    fabricated.promote(folder, gain=1.0)
    report.run(load(root / "tests/params.yaml"), folder, Hooks())
    return folder


def _text(built: Path, page: str) -> str:
    return (built / f"reports/{page}.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PAGES)
def test_every_address_is_relative_and_exists(built: Path, name: str) -> None:
    page, file = Page(_text(built, name)), built / f"reports/{name}.html"
    assert len(page.addresses) >= 8
    for address in page.addresses:
        path, _, anchor = address.partition("#")
        if address == "data:,":
            continue
        target = file.parent / unquote(path) if path else file
        assert not path.startswith("/") and target.resolve().is_relative_to(
            (built / "reports").resolve()
        ), address
        assert target.is_file(), address
        assert not anchor or anchor in Page(target.read_text(encoding="utf-8")).ids, address
    assert "http" not in _text(built, name)
    assert page.images_without_alt == 0
    assert len(page.ids) == len(set(page.ids))


@pytest.mark.parametrize("name", PAGES)
def test_names_come_out_as_text(built: Path, name: str) -> None:
    page = Page(_text(built, name))
    assert page.handlers == []
    assert page.tags.count("script") == 1 + (name in PAGES[:2])  # report.js, and the viewer's data
    if name in ("pages/benchmark-sample", "pages/data"):
        for hostile in fabricated.NAMES:
            assert any(hostile in part for part in page.texts), hostile


def test_the_whole_site_is_there(built: Path) -> None:
    index = "".join(Page(_text(built, "index")).texts)
    assert "GDPO-SR is better than NAOSD: reward +" in index and "Since the last run:" in index
    assert "PSNR-Y better, +" in index and "95 % interval" in index
    data, provenance = (Page(_text(built, f"pages/{name}")) for name in ("data", "provenance"))
    assert [a for a in data.addresses if "data-docs" in a] == [
        "../data-docs/degrade/00/index.html",
        "../data-docs/select/index.html",
    ]
    assert "too flat" in data.texts and "0123abcd" in provenance.texts
    assert "21.00 ± 1.41" in Page(_text(built, "pages/benchmark-sample")).texts
    assert "Table 8" in _text(built, "pages/tables")
    training = _text(built, "pages/training")
    for title in ("Loss", "Groups ranked right", "Reward by rank", "PSNR-Y by rank", "NIQE"):
        assert title in training, title


def test_models_of_other_names_are_shown_by_what_their_cards_state(
    tmp_path: Path, sample_config: Config
) -> None:
    name_of = {"naosd": "base", "gdpo": "mine", "control": "shuffled-1"}
    fabricated.outputs(tmp_path, name_of=name_of)
    report.run(sample_config, tmp_path, Hooks())
    usual = tmp_path / "usual"
    fabricated.outputs(usual)
    report.run(sample_config, usual, Hooks())
    for page in ("index", "pages/benchmark-sample"):
        texts = [Page(_text(root, page)).texts for root in (tmp_path, usual)]
        assert [text for text in texts[0] if not text.startswith("{")] == [
            text for text in texts[1] if not text.startswith("{")
        ]
        assert "GDPO-SR is better than NAOSD: reward +" in "".join(texts[0])
    viewer = next(text for text in texts[0] if text.startswith("{"))
    assert (json.loads(viewer)["left"], json.loads(viewer)["right"]) == ("bicubic", "mine")
    forest = "assets/figures/sample/differences.svg"
    assert (tmp_path / "reports" / forest).read_bytes() == (usual / "reports" / forest).read_bytes()


def test_the_first_run_says_that_it_is_one(tmp_path: Path, sample_config: Config) -> None:
    fabricated.outputs(tmp_path)
    report.run(sample_config, tmp_path, Hooks())
    assert "this is the first run of this benchmark" in _text(tmp_path, "index")


def test_a_damaged_promoted_run_is_named(tmp_path: Path, sample_config: Config) -> None:
    fabricated.outputs(tmp_path)
    fabricated.promote(tmp_path)
    (tmp_path / "promoted/sample/per_image.parquet").write_text("no parquet")
    with pytest.raises(
        ValueError, match=r"promoted/sample/per_image.parquet: not a file of the evaluate stage"
    ):
        report.run(sample_config, tmp_path, Hooks())


def test_nothing_is_written_outside_the_report(built: Path) -> None:
    written = {
        path.relative_to(built / "reports").parts[0]
        for path in (built / "reports").rglob("*")
        if path.is_file()
    }
    inputs = {"evaluate", "pretrain", "finetune", "degrade", "photographs", "data-docs"}
    assert written == {"index.html", "pages", "assets"} | inputs
    assert not [path for path in (built / "reports").iterdir() if path.name.startswith(".")]


def test_the_figures_follow_the_readers_colour_scheme_and_load_nothing(built: Path) -> None:
    files = sorted((built / "reports/assets/figures").rglob("*.svg"))
    # Differences, pretrain, finetune, rank and spread of reward and metrics.
    assert len(files) == 1 + 2 + 2 + 2 * 3
    for file in files:
        svg = file.read_text()
        assert "prefers-color-scheme:dark" in svg and "var(--ink)" in svg
        assert "#010203" not in svg and "<script" not in svg


def test_the_same_inputs_give_the_same_bytes(
    built: Path, tmp_path: Path, sample_config: Config
) -> None:
    fabricated.outputs(tmp_path)
    fabricated.promote(tmp_path, gain=1.0)
    report.run(sample_config, tmp_path, Hooks())
    files = [file for file in sorted((built / "reports").rglob("*")) if file.is_file()]
    assert len(files) > 60
    for file in files:
        assert (tmp_path / file.relative_to(built)).read_bytes() == file.read_bytes(), file


def test_the_report_of_the_sample_profile_stays_small(
    tmp_path: Path, sample_config: Config
) -> None:
    """Even if nothing in its pictures could be compressed: as many and as large as the sample
    profile's.
    """
    side, count = sample_config.degrade.evaluation_crop, 14
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    views = [*fabricated.VIEWS, "candidates"]
    fabricated.outputs(
        tmp_path,
        [f"{i}.png" for i in range(count)],
        sample_config.evaluate.noises,
        {f"{i}/{view}": noise for i in range(count) for view in views},
    )
    report.run(sample_config, tmp_path, Hooks())
    made = [
        tmp_path / "reports/index.html",
        *(p for n in ("pages", "assets") for p in (tmp_path / "reports" / n).rglob("*")),
    ]
    assert 5_000_000 < sum(path.stat().st_size for path in made if path.is_file()) < MOST_BYTES


def test_a_missing_input_is_named_and_nothing_is_left(
    tmp_path: Path, sample_config: Config
) -> None:
    fabricated.outputs(tmp_path)
    (tmp_path / "reports/finetune/control/metrics.jsonl").unlink()
    with pytest.raises(ValueError, match=r"reports/finetune/control/metrics.jsonl: missing"):
        report.run(sample_config, tmp_path, Hooks())
    assert {path.name for path in (tmp_path / "reports").iterdir()}.isdisjoint(
        {"assets", "pages", "index.html"}
    )


def test_nested_values_become_readable_lines() -> None:
    content = {
        "a": {"b": 0, "c": 0.12345},
        "note": "",
        "list": [],
        "rows": [{}, {}],
        "row": [{}],
        "many": list(range(13)),
    }
    assert sections.flat(json.loads(json.dumps(content))) == [
        ("a / b", "0"),
        ("a / c", "0.1235"),
        ("note", "none"),
        ("list", "none"),
        ("rows", "2 entries"),
        ("row", "1 entry"),
        ("many", "13 entries"),
    ]


def test_the_outermost_level_is_never_shortened() -> None:
    assert len(sections.flat({str(i): i for i in range(40)})) == 40


def test_reasons_are_sorted_and_shared() -> None:
    assert sections.reasons({"b": 1, "a": 1, "c": 2}) == [
        ("c", 2, 50.0),
        ("a", 1, 25.0),
        ("b", 1, 25.0),
    ]
    assert sections.reasons({}) == []


def test_pictures_are_spread_over_a_long_list() -> None:
    assert evenly(list(range(100)), 4) == [0, 25, 50, 75]
    assert evenly([1, 2], 4) == [1, 2]
