"""What a stopped evaluation keeps: taken whole, or evaluated again."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tasks.files.evaluation import FinishedImage, ImageStore
from tests import tiny


@pytest.fixture
def kept(tmp_path: Path) -> ImageStore:
    """One finished image."""
    kept, pair = ImageStore(tmp_path, "inputs"), tiny.pair(0)
    done = FinishedImage(
        {"id": "a", "folder": "000-a"}, {"gdpo": {"psnr_y": np.array([20.125, 0.1])}}, None
    )
    result: Any = SimpleNamespace(outputs={"gdpo": [pair.hr, pair.hr]})
    features = {"gdpo": np.ones((2, 4)), "hr": np.ones((1, 4))}
    kept.write(done, pair, result, features, pictures=True)
    return kept


def test_a_finished_image_is_read_back(kept: ImageStore) -> None:
    done = kept.read("000-a")
    assert done is not None and done.entry["id"] == "a" and done.group is None
    assert done.scores["gdpo"]["psnr_y"].tolist() == [20.125, 0.1]
    assert kept.read("001-b") is None


@pytest.mark.parametrize("name", ["result.json", "hr.png", "gdpo.png", "features.npz"])
def test_a_file_of_it_that_is_damaged_or_gone_is_no_result(kept: ImageStore, name: str) -> None:
    path = kept.images / "000-a" / name
    whole = path.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 40)):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        done = kept.read("000-a")
        # In result.json a blank between two values may have become another.
        assert done is None or (name == "result.json" and done.entry["id"] == "a")
        assert done is None or done.scores["gdpo"]["psnr_y"].tolist() == [20.125, 0.1]
    path.unlink()
    assert kept.read("000-a") is None
