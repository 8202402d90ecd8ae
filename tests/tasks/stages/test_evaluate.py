"""The evaluate stage on tiny pairs, with models that add their noise to the input."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from gdpo.config import Config, Reward
from gdpo.data.shards import Box, Pair, write_shards
from gdpo.evaluate import benchmark
from gdpo.hooks import Hooks, Stopped
from gdpo.images import read_photo, write_png
from gdpo.metrics import fid
from gdpo.seeds import seed_of, seeded_noise
from gdpo.upscale.protocol import Settings
from tasks.files import evaluation as evaluation_files
from tasks.files.evaluation import folder_name, has_pictures
from tasks.stages import evaluate
from tests import tiny

EVIL = "../../<script>'\"-00"
STRENGTH = {"naosd": 0.06, "gdpo": 0.02, "control": 0.06, "other": 0.1}
PAIR_NAMES = ("a", "b", "c")


def changed(config: Config, **values: Any) -> Config:
    """The configuration with keys of `evaluate` replaced, checked."""
    plain = config.model_dump()
    plain["evaluate"].update(values)
    return Config.model_validate(plain)


def with_reward(config: Config, weighting: str) -> Config:
    """The configuration with a reward of two metrics that need no file."""
    plain = config.model_dump()
    plain["rollout"]["metrics"] = ["psnr_y", "ssim_y"]
    plain["reward"] = {"fidelity": ["psnr_y"], "perception": ["ssim_y"], "weighting": weighting}
    return Config.model_validate(plain)


@pytest.fixture
def config(sample_config: Config) -> Config:
    return changed(
        with_reward(sample_config, "adaptive"), metrics=["psnr_y", "ssim_y"], noises=3, batch=2
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Held-out shards, folders of pairs, and models whose strength is told by their folder's
    name.
    """
    rng = np.random.default_rng(0)
    pairs = []
    for name in ("photo-00", EVIL):
        lr = rng.integers(60, 190, (8, 8, 3)).astype(np.uint8)
        hr = lr.repeat(4, 0).repeat(4, 1)
        pairs.append(Pair(name, name.rpartition("-")[0], Box(0, 0, 32, 32), hr, lr, {}, 0.5))
    write_shards(tmp_path / "data/shards/evaluation", pairs, 8.0)
    for name in PAIR_NAMES:
        lr = rng.integers(60, 190, (8, 8, 3)).astype(np.uint8)
        for place, image in (
            ("LR", lr),
            ("HR", lr.repeat(4, 0).repeat(4, 1)),
            ("peer", lr.repeat(4, 0).repeat(4, 1) // 2),
        ):
            (tmp_path / "pairs" / place).mkdir(parents=True, exist_ok=True)
            write_png(tmp_path / "pairs" / place / f"{name}.png", image)
    for name in STRENGTH:
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "weights").write_text(name)

    def load(
        folders: dict[str, Path], *, device: str, settings: Settings
    ) -> dict[str, SimpleNamespace]:
        assert settings == Settings(color_fix="wavelet", precision=settings.precision)

        def resolve(strength: float, lr_up_BCHW: torch.Tensor, keys: list[Any]) -> torch.Tensor:
            noise = seeded_noise([seed_of(*key) for key in keys], tuple(lr_up_BCHW.shape[1:]))[0]
            return (lr_up_BCHW + strength * noise.to(lr_up_BCHW.device)).clamp(0, 1)

        return {
            name: SimpleNamespace(batch=partial(resolve, STRENGTH[folder.name]))
            for name, folder in folders.items()
        }

    monkeypatch.setattr(evaluate, "OWN", replace(evaluate.OWN, load=load))
    return tmp_path


@pytest.fixture
def paired(config: Config) -> Config:
    """The same on folders of pairs, with a peer and its own number of noises."""
    realsr = {
        "lr": "pairs/LR",
        "hr": "pairs/HR",
        "noises": 2,
        "baselines": {"OSEDiff": "pairs/peer"},
    }
    return changed(config, benchmarks=["realsr", "sample"], pairs={"realsr": realsr})


def results(folder: Path, benchmark: str = "sample") -> tuple[list[dict[str, Any]], dict[str, Any]]:
    out = folder / "reports/evaluate" / benchmark
    return pq.read_table(out / "per_image.parquet").to_pylist(), json.loads(
        (out / "summary.json").read_text()
    )


