"""The validation pairs of a fine-tuning: what is cut and degraded, and what is refused."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from gdpo.config import Config
from gdpo.seeds import numpy_generator
from tasks.files.validation import validation_pairs
from tests import tiny


def configured(**changes: Any) -> Config:
    validation = {"photographs": "apart", "every": 2, "crop": 32, "noises": 2, **changes}
    return tiny.settings(finetune={"validation": validation})


def photograph(path: Path, side: int) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = numpy_generator(path.name).integers(0, 256, (side, side, 3), dtype=np.uint8)
    cv2.imwrite(str(path), pixels[..., ::-1])
    return pixels


def test_the_middle_of_each_photograph_in_order_of_names(tmp_path: Path) -> None:
    second, first = (photograph(tmp_path / "apart" / name, 100) for name in ("b.png", "a.png"))
    pairs = validation_pairs(configured(), tmp_path)
    assert [pair.id for pair in pairs] == ["validation-a", "validation-b"]
    for pair, pixels in zip(pairs, (first, second), strict=True):
        assert np.array_equal(pair.hr, pixels[34:66, 34:66])
        assert pair.lr.shape == (8, 8, 3) and pair.degradation["enlarge"] == "bicubic"
        assert 0 <= pair.detail_share <= 1
    again = validation_pairs(configured(), tmp_path)
    assert [a.lr.tobytes() for a in again] == [b.lr.tobytes() for b in pairs]
    assert pairs[0].degradation != pairs[1].degradation


def test_none_without_the_key(tmp_path: Path) -> None:
    assert validation_pairs(tiny.settings(), tmp_path) == []


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"finetune.validation.photographs: apart: no such folder"):
        validation_pairs(configured(), tmp_path)
    (tmp_path / "apart").mkdir()
    with pytest.raises(ValueError, match=r"finetune.validation.photographs: apart: no photograph"):
        validation_pairs(configured(), tmp_path)
    photograph(tmp_path / "apart/small.png", 30)
    with pytest.raises(ValueError, match=r"small.png: 30x30 pixels, smaller than finetune.val"):
        validation_pairs(configured(), tmp_path)


def test_a_crop_that_the_model_cannot_take_is_refused() -> None:
    with pytest.raises(ValueError, match=r"finetune.validation.crop must be a multiple of 32"):
        configured(crop=48)
