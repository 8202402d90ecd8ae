"""Folders of LR-HR pairs: pairing by name, the rule for sizes, and one line for everything that is
wrong.
"""

from pathlib import Path

import numpy as np
import pytest

from gdpo.data.shards import enlarge
from gdpo.evaluate.benchmark import evaluate_image
from gdpo.evaluate.pairs import BenchmarkPairs, fits
from gdpo.images import to_tensor, write_png
from gdpo.rewards.detail import detail_share


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b", "a"):
        write_png(tmp_path / "LR" / f"{name}.png", picture(8, 12))
        write_png(tmp_path / "HR" / f"{name}.png", picture(32, 48))
        write_png(tmp_path / "OSEDiff" / f"{name}.png", picture(32, 48, 1))
    return tmp_path


def opened(folder: Path, min_side: int = 1) -> BenchmarkPairs:
    return BenchmarkPairs.checked(
        "realsr", folder / "LR", folder / "HR", {"OSEDiff": folder / "OSEDiff"}, min_side
    )


def test_pairs_come_by_name_with_their_peers(folder: Path) -> None:
    pairs = opened(folder)
    assert pairs.ids == ["a", "b"] and len(pairs) == 2
    pair = pairs[1]
    assert (pair.id, pair.source) == ("b", "b") and np.array_equal(pair.hr, picture(32, 48))
    assert (
        np.array_equal(pairs.baseline_outputs(1)["OSEDiff"], picture(32, 48, 1))
        and 0 <= pair.detail_share <= 1
    )


def test_a_suffix_is_no_part_of_the_name(folder: Path) -> None:
    (folder / "LR/a.png").rename(folder / "LR/a.PNG")
    assert opened(folder).ids == ["a", "b"]
    write_png(folder / "LR/a.webp.png", picture(8, 12))
    (folder / "LR/a.webp.png").rename(folder / "LR/a.webp")
    with pytest.raises(ValueError, match="LR: two files of one name: a"):
        opened(folder)


@pytest.mark.parametrize(
    ("lr", "hr", "good"),
    [
        ((128, 128), (512, 512), True),
        ((64, 64), (512, 512), True),  # below a quarter
        ((512, 512), (512, 512), True),  # enlarged already
        ((85, 128), (341, 512), True),  # a quarter of 341 is no whole number
        ((256, 256), (512, 512), True),
        ((1024, 1024), (512, 512), False),
        ((128, 100), (512, 512), False),
        ((128, 192), (512, 512), False),
    ],
)
def test_the_rule_for_sizes(lr: tuple[int, int], hr: tuple[int, int], good: bool) -> None:
    assert fits(lr, hr) == good


def test_what_a_model_gets_is_the_lr_image_at_the_size_of_the_hr_image(folder: Path) -> None:
    for size in ((4, 6), (32, 48)):
        for name in ("a", "b"):
            write_png(folder / "LR" / f"{name}.png", picture(*size))
        pairs = opened(folder)
        result = evaluate_image(
            pairs[0], {}, ["psnr_y"], seed=0, noises=2, batch=2, baselines=pairs.baseline_outputs(0)
        )
        expected = (
            picture(*size) if size == (32, 48) else enlarge(picture(*size), (32, 48), "bicubic")
        )
        assert np.array_equal(result.outputs["bicubic"][0], expected)
        assert np.array_equal(result.outputs["OSEDiff"][0], picture(32, 48, 1))
        assert list(result.scores["OSEDiff"]) == ["psnr_y"]


def test_everything_that_is_wrong_is_in_one_line(folder: Path) -> None:
    write_png(folder / "LR/c.png", picture(8, 8))
    write_png(folder / "HR/c.png", picture(32, 48))
    write_png(folder / "OSEDiff/c.png", picture(16, 24))
    (folder / "HR/a.png").write_bytes(b"damaged")
    (folder / "LR/b.png").unlink()
    write_png(folder / "OSEDiff/extra.png", picture(32, 48))
    with pytest.raises(ValueError) as error:
        opened(folder)
    text = str(error.value)
    assert "\n" not in text
    for part in (
        "a.png: not a readable photograph",
        "b has no LR image",
        "extra has no HR image",
        "LR/c.png is 8x8, which does not enlarge to its HR image of 48x32",
        "OSEDiff/c.png is 24x16, its HR image 48x32",
    ):
        assert part in text


def test_images_too_small_for_a_metric_are_named_before_anything_runs(folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"a.png is 48x32, the metrics need sides of 224; .*b.png is 48x32"
    ):
        opened(folder, 224)


def test_an_empty_or_missing_folder_is_named(folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: no image in this folder"):
        BenchmarkPairs.checked("x", folder / "LR", folder / "empty", {})
    with pytest.raises(ValueError, match=r"nowhere: no such folder"):
        BenchmarkPairs.checked("x", folder / "LR", folder / "nowhere", {})


def test_every_name_has_its_own_pictures_and_the_detail_share_of_its_hr_image(
    tmp_path: Path,
) -> None:
    for index, name in enumerate("cab"):
        write_png(tmp_path / "LR" / f"{name}.png", picture(8, 12, index) // 8 + 100)
        write_png(tmp_path / "HR" / f"{name}.png", picture(32, 48, 10 + index))
    pairs = BenchmarkPairs.checked("realsr", tmp_path / "LR", tmp_path / "HR", {})
    for position, index in enumerate((1, 2, 0)):  # a, b, c
        pair = pairs[position]
        assert pair.id == "abc"[position]
        assert np.array_equal(pair.lr, picture(8, 12, index) // 8 + 100)
        assert np.array_equal(pair.hr, picture(32, 48, 10 + index))
        shares = [
            float(detail_share(to_tensor(image)[None], "released")[0])
            for image in (pair.hr, pair.lr)
        ]
        assert pair.detail_share == pytest.approx(shares[0])
        assert abs(shares[0] - shares[1]) > 0.1


def test_composed_and_decomposed_names_are_the_same(folder: Path) -> None:
    (folder / "LR/a.png").rename(folder / "LR/e\u0301.png")
    for place in ("HR", "OSEDiff"):
        (folder / place / "a.png").rename(folder / place / "\u00e9.png")
    assert opened(folder).ids == ["b", "\u00e9"]
    write_png(folder / "LR/\u00e9.png", picture(8, 12))
    with pytest.raises(ValueError, match="two files of one name"):
        opened(folder)
