"""The tool `doctor` on fabricated folders: what is there, what is missing, and what is wrong."""

import json
import os
import shutil
from email.message import Message
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from tasks import __main__ as cli
from tasks import params
from tasks.tools import doctor
from tests import tiny

PAPER_WEIGHTS = {
    "LPIPS_v0.1_vgg-a78928a0.pth",
    "vgg16-397923af.pth",
    "musiq_koniq_ckpt-e95806b9.pth",
    "ckpt_koniq10k.pt",
    "LPIPS_v0.1_alex-df73285e.pth",
    "alexnet-owt-7be5be79.pth",
    "DISTS_weights-f5e65c96.pth",
    "MANIQA_PIPAL-ae6d356b.pth",
    "RN50.pt",
    "afine.pth",
    "pt_inception-2015-12-05-6726825d.pth",
}


@pytest.fixture
def place(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the parameters and the paper profile; an empty folder of weights."""
    shutil.copy(root / "tests/params.yaml", tmp_path)
    (tmp_path / "profiles").mkdir()
    shutil.copy(root / "profiles/paper.yaml", tmp_path / "profiles")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "weights"))
    return tmp_path


def check(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = cli.main(["doctor", "--json", *arguments])
    return code, json.loads(capsys.readouterr().out)


def by_name(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The first row of each file name: those of the base model come before vlcot.init's."""
    return {Path(row["path"]).name: row for row in reversed(result["artefacts"])}


def complete(place: Path) -> None:
    """Everything the paper profile asks for, as small files."""
    config = params.load(place / "params.yaml", "paper")
    folders = [source.path for source in (*config.degrade.train, *config.degrade.evaluation)]
    folders += [
        folder for pairs in config.evaluate.pairs.values() for folder in (pairs.lr, pairs.hr)
    ]
    for folder in folders:
        (place / folder).mkdir(parents=True)
        (place / folder / "a.png").write_bytes(b"png")
    tiny.write_base(place / "models/sd2.1-base")
    for name in ("pyiqa", "checkpoints", "clip"):
        (place / "weights/hub" / name).mkdir(parents=True)
    (place / "models/tagger").mkdir()
    for name in ("tagger.safetensors", "dape.safetensors", "tags.json"):
        (place / "models/tagger" / name).write_bytes(b"made")
    for artefact in doctor.needed(params.load(place / "params.yaml", "paper"), place):
        if artefact.path.endswith((".pth", ".pt")) and artefact.state == doctor.MISSING:
            Path(artefact.path).write_bytes(b"weights")


def test_the_paper_profile_on_a_bare_machine(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, result = check(capsys, "--profile", "paper")
    assert code == 1
    assert not result["ok"]
    rows = by_name(result)
    assert {
        name
        for name, row in rows.items()
        if name.endswith((".pth", ".pt")) and row["state"] == "MISSING"
    } == PAPER_WEIGHTS
    assert (
        rows["ckpt_koniq10k.pt"]["needed_by"]
        == "reward.perception (maniqa_koniq), rollout.metrics (maniqa_koniq)"
    )
    assert rows["ckpt_koniq10k.pt"]["licence"] == "CC BY-NC-SA 4.0"
    assert rows["diffusion_pytorch_model.safetensors"]["licence"] == "CreativeML OpenRAIL++-M"
    assert (
        "4e63672c03103b6c636b8fb4119ba982469b2955"
        in rows["diffusion_pytorch_model.safetensors"]["where"]
    )
    assert rows["LSDIR"]["problem"] == "photos/LSDIR: no such folder (degrade.train)"
    assert rows["LR"]["state"] == rows["HR"]["state"] == "MISSING"
    assert rows["HR"]["needed_by"].startswith("evaluate.pairs.")
    assert {
        rows[name]["state"] for name in ("tagger.safetensors", "dape.safetensors", "tags.json")
    } == {"MISSING"}
    assert rows["tagger.safetensors"]["needed_by"] == "model.tagger"
    command = "`gdpo-sr import-weights ram_swin_large_14m.pth -o models/tagger --dape DAPE.pth`"
    assert rows["tagger.safetensors"]["where"] == command
    for name in (
        "ram_swin_large_14m.pth",
        "DAPE.pth",
        "ram_tag_list.txt",
        "ram_tag_list_threshold.txt",
    ):
        assert (rows[name]["state"], rows[name]["problem"]) == (
            "not used",
            "read once, to make models/tagger",
        )
    assert rows["ram_swin_large_14m.pth"]["where"] == "xinyu1205/recognize_anything_model"


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let the machine have `count` GPUs."""
    whole = doctor.examine
    gpus = [{"name": "A100", "memory": 80 * 10**9}] * count
    monkeypatch.setattr(doctor, "examine", lambda root: {**whole(root), "gpus": gpus})


def test_everything_in_place_is_ready(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    complete(place)
    with_gpus(monkeypatch, 8)
    code, result = check(capsys, "--profile", "paper")
    assert (code, result["ok"]) == (0, True), [
        row for row in result["artefacts"] if row["state"] == "MISSING"
    ]
    assert {row["state"] for row in result["artefacts"]} == {"found", "not used"}
    assert "DAPE.pth" not in by_name(result)  # the folder made of it is whole


def test_one_missing_or_empty_file_is_enough(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    complete(place)
    (place / "models/sd2.1-base/tokenizer/tokenizer.json").unlink()
    (place / "weights/hub/clip/RN50.pt").write_bytes(b"")
    assert cli.main(["doctor", "--profile", "paper"]) == 1
    text = capsys.readouterr().out
    assert (
        "MISSING     1.1 MB  models/sd2.1-base/tokenizer/tokenizer.json  [model.base; CreativeML "
        "OpenRAIL++-M]" in text
    )
    assert "empty file" in text
    assert "not ready: 2 of" in text


def test_a_base_of_another_prediction_type_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    complete(place)
    path = place / "models/sd2.1-base/scheduler/scheduler_config.json"
    path.write_text(path.read_text().replace("epsilon", "v_prediction"))
    code, result = check(capsys, "--profile", "paper")
    row = by_name(result)["scheduler_config.json"]
    assert (code, row["state"]) == (1, "BAD")
    assert "prediction_type is 'v_prediction'" in row["problem"]


def test_weights_that_are_cut_short_are_not_called_found(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    complete(place)
    path = place / "models/sd2.1-base/vae/diffusion_pytorch_model.safetensors"
    os.truncate(path, path.stat().st_size - 1)
    code, result = check(capsys, "--profile", "paper")
    bad = [row for row in result["artefacts"] if row["state"] == "BAD"]
    assert code == 1 and [row["path"] for row in bad] == [
        "models/sd2.1-base/vae/diffusion_pytorch_model.safetensors"
    ]
    assert bad[0]["problem"].startswith("damaged or cut short")


def test_adapters_to_start_from_are_followed(root: Path, place: Path) -> None:
    plain = params.load(place / "params.yaml").model_dump()
    plain["pretrain"]["init"] = "start"
    config = params.Config.model_validate(plain)

    def rows() -> list[doctor.Artefact]:
        return [row for row in doctor.needed(config, place) if row.needed_by == "pretrain.init"]

    assert [(row.path, row.state) for row in rows()] == [("start/model.json", "MISSING")]
    (place / "start").mkdir()
    shutil.copy(root / "assets/tiny-sd/naosd/model.json", place / "start")
    assert [row.path for row in rows() if row.state == "MISSING"] == ["start/naosd.safetensors"]
    for damaged in ("[]", '{"adapters": [{"file": "naosd.safetensors"}]}'):
        (place / "start/model.json").write_text(damaged)
        assert [row.state for row in rows()] == ["BAD"]


def test_the_profile_of_realsr_r1_needs_the_weights_of_its_rewards(
    root: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(root / "profiles/realsr-r1.yaml", place / "profiles")
    code, result = check(capsys, "--profile", "realsr-r1")
    asked = {
        name: row for name, row in by_name(result).items() if "grpo.metrics" in row["needed_by"]
    }
    assert code == 1 and {row["state"] for row in asked.values()} == {"MISSING"}
    assert set(asked) == {
        "cfanet_nr_koniq_res50-9a73138b.pth",  # topiq_nr
        "musiq_koniq_ckpt-e95806b9.pth",
        "MANIQA_PIPAL-ae6d356b.pth",
        "RN50.pt",  # clipiqa
    }


def test_the_model_that_realsr_r1_goes_on_from_is_followed(root: Path, place: Path) -> None:
    plain = params.load(place / "params.yaml").model_dump()
    plain["vlcot"]["init"] = "start"
    config = params.Config.model_validate(plain)

    def rows() -> list[tuple[str, str]]:
        found = doctor.needed(config, place)
        return [(row.path, row.state) for row in found if row.needed_by == "vlcot.init"]

    assert rows() == [("start/model.json", "MISSING")]
    shutil.copytree(root / "assets/tiny-vlcot", place / "start")
    assert {state for _, state in rows()} == {"found"} and len(rows()) == 5
    (place / "start/trunk.safetensors").unlink()
    assert [path for path, state in rows() if state == "MISSING"] == ["start/trunk.safetensors"]
    (place / "start/model.json").write_text("[]")
    assert rows() == [("start/model.json", "BAD")]


def test_the_sample_profile_needs_nothing_that_is_not_here(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    code, result = check(capsys, "--params", "tests/params.yaml")
    assert code == 0, [
        row for row in result["artefacts"] if row["state"] not in ("found", "not used")
    ]


def test_the_weights_of_every_metric_are_listed(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from gdpo.metrics.score import METRICS

    rows = by_name(check(capsys)[1])
    files = {Path(file).name for metric in METRICS.values() for file in metric.weights}
    assert files <= set(rows) and {rows[name]["state"] for name in files} == {"not used"}
    assert rows["afine.pth"]["needed_by"] == "gdpo-sr score --metrics afine"
    (place / "weights/hub/pyiqa").mkdir(parents=True)
    (place / "weights/hub/pyiqa/afine.pth").write_bytes(b"weights")
    assert by_name(check(capsys)[1])["afine.pth"]["state"] == "found"


def test_packages_that_do_not_fit_are_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = doctor.examine(place)
    assert machine["problems"] == []
    assert {"torch", "diffusers", "peft"} <= set(machine["packages"])
    own = Message()
    own["Requires-Python"] = ">=4"
    for text in ("torch<1", "no-such-package", 'no-such-extra; extra == "metrics"'):
        own["Requires-Dist"] = text
    monkeypatch.setattr(metadata, "metadata", lambda name: own)
    problems = doctor.examine(place)["problems"]
    assert problems[0].endswith("gdpo-sr asks for >=4")
    assert problems[1].endswith("gdpo-sr asks for <1")
    assert problems[2:] == ["no-such-package is not installed; install gdpo-sr again"]


def test_in_an_empty_folder_it_checks_what_ships(
    tmp_path: Path,
    root: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert params.default_file() == root / "params.yaml"
    # Its values may be those of any profile just now.
    monkeypatch.setattr(params, "default_file", lambda: root / "tests/params.yaml")
    _, result = check(capsys)
    bases = [row for row in result["artefacts"] if row["needed_by"].startswith("model.base")]
    assert bases and {row["state"] for row in bases} == {doctor.FOUND}
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_metric_or_profile_is_one_line(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "profiles/odd.yaml").write_text("evaluate: {metrics: [beauty]}\n")
    assert cli.main(["doctor", "--profile", "odd"]) == 1
    assert capsys.readouterr().err.startswith(
        "gdpo-sr: evaluate.metrics: unknown metric 'beauty'; known are psnr_y"
    )
    assert cli.main(["doctor", "--profile", "none"]) == 2
