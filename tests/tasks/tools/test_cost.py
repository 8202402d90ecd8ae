"""The tool `cost`: its text, its JSON and its refusals, on a small model; the figures are tested in
tests/gdpo/model.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from gdpo.cost import architectures
from gdpo.cost.count import Component, Macs, Part
from tasks import __main__ as cli
from tasks.tools import cost as tool
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.write_base(tmp_path_factory.mktemp("model") / "base"))


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["cost", *arguments]) == 0
    return capsys.readouterr().out


def test_a_count_that_takes_seconds_says_so_first(
    folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = architectures.from_folder(Path(folder))

    def sd21() -> architectures.Networks:
        assert capsys.readouterr().err == (
            "sd2.1: counting the networks of full size, some seconds ...\n"
        )
        return small

    monkeypatch.setattr(architectures, "sd21", sd21)
    assert cli.main(["cost", "--size", "32"]) == 0


def test_json_holds_whole_numbers_that_add_up(
    folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = json.loads(run(capsys, "--model", folder, "--size", "32", "--json"))
    assert result["step"] == "infer"
    assert [row["name"] for row in result["components"]] == [
        "text encoder",
        "VAE encoder",
        "UNet",
        "VAE decoder",
    ]
    for key, value in result["total"].items():
        assert isinstance(value, int)
        assert value == sum(row[key] for row in result["components"]) > 0
    assert result["total"]["macs"] > result["total"]["macs_without_attention"]
    assert "published" not in result


def test_text_has_a_line_per_component(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(capsys, "--model", folder, "--size", "32").splitlines()
    assert lines[0] == f"{folder} at 32x32, inference"
    assert [line.split("  ")[0] for line in lines[2:]] == [
        "text encoder",
        "VAE encoder",
        "UNet",
        "VAE decoder",
        "total",
    ]


def test_table_4_stands_beside_the_full_model(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        tagger = object()

    found = [Component("all", 1_761_000_000, Macs(2_299_000_000_000, 100_000_000_000))]
    monkeypatch.setattr("gdpo.cost.count.inference", lambda *_: found)
    monkeypatch.setattr("gdpo.cost.count.dape_macs", lambda _: 30_000_000_000)
    result: dict[str, Any] = tool.inference(Full(), 512)
    assert result["published"]["ours_counted_the_same_way"] == {
        "parameters": 1_761_000_000,
        "macs": 2_269_000_000_000,
    }
    assert result["published"]["difference"] == [-0.0051, -0.0004]
    text = tool.to_text({"model": "sd2.1", "size": 512, "step": "infer", **result})
    assert "1.761 B (-0.5%), 2.269 T (-0.0%)" in text
    assert "published" not in tool.inference(Full(), 256)


def test_a_step_is_summed_by_column() -> None:
    parts = [
        Part("a", Macs(2 * 10**12), {"x": 1, "y": 3}),
        Part("b", Macs(10**12, 10**12), {"x": 2, "y": 0}),
    ]
    result = tool.training(parts)
    assert result["total"] == {"x": 6 * 10**12, "y": 6 * 10**12}
    lines = tool.to_text({"model": "m", "size": 8, "step": "rl", **result}).splitlines()
    assert lines[0] == "m at 8x8, a step of GDPO, per LR image"
    assert lines[2].split() == ["a", "2.000", "2.00", "6.00"]
    assert lines[-1].split() == ["total", "6.00", "6.00"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--model", "nowhere"],
            "nowhere/unet/config.json: no such file; --model is sd2.1 or a diffusers folder",
        ),
        (["--size", "33"], "--size must be a positive multiple of 8 for this model, got 33"),
        (
            ["--size", "32", "--step", "rl"],
            "--size must be at least 224 for --step rl: MANIQA scores crops of that side",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    folder: str, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert cli.main(["cost", "--model", folder, *arguments]) == 1
    assert capsys.readouterr().err == f"gdpo-sr: {says}\n"


def test_a_broken_configuration_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/config.json").write_text("{")
    assert cli.main(["cost", "--model", str(tmp_path)]) == 1
    assert "unet/config.json: not valid JSON" in capsys.readouterr().err
