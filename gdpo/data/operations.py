"""The single operations of the degradation, each a pure function of image and parameters.

Images are float32 (H, W, 3) RGB with values around [0, 1]: blur and resize may overshoot, noise and JPEG clip. The
means are fast on one core (OpenCV's filters, libjpeg-turbo); they compute what Real-ESRGAN and the GDPO release do,
but for real JPEG in place of a differentiable imitation of it (docs/fidelity.md).
"""

import cv2
import numpy as np
import torch

from gdpo.images import decode_image

MODES = ("area", "bilinear", "bicubic")
_INTERPOLATION = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}  # OpenCV's cubic has torch's a = -0.75
_LUMA = np.array([0.2989, 0.587, 0.114], dtype=np.float32)


def to_levels(image: np.ndarray) -> np.ndarray:
    """float in [0, 1] (clipped) -> uint8 levels, rounded."""
    levels: np.ndarray = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return levels


def blur(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Filter (H, W, 3) with an odd square kernel; borders are mirrored without repeating the edge pixel."""
    return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101)


def resize_by(image: np.ndarray, scale: float, mode: str) -> np.ndarray:
    """Resize (H, W, 3) to floor(H scale) x floor(W scale), at least one pixel; no antialiasing except in `area`.

    As in the release, the sampling positions follow `scale` itself, not the ratio of the rounded sizes.
    """
    height, width = (max(1, int(side * scale)) for side in image.shape[:2])
    if mode == "area" or scale == 1:
        return resize_to(image, (height, width), mode)
    # OpenCV rounds the size up where we round down; the pixels both have are the same. It needs a size of at least 1.
    if min(image.shape[:2]) * scale < 1:
        return resize_to(image, (height, width), mode)
    resized = cv2.resize(image, None, fx=scale, fy=scale, interpolation=_INTERPOLATION[mode])
    return resized[:height, :width]


def resize_to(image: np.ndarray, size: tuple[int, int], mode: str) -> np.ndarray:
    """Resize (H, W, 3) to `size` (H', W'). `area` averages all pixels a target pixel touches, with equal weights."""
    height, width = size
    if (height, width) == image.shape[:2]:
        return image
    if mode == "area":
        planes = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
        return np.ascontiguousarray(torch.nn.functional.adaptive_avg_pool2d(planes, size)[0].permute(1, 2, 0).numpy())
    return cv2.resize(image, (width, height), interpolation=_INTERPOLATION[mode])


def gaussian_noise(image: np.ndarray, sigma: float, gray: bool, rng: np.random.Generator) -> np.ndarray:
    """Add Gaussian noise of `sigma` / 255, the same in all channels if `gray`; clipped to [0, 1]."""
    shape = (*image.shape[:2], 1 if gray else 3)
    noise = rng.standard_normal(shape, dtype=np.float32)
    noise *= np.float32(sigma / 255)
    return np.clip(image + noise, 0, 1)


def poisson_noise(image: np.ndarray, scale: float, gray: bool, rng: np.random.Generator) -> np.ndarray:
    """Add `scale` times the Poisson noise of an image whose brightest value counts `poisson_peak` photons.

    If `gray`, the noise is that of the image's luma, the same in all channels. Clipped to [0, 1].
    """
    clean = (image @ _LUMA)[..., None] if gray else image
    levels = to_levels(clean)
    peak = poisson_peak(levels)
    photons = levels * (peak / 255)
    noise = (rng.poisson(photons) - photons) * (scale / peak)
    noisy: np.ndarray = np.clip(image + noise.astype(np.float32), 0, 1)
    return noisy


def poisson_peak(levels: np.ndarray) -> int:
    """The number of different values in a uint8 image, raised to a power of two."""
    different = int(np.count_nonzero(np.bincount(levels.reshape(-1), minlength=256)))
    return 1 << (different - 1).bit_length()


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Through JPEG and back: baseline, 4:2:0, libjpeg's quality scale 1..100."""
    sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
    bgr = cv2.cvtColor(to_levels(image), cv2.COLOR_RGB2BGR)
    data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality, *sampling])[1]
    return decode_image(data.tobytes()).astype(np.float32) / 255
