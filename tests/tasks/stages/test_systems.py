"""Both systems side by side: one table and one gallery, from two evaluations of the same pairs."""

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gdpo.hooks import Hooks
from tasks.report import summary, systems
from tasks.stages import systems as stage
from tests import tiny
from tests.tasks import fabricated

PLACES = {"gdpo": "reports/evaluate/sample", "vlcot": "reports/vlcot/evaluate/sample"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Made-up evaluations of both systems."""
    fabricated._evaluation(tmp_path / PLACES["gdpo"], fabricated.NAMES, 3, None, {})
    fabricated.second_system(tmp_path)
    return tmp_path


def replace_scores(file: Path, values: dict[str, list[tuple[str, str, list[float]]]]) -> None:
    """Other PSNR: {model: (image, photograph, a value per noise)}; the metadata stays."""
    metadata = pq.read_table(file).schema.metadata
    rows = [
        {"image": image, "photograph": of, "model": model, "noise": n, "psnr_y": v, "niqe": 1.0}
        for model, images in values.items()
        for image, of, by_noise in images
        for n, v in enumerate(by_noise)
    ]
    pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata(metadata), file)


def constant(value: float) -> list[tuple[str, str, list[float]]]:
    return [("a1", "a", [value]), ("a2", "a", [value]), ("b1", "b", [value])]


def test_differences_are_paired_by_photograph_with_tiles_and_noises_averaged_first(
    root: Path,
) -> None:
    replace_scores(
        root / PLACES["gdpo"] / "per_image.parquet",
        {name: constant(20.0) for name in ("bicubic", "naosd", "gdpo", "control")},
    )
    # Photograph a: tiles of 21 and (22 + 24) / 2, so 22; photograph b: 20 + 4.
    mine = [("a1", "a", [21.0, 21.0]), ("a2", "a", [22.0, 24.0]), ("b1", "b", [24.0, 24.0])]
    others = {name: constant(20.0) for name in ("bicubic", "coldstart", "control")}
    replace_scores(root / PLACES["vlcot"] / "per_image.parquet", {**others, "vlcot": mine})
    joint = systems.joint(root, "sample")
    assert (joint["photographs"], joint["images"]) == (2, 3)
    (row,) = (
        found
        for found in joint["differences"]
        if (found["a"], found["b"], found["metric"]) == ("vlcot/vlcot", "gdpo/gdpo", "psnr_y")
    )
    # Differences 2 and 4: mean 3, standard error 1, t(1 degree of freedom) 12.706.
    assert row["mean"] == pytest.approx(3) and row["standard_error"] == pytest.approx(1)
    assert (row["low"], row["high"]) == (
        pytest.approx(3 - 12.706, abs=1e-3),
        pytest.approx(3 + 12.706, abs=1e-3),
    )
    assert joint["models"]["vlcot/vlcot"]["psnr_y"]["mean"] == pytest.approx(23)


def test_one_table_has_the_models_of_both_and_no_reward(root: Path) -> None:
    joint = systems.joint(root, "sample")
    table = systems.scores_table(joint)
    labels = [row[0].text for row in table.rows]
    first, second = ["NAOSD", "GDPO-SR", "Control"], ["cold start", "", "control"]
    assert labels == ["Bicubic", *first, *(f"RealSR-R1 {name}".strip() for name in second)]
    assert table.header == ["Model", "PSNR-Y ↑", "NIQE (own fit) ↓", "FID ↓"]
    assert "3 noises of GDPO-SR’s models and 2 samples of RealSR-R1’s" in table.caption
    paired = systems.paired_table(joint)
    assert {row[0].text for row in paired.rows} == {
        "RealSR-R1 − GDPO-SR",
        "RealSR-R1 cold start − NAOSD",
        "GDPO-SR − Bicubic",
        "RealSR-R1 − Bicubic",
    }
    assert all(len(row) == len(paired.header) for row in paired.rows)
    assert paired.header == ["Comparison", "Metric", "Difference", "95 % interval", "p", "Verdict"]


def test_the_page_has_a_row_of_pictures_for_every_photograph(
    root: Path, sample_config: Any
) -> None:
    stage.run(sample_config, root, Hooks())
    text = (root / "reports/systems/index.html").read_text(encoding="utf-8")
    sources = re.findall(r'<img src="([^"]+)"', text)
    views = 7  # LR, bicubic, NAOSD, GDPO-SR, cold start, RealSR-R1, HR
    assert len(sources) == len(set(sources)) == views * len(fabricated.NAMES)
    assert all((root / "reports/systems" / unquote(source)).is_file() for source in sources)
    assert text.count("<figcaption>RealSR-R1</figcaption>") == len(fabricated.NAMES)
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)" in text
    before = tiny.tree(root / "reports/systems")
    stage.run(sample_config, root, Hooks())
    assert tiny.tree(root / "reports/systems") == before


def test_a_photograph_without_pictures_in_one_evaluation_has_no_row(
    root: Path, tmp_path: Path
) -> None:
    (root / PLACES["vlcot"] / "images/001-image/vlcot.png").unlink()
    rows = systems.rows(root, systems.joint(root, "sample"), tmp_path / "assets")
    assert [row["name"] for row in rows] == [
        name for i, name in enumerate(fabricated.NAMES) if i != 1
    ]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data", "ab", "sample: GDPO-SR and RealSR-R1 have other data"),
        ("color_fix", "none", "sample: GDPO-SR and RealSR-R1 have other color_fix"),
        ("metrics", {"niqe": "2"}, "sample: niqe is of version None and 2"),
    ],
)
def test_evaluations_that_are_not_alike_share_no_table(
    root: Path, sample_config: Any, key: str, value: object, message: str
) -> None:
    file = root / PLACES["vlcot"] / "per_image.parquet"
    table = pq.read_table(file)
    metadata = {**table.schema.metadata, key.encode(): json.dumps(value).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), file)
    with pytest.raises(ValueError, match=message):
        stage.run(sample_config, root, Hooks())
    assert not (root / "reports/systems").exists()
    told = summary.text(summary.read(root, "sample"), root)
    assert f"cannot stand in one table: {message}" in told


def test_other_photographs_share_no_table(root: Path) -> None:
    file = root / PLACES["vlcot"] / "per_image.parquet"
    table = pq.read_table(file)
    pq.write_table(table.slice(0, 1), file)
    with pytest.raises(ValueError, match="have other photographs"):
        systems.joint(root, "sample")


def test_the_summary_shows_both_where_both_are_there(root: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    fabricated._evaluation(alone / PLACES["gdpo"], fabricated.NAMES, 3, None, {})
    both = summary.text(summary.read(root, "sample"), root)
    one = summary.text(summary.read(alone, "sample"), alone)
    assert "RealSR-R1" not in one
    assert both.startswith(one.rpartition("\n\n")[0])
    assert "RealSR-R1 − GDPO-SR" in both and "Both, with pictures" not in both
    with pytest.raises(ValueError, match=r"reports/vlcot/evaluate/sample/summary.json: no such"):
        systems.joint(alone, "sample")
