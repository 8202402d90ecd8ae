"""The evaluate stage on tiny pairs, with models that add their noise to the input."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from gdpo.config import Config, Reward
from gdpo.evaluate import benchmark
from gdpo.hooks import Hooks
from gdpo.images import read_photo, write_png
from gdpo.metrics import fid
from tasks.files import evaluation as evaluation_files
from tasks.files.evaluation import folder_name, has_pictures
from tasks.stages import evaluate
from tests.tasks.stages.evaluations import EVIL, PAIR_NAMES, changed, counted, with_reward


def results(folder: Path, benchmark: str = "sample") -> tuple[list[dict[str, Any]], dict[str, Any]]:
    out = folder / "reports/evaluate" / benchmark
    return pq.read_table(out / "per_image.parquet").to_pylist(), json.loads(
        (out / "summary.json").read_text()
    )


def test_files_rows_and_summary(evaluation_root: Path, evaluation: Config) -> None:
    evaluate.run(evaluation, evaluation_root, Hooks())
    rows, summary = results(evaluation_root)
    assert list(rows[0]) == ["image", "photograph", "model", "noise", "psnr_y", "ssim_y", "reward"]
    assert len(rows) == 2 * (1 + 3 * 3)
    naosd, control = (
        [row for row in rows if row["model"] == name] for name in ("naosd", "control")
    )
    assert [row["psnr_y"] for row in naosd] == [row["psnr_y"] for row in control]  # the same noises
    assert summary["images"] == 2 and summary["photographs"] == 2
    assert summary["models"]["naosd"]["reward"]["mean"] == pytest.approx(0, abs=1e-9)
    assert (
        summary["models"]["gdpo"]["psnr_y"]["mean"]
        > summary["models"]["naosd"]["psnr_y"]["mean"] + 1
    )
    assert {row["pair"] for row in summary["differences"]} == {
        "gdpo-naosd",
        "control-naosd",
        "gdpo-control",
        "naosd-bicubic",
    }


def test_the_rows_say_where_they_come_from(evaluation_root: Path, evaluation: Config) -> None:
    evaluate.run(evaluation, evaluation_root, Hooks())
    metadata = pq.read_schema(
        evaluation_root / "reports/evaluate/sample/per_image.parquet"
    ).metadata
    origin = {key.decode(): json.loads(value) for key, value in metadata.items()}
    assert (
        origin["benchmark"] == "sample"
        and origin["noises"] == 3
        and origin["metrics"]["psnr_y"].startswith("gdpo")
    )
    assert (
        set(origin["weights"]) == {"naosd", "gdpo", "control"}
        and len(set(origin["weights"].values())) == 3
    )
    assert origin == results(evaluation_root)[1]["origin"]
    assert (
        origin["code"]
        == Path(__file__).parents[3].joinpath("code/evaluate.sha256").read_text().strip()
    )
    assert origin["threads"] == torch.get_num_threads()
    (evaluation_root / "models/gdpo/weights").write_text("trained again")
    evaluate.run(evaluation, evaluation_root, Hooks())
    after = results(evaluation_root)[1]["origin"]
    assert (
        after["weights"]["gdpo"] != origin["weights"]["gdpo"]
        and after["weights"]["naosd"] == origin["weights"]["naosd"]
    )


def test_images_stay_in_their_folder_and_hold_what_was_scored(
    evaluation_root: Path, evaluation: Config
) -> None:
    before = {path for path in evaluation_root.rglob("*") if path.is_file()}
    evaluate.run(evaluation, evaluation_root, Hooks())
    out = evaluation_root / "reports/evaluate/sample"
    written = {path for path in evaluation_root.rglob("*") if path.is_file()} - before
    assert all(path.is_relative_to(out) for path in written)
    _, summary = results(evaluation_root)
    assert {entry["id"] for entry in summary["files"]} == {"photo-00", EVIL}
    for entry in summary["files"]:
        images = out / "images" / entry["folder"]
        names = {path.name for path in images.iterdir()} - {"candidates"}
        assert names == {
            f"{name}.png" for name in ("lr", "bicubic", "naosd", "gdpo", "control", "hr")
        }
        first = read_photo(images / "naosd.png")
        assert np.array_equal(first, read_photo(images / "candidates/0.png"))
        assert len(list((images / "candidates").iterdir())) == 3
    groups = json.loads((out / "candidates.json").read_text())
    assert sum(member["advantage"] for member in groups[0]["members"]) == pytest.approx(0, abs=1e-6)


def test_folders_of_pairs_with_a_peer(evaluation_root: Path, evaluation_of_pairs: Config) -> None:
    evaluate.run(evaluation_of_pairs, evaluation_root, Hooks())
    rows, summary = results(evaluation_root, "realsr")
    assert {row["image"] for row in rows} == set(PAIR_NAMES) and summary["photographs"] == 3
    assert {row["noise"] for row in rows if row["model"] == "gdpo"} == {0, 1}
    peer = [row for row in rows if row["model"] == "OSEDiff"]
    assert len(peer) == 3 and all(row["psnr_y"] < 15 for row in peer)
    assert (evaluation_root / "reports/evaluate/realsr/images/000-a/OSEDiff.png").is_file()
    assert summary["reference"] == "naosd" and list(summary["models"]) == [
        "bicubic",
        "OSEDiff",
        "naosd",
        "gdpo",
        "control",
    ]


def test_equal_weights_do_not_look_at_the_picture(
    evaluation_root: Path, evaluation_of_pairs: Config
) -> None:
    config = with_reward(evaluation_of_pairs, "equal")
    evaluate.run(config, evaluation_root, Hooks())
    rows, summary = results(evaluation_root, "realsr")
    assert summary["origin"]["reward"] == {
        "fidelity": ["psnr_y"],
        "perception": ["ssim_y"],
        "weighting": "equal",
    }
    assert all(entry["detail_share"] != 0.5 for entry in summary["files"])
    columns = {
        metric: {
            model: np.array(
                [
                    [row[metric] for row in rows if (row["model"], row["image"]) == (model, a)]
                    for a in PAIR_NAMES
                ]
            )
            for model in ("naosd", "gdpo")
        }
        for metric in ("psnr_y", "ssim_y", "reward")
    }
    scores = {
        model: {metric: columns[metric][model] for metric in ("psnr_y", "ssim_y")}
        for model in ("naosd", "gdpo")
    }
    expected = benchmark.rewards(
        scores, np.full(3, 0.5), Reward(fidelity=["psnr_y"], perception=["ssim_y"]), "naosd"
    )
    assert columns["reward"]["gdpo"] == pytest.approx(expected["gdpo"])
    group = json.loads((evaluation_root / "reports/evaluate/realsr/candidates.json").read_text())[
        0
    ]["members"]
    best = max(group, key=lambda member: member["metrics"]["psnr_y"])
    assert best["reward"] == pytest.approx(
        0.5 + 0.5 * (best == max(group, key=lambda member: member["metrics"]["ssim_y"]))
    )


def test_any_models_can_be_compared(evaluation_root: Path, evaluation: Config) -> None:
    evaluate.run(
        changed(evaluation, models={"first": "models/other", "second": "models/gdpo"}),
        evaluation_root,
        Hooks(),
    )
    rows, summary = results(evaluation_root)
    assert {row["model"] for row in rows} == {"bicubic", "first", "second"}
    assert summary["reference"] == "first" and summary["models"]["first"]["reward"][
        "mean"
    ] == pytest.approx(0, abs=1e-9)
    assert [row["pair"] for row in summary["differences"][:3]] == ["second-first"] * 3


def test_all_unusable_pairs_are_named_before_anything_runs(
    evaluation_root: Path, evaluation_of_pairs: Config
) -> None:
    write_png(evaluation_root / "pairs/HR/d.png", np.zeros((32, 32, 3), np.uint8))
    (evaluation_root / "pairs/LR/b.png").write_bytes(b"no image")
    with pytest.raises(ValueError) as error:
        evaluate.run(evaluation_of_pairs, evaluation_root, Hooks())
    message = str(error.value)
    assert "\n" not in message and message.startswith("benchmark realsr: ")
    for part in ("d has no LR image", "d has no OSEDiff image", "b.png: not a readable photograph"):
        assert part in message
    assert not (evaluation_root / "work").exists() and not (evaluation_root / "reports").exists()


def test_a_benchmark_without_folders_is_named(evaluation_root: Path, evaluation: Config) -> None:
    with pytest.raises(
        ValueError, match=r"evaluate.pairs.realsr: no such benchmark; there is sample"
    ):
        evaluate.run(evaluation, evaluation_root, Hooks(), "realsr")


def test_missing_weights_stop_the_stage_before_it_starts(
    evaluation_root: Path, evaluation: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(evaluation_root))
    with pytest.raises(ValueError, match=r"metric fid: .* missing; put it into"):
        evaluate.run(changed(evaluation, metrics=["psnr_y", "fid"]), evaluation_root, Hooks())
    assert not (evaluation_root / "work").exists()


def test_fid_is_one_number_per_model_and_noise(
    evaluation_root: Path, evaluation_of_pairs: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def features(images: Any, device: Any) -> np.ndarray:
        return (
            np.stack([image.reshape(-1, 3).mean(0) for image in images])
            .astype(np.float32)
            .astype(np.float64)
        )

    monkeypatch.setattr(fid, "features", features)
    monkeypatch.setattr(evaluate, "check_available", lambda metrics: None)
    monkeypatch.setattr(
        "tasks.run.provenance.versions", lambda metrics: dict.fromkeys(metrics, "1")
    )
    evaluate.run(changed(evaluation_of_pairs, metrics=["psnr_y", "fid"]), evaluation_root, Hooks())
    rows, summary = results(evaluation_root, "realsr")
    assert {name: len(values) for name, values in summary["sets"]["fid"].items()} == {
        "bicubic": 1,
        "OSEDiff": 1,
        "naosd": 2,
        "gdpo": 2,
        "control": 2,
    }
    found = {
        p: [read_photo(evaluation_root / f"pairs/{p}/{name}.png") for name in PAIR_NAMES]
        for p in ("HR", "peer")
    }
    expected = fid.frechet_distance(features(found["peer"], "cpu"), features(found["HR"], "cpu"))
    assert summary["sets"]["fid"]["OSEDiff"][0] == pytest.approx(expected)
    assert "fid" not in rows[0] and "fid" not in summary["metrics"]
    assert not (evaluation_root / "reports/evaluate/realsr/images/000-a/features.npz").exists()


def test_a_score_that_is_no_number_is_named_and_costs_nothing(
    evaluation_root: Path, evaluation: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    original: Callable[..., Any] = benchmark.score

    def score(
        names: list[str], image: torch.Tensor, reference: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        values = original(names, image, reference)
        return values if len(seen) < 2 else {**values, "ssim_y": values["ssim_y"] * float("nan")}

    seen = counted(monkeypatch)
    with monkeypatch.context() as broken:
        broken.setattr(benchmark, "score", score)
        with pytest.raises(
            ValueError, match=r"image photo-00: ssim_y of bicubic is not a finite number"
        ):
            evaluate.run(evaluation, evaluation_root, Hooks())
    evaluate.run(evaluation, evaluation_root, Hooks())
    assert seen == [EVIL, "photo-00", "photo-00"]


def test_the_pictures_of_a_large_benchmark_are_a_spread_of_it() -> None:
    kept = [index for index in range(3000) if has_pictures(index, 3000)]
    assert (
        len(kept) == evaluation_files.PICTURES
        and kept[0] == 0
        and kept[1] == 30
        and kept[-1] == 2970
    )
    assert all(has_pictures(index, 100) for index in range(100))


@pytest.mark.parametrize("image", [EVIL, "../..", "", "a/b\\c", "ÄÖ", "x" * 300])
def test_folder_names_are_harmless(image: str) -> None:
    name = folder_name(3, image)
    assert (
        name.startswith("003")
        and len(name) < 70
        and not set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789-")
    )