def test_files_rows_and_summary(folder: Path, config: Config) -> None:
    evaluate.run(config, folder, Hooks())
    rows, summary = results(folder)
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


def test_the_rows_say_where_they_come_from(folder: Path, config: Config) -> None:
    evaluate.run(config, folder, Hooks())
    metadata = pq.read_schema(folder / "reports/evaluate/sample/per_image.parquet").metadata
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
    assert origin == results(folder)[1]["origin"]
    assert (
        origin["code"]
        == Path(__file__).parents[3].joinpath("code/evaluate.sha256").read_text().strip()
    )
    assert origin["threads"] == torch.get_num_threads()
    (folder / "models/gdpo/weights").write_text("trained again")
    evaluate.run(config, folder, Hooks())
    after = results(folder)[1]["origin"]
    assert (
        after["weights"]["gdpo"] != origin["weights"]["gdpo"]
        and after["weights"]["naosd"] == origin["weights"]["naosd"]
    )


def test_images_stay_in_their_folder_and_hold_what_was_scored(folder: Path, config: Config) -> None:
    before = {path for path in folder.rglob("*") if path.is_file()}
    evaluate.run(config, folder, Hooks())
    out = folder / "reports/evaluate/sample"
    written = {path for path in folder.rglob("*") if path.is_file()} - before
    assert all(path.is_relative_to(out) for path in written)
    _, summary = results(folder)
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


def test_folders_of_pairs_with_a_peer(folder: Path, paired: Config) -> None:
    evaluate.run(paired, folder, Hooks())
    rows, summary = results(folder, "realsr")
    assert {row["image"] for row in rows} == set(PAIR_NAMES) and summary["photographs"] == 3
    assert {row["noise"] for row in rows if row["model"] == "gdpo"} == {0, 1}
    peer = [row for row in rows if row["model"] == "OSEDiff"]
    assert len(peer) == 3 and all(row["psnr_y"] < 15 for row in peer)
    assert (folder / "reports/evaluate/realsr/images/000-a/OSEDiff.png").is_file()
    assert summary["reference"] == "naosd" and list(summary["models"]) == [
        "bicubic",
        "OSEDiff",
        "naosd",
        "gdpo",
        "control",
    ]


def test_equal_weights_do_not_look_at_the_picture(folder: Path, paired: Config) -> None:
    config = with_reward(paired, "equal")
    evaluate.run(config, folder, Hooks())
    rows, summary = results(folder, "realsr")
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
    group = json.loads((folder / "reports/evaluate/realsr/candidates.json").read_text())[0][
        "members"
    ]
    best = max(group, key=lambda member: member["metrics"]["psnr_y"])
    assert best["reward"] == pytest.approx(
        0.5 + 0.5 * (best == max(group, key=lambda member: member["metrics"]["ssim_y"]))
    )


def test_any_models_can_be_compared(folder: Path, config: Config) -> None:
    evaluate.run(
        changed(config, models={"first": "models/other", "second": "models/gdpo"}), folder, Hooks()
    )
    rows, summary = results(folder)
    assert {row["model"] for row in rows} == {"bicubic", "first", "second"}
    assert summary["reference"] == "first" and summary["models"]["first"]["reward"][
        "mean"
    ] == pytest.approx(0, abs=1e-9)
    assert [row["pair"] for row in summary["differences"][:3]] == ["second-first"] * 3


def test_all_unusable_pairs_are_named_before_anything_runs(folder: Path, paired: Config) -> None:
    write_png(folder / "pairs/HR/d.png", np.zeros((32, 32, 3), np.uint8))
    (folder / "pairs/LR/b.png").write_bytes(b"no image")
    with pytest.raises(ValueError) as error:
        evaluate.run(paired, folder, Hooks())
    message = str(error.value)
    assert "\n" not in message and message.startswith("benchmark realsr: ")
    for part in ("d has no LR image", "d has no OSEDiff image", "b.png: not a readable photograph"):
        assert part in message
    assert not (folder / "work").exists() and not (folder / "reports").exists()


def test_a_benchmark_without_folders_is_named(folder: Path, config: Config) -> None:
    with pytest.raises(
        ValueError, match=r"evaluate.pairs.realsr: no such benchmark; there is sample"
    ):
        evaluate.run(config, folder, Hooks(), "realsr")


