"""benchmarks/peers.py: the colour shift, and what the page says of a table."""

import numpy as np
import pytest

from benchmarks import peers


def test_a_constant_shift_is_its_size_and_fine_detail_is_none() -> None:
    flat = np.full((16, 24, 3), 100, dtype=np.uint8)
    checkered = flat.copy()
    checkered[::2, ::2] += 20
    checkered[1::2, 1::2] -= 20
    shift = np.abs(peers._blocks(flat + 7) - peers._blocks(flat)).mean()
    assert shift == pytest.approx(7)
    assert np.abs(peers._blocks(checkered) - peers._blocks(flat)).mean() == pytest.approx(0)
    assert peers._blocks(flat).shape == (2, 3, 3)


def test_the_page_has_every_method_and_the_signed_differences() -> None:
    values = {"psnr_y": 24.0, "ssim_y": 0.5, "niqe": 5.0, "piqe": 40.0, "color_shift": 1.0}
    measured = {
        "means": {
            "bicubic": {**values, "seconds": 0.0},
            peers.PEER: {**values, "seconds": 8.25},
            "naosd": {**values, "seconds": 0.5},
        },
        "differences": {"niqe": {"mean": -0.5, "low": -1.0, "high": 0.25, "p": 0.04}},
    }
    text = peers.page(measured, ["naosd"], 24, 256, 4)
    assert "| bicubic | 24.00 dB | 0.500 | 5.00 | 40.0 | 1.00 | - |" in text
    assert "| real-esrgan | 24.00 dB | 0.500 | 5.00 | 40.0 | 1.00 | 8.25 |" in text
    assert "- niqe: -0.500 [-1.000, +0.250], p = 0.04" in text
    assert "Real-ESRGAN minus naosd" in text and "24 Kodak tiles of 256 x 256" in text
