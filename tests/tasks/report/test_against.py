"""The nightly comparison with the promoted run: exit codes, what is said first, and what is
refused.
"""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gdpo.config import Config
from tasks import __main__ as cli
from tasks.report import against
from tests.tasks import fabricated

METRICS = {"psnr_y": "gdpo", "niqe": "gdpo; niqe.mat sha256 1"}
NOW = "reports/evaluate/sample/per_image.parquet"
LATEST = "promoted/sample/per_image.parquet"


def write(
    path: Path, shift: dict[str, float], noises: int = 4, images: int = 12, **origin: Any
) -> None:
    """A run: bicubic is always the same, gdpo is shifted by some of a metric's spread."""
    rng = np.random.default_rng(0)
    base = {"psnr_y": rng.normal(25, 2, images), "niqe": rng.normal(7, 1, images)}
    noise = {metric: rng.normal(0, 0.05, (images, 64)) for metric in base}
    quirk = {
        metric: np.random.default_rng(len(str(shift))).normal(0, 0.01, images) for metric in base
    }
    rows = [
        {
            "image": f"photo-{i}",
            "model": model,
            "noise": n,
            **{
                m: base[m][i]
                + (noise[m][i, n] + shift.get(m, 0.0) + quirk[m][i] if model == "gdpo" else 0)
                for m in base
            },
        }
        for model, count in (("bicubic", 1), ("gdpo", noises))
        for i in range(images)
        for n in range(count)
    ]
    known = {
        "benchmark": "sample",
        "seed": 0,
        "noises": noises,
        "color_fix": "wavelet",
        "precision": "bf16",
        "code": "abc",
        "metrics": METRICS,
        "weights": {"gdpo": "w"},
        "models": fabricated.MODELS.to_origin(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {key: json.dumps(value) for key, value in {**known, **origin}.items()}
    pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata(metadata), path)


def check(config: Config, root: Path, run: str = "latest") -> tuple[int, dict[str, Any]]:
    code = against.check(config, root, "sample", run)
    return code, json.loads((root / "reports/against/sample.json").read_text())


def test_a_regression_ends_in_4_and_comes_first(
    tmp_path: Path, sample_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / NOW, {"psnr_y": 0.2, "niqe": 0.3})
    write(tmp_path / LATEST, {})
    code, found = check(sample_config, tmp_path)
    assert code == 4 and found["regressed"] == ["niqe"]
    assert found["metrics"][0]["metric"] == "niqe" and found["against"]["code"] == "abc"
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("regressed: NIQE (own fit) +0.29") and "95 % interval" in lines[0]
    assert (
        lines[1] == f"GDPO-SR on sample against {LATEST}: 1 of 2 metrics regressed, 12 photographs"
    )


def test_the_worst_regression_is_named_first(tmp_path: Path, sample_config: Config) -> None:
    write(tmp_path / NOW, {"psnr_y": -0.9, "niqe": 0.1})
    write(tmp_path / LATEST, {})
    assert check(sample_config, tmp_path)[1]["regressed"] == ["psnr_y", "niqe"]


@pytest.mark.parametrize("shift", [{}, {"psnr_y": 0.3, "niqe": -0.2}], ids=["the same", "better"])
def test_no_regression_ends_in_0(
    tmp_path: Path,
    sample_config: Config,
    shift: dict[str, float],
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path / NOW, shift)
    write(tmp_path / LATEST, {})
    code, found = check(sample_config, tmp_path)
    assert code == 0 and found["regressed"] == []
    assert "no regression, 12 photographs" in capsys.readouterr().err.splitlines()[0]


def test_a_change_within_the_interval_is_no_regression(
    tmp_path: Path, sample_config: Config
) -> None:
    write(tmp_path / NOW, {"psnr_y": -0.001})
    write(tmp_path / LATEST, {})
    code, found = check(sample_config, tmp_path)
    assert code == 0 and found["metrics"][0]["low"] < 0 < found["metrics"][0]["high"]


def test_only_noises_that_both_runs_have_are_compared(
    tmp_path: Path, sample_config: Config
) -> None:
    write(tmp_path / NOW, {}, noises=2)
    write(tmp_path / LATEST, {}, noises=6)
    code, found = check(sample_config, tmp_path)
    assert code == 0 and all(row["mean"] == 0 for row in found["metrics"])


def test_another_run_is_a_file_or_its_folder(tmp_path: Path, sample_config: Config) -> None:
    write(tmp_path / NOW, {})
    write(tmp_path / "old/per_image.parquet", {})
    assert (
        check(sample_config, tmp_path, "old")[0]
        == check(sample_config, tmp_path, "old/per_image.parquet")[0]
        == 0
    )
    with pytest.raises(ValueError, match=r"nowhere: no per_image.parquet there"):
        check(sample_config, tmp_path, "nowhere")


def test_without_a_promoted_run_one_line_says_so(tmp_path: Path, sample_config: Config) -> None:
    write(tmp_path / NOW, {})
    with pytest.raises(
        ValueError,
        match=r"promoted/sample/per_image.parquet: no promoted run of this benchmark yet",
    ):
        check(sample_config, tmp_path)
    assert not (tmp_path / "reports/against").exists()


@pytest.mark.parametrize(
    ("origin", "message"),
    [
        ({"benchmark": "realsr"}, "benchmark is realsr, in this run sample"),
        ({"color_fix": "adain"}, "color_fix is adain"),
        (
            {"metrics": {**METRICS, "niqe": "other"}},
            "niqe is of version other, in this run gdpo; niqe.mat sha256 1",
        ),
        ({"images": 11}, "of other images, models or metrics"),
    ],
)
def test_runs_that_do_not_compare_are_refused(
    tmp_path: Path, sample_config: Config, origin: dict[str, Any], message: str
) -> None:
    write(tmp_path / NOW, {})
    write(tmp_path / LATEST, {}, **origin)
    with pytest.raises(ValueError, match=message) as error:
        check(sample_config, tmp_path)
    assert "\n" not in str(error.value) and "per_image.parquet: " in str(error.value)


def test_a_damaged_file_is_named(tmp_path: Path, sample_config: Config) -> None:
    write(tmp_path / NOW, {})
    (tmp_path / "promoted/sample").mkdir(parents=True)
    (tmp_path / LATEST).write_bytes(b"no parquet")
    with pytest.raises(
        ValueError, match=r"promoted/sample/per_image.parquet: not a file of the evaluate stage"
    ):
        check(sample_config, tmp_path)
    pq.write_table(pa.table({"x": [1]}), tmp_path / LATEST)
    with pytest.raises(ValueError, match="no column image, model or noise"):
        check(sample_config, tmp_path)


def test_the_command_evaluates_what_is_not_there_and_then_compares(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[Any, ...]] = []

    def run(config: Config, folder: Path, hooks: Any, *names: str, **options: bool) -> None:
        calls.append((*names, options))
        write(folder / NOW, {"psnr_y": -0.5})

    (tmp_path / "params.yaml").write_text((root / "tests/params.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    stage = ModuleType("tasks.stages.evaluate")
    monkeypatch.setattr(stage, "run", run, raising=False)
    monkeypatch.setitem(sys.modules, "tasks.stages.evaluate", stage)
    write(tmp_path / LATEST, {})
    assert cli.main(["evaluate", "--benchmark", "sample", "--against", "latest"]) == 4
    assert calls == [("sample", {"keep": True})]
    assert capsys.readouterr().err.startswith("regressed: PSNR-Y −0.49")
    assert cli.main(["evaluate", "--benchmark", "sample"]) == 0
    assert calls[1:] == [("sample", {})]
    assert cli.main(["evaluate", "--against", "elsewhere"]) == 1
    assert capsys.readouterr().err == "gdpo-sr: elsewhere: no per_image.parquet there (--against)\n"
    assert len(calls) == 2  # told before the work, not after it