def test_missing_weights_stop_the_stage_before_it_starts(
    folder: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(folder))
    with pytest.raises(ValueError, match=r"metric fid: .* missing; put it into"):
        evaluate.run(changed(config, metrics=["psnr_y", "fid"]), folder, Hooks())
    assert not (folder / "work").exists()


def test_fid_is_one_number_per_model_and_noise(
    folder: Path, paired: Config, monkeypatch: pytest.MonkeyPatch
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
    evaluate.run(changed(paired, metrics=["psnr_y", "fid"]), folder, Hooks())
    rows, summary = results(folder, "realsr")
    assert {name: len(values) for name, values in summary["sets"]["fid"].items()} == {
        "bicubic": 1,
        "OSEDiff": 1,
        "naosd": 2,
        "gdpo": 2,
        "control": 2,
    }
    found = {
        p: [read_photo(folder / f"pairs/{p}/{name}.png") for name in PAIR_NAMES]
        for p in ("HR", "peer")
    }
    expected = fid.frechet_distance(features(found["peer"], "cpu"), features(found["HR"], "cpu"))
    assert summary["sets"]["fid"]["OSEDiff"][0] == pytest.approx(expected)
    assert "fid" not in rows[0] and "fid" not in summary["metrics"]
    assert not (folder / "reports/evaluate/realsr/images/000-a/features.npz").exists()


def test_a_score_that_is_no_number_is_named_and_costs_nothing(
    folder: Path, config: Config, monkeypatch: pytest.MonkeyPatch
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
            evaluate.run(config, folder, Hooks())
    evaluate.run(config, folder, Hooks())
    assert seen == [EVIL, "photo-00", "photo-00"]


def tree(folder: Path) -> dict[str, bytes]:
    return tiny.tree(folder / "reports")


def test_the_same_run_gives_the_same_bytes(folder: Path, config: Config) -> None:
    evaluate.run(config, folder, Hooks())
    before = tree(folder)
    shutil.rmtree(folder / "reports")
    evaluate.run(config, folder, Hooks())
    assert tree(folder) == before and len(before) > 10


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The images that are evaluated from now on."""
    seen: list[str] = []
    original: Callable[..., Any] = evaluate.evaluate_image

    def spy(pair: Pair, *rest: Any, **named: Any) -> Any:
        seen.append(pair.id)
        return original(pair, *rest, **named)

    monkeypatch.setattr(evaluate, "evaluate_image", spy)
    return seen


def test_a_stopped_run_goes_on_where_it_was(
    folder: Path, paired: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate.run(paired, folder, Hooks())
    whole = tree(folder)
    shutil.rmtree(folder / "reports")
    seen = counted(monkeypatch)
    for _ in range(2):
        with pytest.raises(Stopped):
            evaluate.run(paired, folder, Hooks(should_stop=lambda: len(seen) > 0))
        assert not (folder / "reports/evaluate/realsr").exists()
    evaluate.run(paired, folder, Hooks())
    assert seen == ["a", "b", "c"]
    assert tree(folder) == whole
    assert not (folder / "work/evaluate/realsr/images").exists()


def test_other_settings_or_weights_start_again(
    folder: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = counted(monkeypatch)
    with pytest.raises(Stopped):
        evaluate.run(config, folder, Hooks(should_stop=lambda: True))
    (folder / "models/control/weights").write_text("trained again")
    evaluate.run(config, folder, Hooks())
    assert len(seen) == 3


def test_results_of_the_same_inputs_can_be_left_alone(
    folder: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate.run(config, folder, Hooks())
    seen = counted(monkeypatch)
    evaluate.run(config, folder, Hooks(), keep=True)
    assert not seen
    evaluate.run(changed(config, noises=2), folder, Hooks(), keep=True)
    assert len(seen) == 2


def test_progress_says_how_many_images_there_are(folder: Path, config: Config) -> None:
    logged: list[tuple[int, dict[str, float]]] = []
    evaluate.run(config, folder, Hooks(log=lambda step, values: logged.append((step, values))))
    assert [(step, values["of"]) for step, values in logged] == [
        (0, 2),
        (1, 2),
    ] and "psnr_y" in logged[0][1]


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
