"""What a published run consists of: the outputs that are asked for, whole, and nothing beside or
behind them.
"""

import json
from pathlib import Path

import pytest

from tasks.publish import contents
from tests.tasks.published import OUTS, SUMMARY


@pytest.mark.parametrize(
    "out", ["params.yaml", "reports", "reports/../params.yaml", "models/gdpo2", "/etc/hosts", ""]
)
def test_no_other_path_is_part_of_a_run(finished: Path, out: str) -> None:
    with pytest.raises(ValueError, match="no output that a run consists of"):
        list(contents.files(finished, [*OUTS, out]))


def test_links_and_dot_files_stay_out(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "outside/sub").mkdir(parents=True)
    (tmp_path / "outside/secret").write_text("not shown")
    (tmp_path / "outside/sub/secret").write_text("not shown")
    whole = dict(contents.files(finished, OUTS))
    reports = finished / "reports"
    (reports / "evaluate/sample/.hidden").write_text("not shown")
    (reports / "evaluate/sample/file").symlink_to(tmp_path / "outside/secret")
    (reports / "evaluate/sample/folder").symlink_to(tmp_path / "outside")
    (reports / "linked").symlink_to(tmp_path / "outside")
    (reports / "page.html").symlink_to(tmp_path / "outside/secret")
    linked = ["reports/linked", "reports/linked/sub", "reports/page.html"]
    assert dict(contents.files(finished, [*OUTS, *linked])) == whole
    assert set(whole) == {
        "index.html",
        "evaluate/sample/summary.json",
        "evaluate/sample/per_image.parquet",
        "evaluate/sample/images/000-x/gdpo.png",
        "model/adapters.safetensors",
    }


def test_the_thumbnail_without_a_model_gdpo_is_of_the_last_one(finished: Path) -> None:
    place = finished / "reports/evaluate/sample"
    models = dict.fromkeys(("bicubic", "naosd", "grpo"), SUMMARY["models"]["gdpo"])
    (place / "summary.json").write_text(json.dumps({**SUMMARY, "models": models}))
    (place / "images/000-x/gdpo.png").rename(place / "images/000-x/grpo.png")
    assert contents.thumbnail(finished)[8:12] == b"WEBP"
