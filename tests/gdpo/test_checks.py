"""Every check names the argument and what is wrong with it."""

from typing import Any

import pytest
import torch

from gdpo.checks import check_image, check_same_shape, check_shape, check_tensor


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([1.0], "torch.Tensor"),
        (torch.zeros(3, 4, 4), "shape BCHW"),
        (torch.zeros(0, 3, 4, 4), "empty"),
        (torch.zeros(1, 1, 4, 4), "3 channels"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "floating-point"),
        (torch.full((1, 3, 4, 4), float("nan")), "NaN"),
        (torch.full((1, 3, 4, 4), float("inf")), "infinite"),
        (torch.full((1, 3, 4, 4), 1.1), r"\[0, 1\]"),
        (torch.full((1, 3, 4, 4), -0.1), r"\[0, 1\]"),
    ],
)
def test_a_bad_image_is_named(value: Any, says: str) -> None:
    with pytest.raises(ValueError, match=f"^lr .*{says}"):
        check_image("lr", value)


def test_one_nan_among_good_values_is_found() -> None:
    image = torch.rand(2, 3, 9, 9)
    image[1, 2, 8, 8] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        check_image("image", image)
    with pytest.raises(ValueError, match="NaN"):
        check_tensor("image", image, "BCHW")


def test_good_images_pass_unchanged() -> None:
    image = torch.linspace(-1, 1, 48).reshape(1, 3, 4, 4)
    assert check_image("image", image, -1, 1) is image
    assert check_image("image", image.abs().half()).dtype == torch.float16


def test_different_shapes_are_named() -> None:
    with pytest.raises(ValueError, match="image and reference must have the same shape"):
        check_same_shape("image", torch.zeros(1, 2), "reference", torch.zeros(2, 1))


def test_a_shape_is_checked_without_a_look_at_values() -> None:
    bad = torch.full((1, 3, 4, 4), float("nan"))
    assert check_shape("image", bad, "BCHW") is bad
    with pytest.raises(ValueError, match="shape BCHW"):
        check_shape("image", bad[0], "BCHW")
    with pytest.raises(ValueError, match="NaN"):
        check_tensor("image", bad, "BCHW")
