"""The command `gdpo-sr score`: table, JSON, CSV, and what it says when something is wrong or
absent.
"""

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from PIL import Image

from tasks import __main__ as cli
from tests.gdpo.metrics import pictures, weights

NAMES = ["a", "b", "c"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with three references and noisy copies in another format; no weights
    anywhere.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "weights"))
    rng = np.random.default_rng(0)
    for i, name in enumerate(NAMES):
        photo = skimage.data.astronaut()[100 * i : 100 * i + 48, 150:214]
        put(tmp_path / f"hr/{name}.png", photo)
        put(
            tmp_path / f"sr/{name}.bmp",
            (photo + rng.normal(0, 5 + i, photo.shape)).clip(0, 255).astype(np.uint8),
        )
    return tmp_path


def put(path: Path, photo: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(photo).save(path)


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = cli.main(["score", *argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_table_has_a_row_per_image_and_the_mean(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "sr", "hr")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0].split() == ["image", "psnr_y", "ssim_y"]
    values = [float(line.split()[1]) for line in lines[1:4]]
    assert [line.split()[0] for line in lines[1:4]] == NAMES and values == sorted(
        values, reverse=True
    )
    assert lines[4].startswith("mean of 3 ") and float(lines[4].split()[3]) == pytest.approx(
        np.mean(values), abs=1e-4
    )
    assert lines[5].startswith("psnr_y  PSNR in dB of Y (BT.601")


def test_the_help_says_which_niqe_and_which_maniqa(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["score", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "no published NIQE compares (that is niqe_pyiqa)" in text
        and "published tables have maniqa_pipal" in text
    )


def test_a_file_that_cannot_be_written_does_not_cost_the_numbers(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A place that becomes unwritable while the images are scored."""
    monkeypatch.setattr("gdpo.files.check_writable", lambda target: None)
    (folder / "taken").touch()
    code, out, err = run(capsys, "sr", "hr", "--json", "taken/s.json")
    assert code == 1 and err and "mean of 3" in out


def test_json_and_csv_have_every_digit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "sr",
        "hr",
        "--metrics",
        "psnr_y,niqe",
        "piqe",
        "--json",
        "out/s.json",
        "--csv",
        "s.csv",
    ]
    assert run(capsys, *argv)[0] == 0
    result = json.loads((folder / "out/s.json").read_text())
    assert (result["sr"], result["hr"], result["count"], result["failed"]) == ("sr", "hr", 3, {})
    assert list(result["metrics"]) == ["psnr_y", "niqe", "piqe"]
    niqe = result["metrics"]["niqe"]
    assert "our pristine parameters" in niqe["variant"] and niqe["version"].startswith(
        "gdpo; niqe.mat sha256 "
    )
    assert not niqe["higher_is_better"] and niqe["left_out"] is None
    assert niqe["mean"] == pytest.approx(
        np.mean([row["niqe"] for row in result["images"]]), rel=1e-12
    )
    with (folder / "s.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == NAMES
    assert [float(row["psnr_y"]) for row in rows] == [row["psnr_y"] for row in result["images"]]
    code, out, _ = run(capsys, "sr", "hr", "--metrics", "psnr_y,niqe", "piqe", "--json", "-")
    assert code == 0 and json.loads(out) == result


def test_absent_weights_are_named_and_the_rest_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(
        capsys, "sr", "hr", "--metrics", "dists", "psnr_y", "fid", "--json", "s.json"
    )
    assert (code, err) == (0, "")
    assert out.splitlines()[0].split() == ["image", "psnr_y"]
    where = folder / "weights/hub/checkpoints"
    reason = f"DISTS_weights-f5e65c96.pth is missing; put it into {folder / 'weights/hub/pyiqa'}"
    assert f"left out: {reason}; vgg16-397923af.pth is missing; put it into {where}" in out
    result = json.loads((folder / "s.json").read_text())
    assert (
        result["metrics"]["dists"]["mean"] is None
        and reason in result["metrics"]["dists"]["left_out"]
    )
    assert (
        result["metrics"]["dists"]["version"] is None and result["metrics"]["fid"]["mean"] is None
    )
    assert [row["dists"] for row in result["images"]] == [None] * 3
    code, out, err = run(capsys, "sr", "hr", "--metrics", "dists", "fid")
    assert code == 1 and out == ""
    assert (
        err.startswith("gdpo-sr: no metric is left: dists: DISTS")
        and err.count("\n") == 1
        and "fid: pt_inception" in err
    )


def test_networks_and_fid_run_where_their_files_are(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = folder / "weights/hub"
    for name in ("pyiqa", "checkpoints"):
        (hub / name).mkdir(parents=True)
    weights.lpips(hub), weights.inception(hub)
    (hub / "pyiqa/musiq_koniq_ckpt-e95806b9.pth").write_bytes(b"a download that broke off")
    code, out, err = run(
        capsys, "sr", "hr", "--metrics", "lpips_alex", "fid", "musiq", "--json", "s.json"
    )
    assert (code, err) == (0, "")
    result = json.loads((folder / "s.json").read_text())
    assert all(row["lpips_alex"] > 0 and "fid" not in row for row in result["images"])
    assert result["metrics"]["fid"]["mean"] > 0
    assert "not a readable file of weights" in result["metrics"]["musiq"]["left_out"]
    assert out.splitlines()[1].split()[-1] == "-" and float(out.splitlines()[4].split()[-1]) > 0


def test_references_may_be_left_out_for_metrics_without(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "sr", "--metrics", "entropy")
    assert code == 0 and out.splitlines()[0].split() == ["image", "entropy"]
    code, _, err = run(capsys, "sr", "--metrics", "entropy", "psnr_y")
    assert code == 1 and err.startswith(
        "gdpo-sr: HR_DIR is missing: psnr_y need references; without: niqe, piqe, entropy"
    )


def test_images_too_small_for_a_metric_leave_it_out(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "sr", "hr", "--metrics", "psnr_y", "ms_ssim")
    assert code == 0 and "ms_ssim  left out: needs sides of at least 161 pixels, a is 64x48" in out


def test_wrong_pairs_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "hr/b.png").rename(folder / "hr/z.png")
    code, out, err = run(capsys, "sr", "hr", "--json", "s.json")
    assert (code, out) == (1, "")
    assert err == "gdpo-sr: sr and hr: missing in sr: z; without a reference in hr: b\n"
    assert not (folder / "s.json").exists()


def test_a_broken_image_costs_no_finished_work(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "sr/b.bmp"
    path.write_bytes(path.read_bytes()[:200])  # the header is whole
    code, out, err = run(capsys, "sr", "hr", "--json", "s.json", "--csv", "s.csv")
    assert code == 1
    assert (
        err.startswith("gdpo-sr: 1 of 3 images left out: sr/b.bmp: not a readable photograph")
        and err.count("\n") == 1
    )
    assert "mean of 2" in out
    result = json.loads((folder / "s.json").read_text())
    assert [row["name"] for row in result["images"]] == ["a", "c"] and list(result["failed"]) == [
        "b"
    ]
    assert "b,," in (folder / "s.csv").read_text().splitlines()


def test_names_with_control_characters_come_out_escaped(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for side, suffix in (("sr", "bmp"), ("hr", "png")):
        (folder / f"{side}/b.{suffix}").rename(folder / f"{side}/b\x1b[2J\n.{suffix}")
    code, out, _ = run(capsys, "sr", "hr", "--csv", "s.csv")
    assert code == 0 and "\x1b" not in out and "b\\x1b[2J\\n " in out
    assert "\x1b" not in (folder / "s.csv").read_text()
    assert "\x1b" not in run(capsys, "sr", "hr", "--json", "-")[1]


@pytest.mark.parametrize(
    "extra",
    [
        ["--metrics", "psnr"],
        ["--metrics"],
        ["--json", "sr"],
        ["--json", "sr/a.bmp"],
        ["--csv", "-"],
        ["--csv", "s.json"],
        ["x"],
    ],
)
def test_wrong_usage_exits_2(
    folder: Path, extra: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["score", "sr", "hr", *extra])
    assert caught.value.code == 2
    if extra == ["--metrics", "psnr"]:
        assert "unknown metric 'psnr'; known are psnr_y, ssim_y" in capsys.readouterr().err


def test_the_example_of_the_help_parses() -> None:
    from tasks.tools.score import EXAMPLE

    args = cli.build_parser("score").parse_args(EXAMPLE.split()[1:])
    assert args.hr == Path("testset/HR") and args.metrics == [
        ["psnr_y"],
        ["ssim_y"],
        ["lpips_alex"],
    ]


def test_values_are_pyiqas(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in pictures.NAMES:
        damaged, reference = pictures.pair(name)
        put(tmp_path / f"sr/{name}.png", damaged)
        put(tmp_path / f"hr/{name}.png", reference)
    folders = (str(tmp_path / "sr"), str(tmp_path / "hr"))
    assert run(capsys, *folders, "--json", str(tmp_path / "s.json"))[0] == 0
    result = json.loads((tmp_path / "s.json").read_text())
    expected = pictures.values()
    assert {row["name"] for row in result["images"]} == set(expected)
    for metric in ("psnr_y", "ssim_y"):
        known = {name: values[metric] for name, values in expected.items()}
        assert {row["name"]: row[metric] for row in result["images"]} == pytest.approx(known)
        assert result["metrics"][metric]["mean"] == pytest.approx(np.mean(list(known.values())))


def test_a_name_that_the_terminal_cannot_show_costs_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for side, suffix in (("sr", "bmp"), ("hr", "png")):
        (folder / f"{side}/b.{suffix}").rename(folder / f"{side}/caf\u00e9.{suffix}")
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert cli.main(["score", "sr", "hr", "--json", "s.json"]) == 0
    sys.stdout.flush()
    assert b"caf\\xe9" in written.getvalue() and (folder / "s.json").is_file()


def test_a_result_that_cannot_be_written_is_said_before_the_work(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "file").write_text("")
    code, out, err = run(capsys, "sr", "hr", "--csv", "file/s.csv")
    assert code == 1 and not out and "file is not a folder that can be written to" in err
