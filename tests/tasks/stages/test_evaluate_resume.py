"""Evaluations repeated, stopped and resumed, and what starts them from the beginning."""

import shutil
from pathlib import Path

import pytest

from gdpo.config import Config
from gdpo.hooks import Hooks, Stopped
from tasks.stages import evaluate
from tests import tiny
from tests.tasks.stages.evaluations import changed, counted


def tree(folder: Path) -> dict[str, bytes]:
    return tiny.tree(folder / "reports")


def test_the_same_run_gives_the_same_bytes(evaluation_root: Path, evaluation: Config) -> None:
    evaluate.run(evaluation, evaluation_root, Hooks())
    before = tree(evaluation_root)
    shutil.rmtree(evaluation_root / "reports")
    evaluate.run(evaluation, evaluation_root, Hooks())
    assert tree(evaluation_root) == before and len(before) > 10


def test_a_stopped_run_goes_on_where_it_was(
    evaluation_root: Path, evaluation_of_pairs: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate.run(evaluation_of_pairs, evaluation_root, Hooks())
    whole = tree(evaluation_root)
    shutil.rmtree(evaluation_root / "reports")
    seen = counted(monkeypatch)
    for _ in range(2):
        with pytest.raises(Stopped):
            evaluate.run(
                evaluation_of_pairs, evaluation_root, Hooks(should_stop=lambda: len(seen) > 0)
            )
        assert not (evaluation_root / "reports/evaluate/realsr").exists()
    evaluate.run(evaluation_of_pairs, evaluation_root, Hooks())
    assert seen == ["a", "b", "c"]
    assert tree(evaluation_root) == whole
    assert not (evaluation_root / "work/evaluate/realsr/images").exists()


def test_other_settings_or_weights_start_again(
    evaluation_root: Path, evaluation: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = counted(monkeypatch)
    with pytest.raises(Stopped):
        evaluate.run(evaluation, evaluation_root, Hooks(should_stop=lambda: True))
    (evaluation_root / "models/control/weights").write_text("trained again")
    evaluate.run(evaluation, evaluation_root, Hooks())
    assert len(seen) == 3


def test_results_of_the_same_inputs_can_be_left_alone(
    evaluation_root: Path, evaluation: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate.run(evaluation, evaluation_root, Hooks())
    seen = counted(monkeypatch)
    evaluate.run(evaluation, evaluation_root, Hooks(), keep=True)
    assert not seen
    evaluate.run(changed(evaluation, noises=2), evaluation_root, Hooks(), keep=True)
    assert len(seen) == 2


def test_progress_says_how_many_images_there_are(evaluation_root: Path, evaluation: Config) -> None:
    logged: list[tuple[int, dict[str, float]]] = []
    evaluate.run(
        evaluation, evaluation_root, Hooks(log=lambda step, values: logged.append((step, values)))
    )
    assert [(step, values["of"]) for step, values in logged] == [
        (0, 2),
        (1, 2),
    ] and "psnr_y" in logged[0][1]
