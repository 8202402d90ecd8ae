"""Argument checks: each raises a one-line `ValueError` that names the argument.

Public functions check shapes and values. Internal code does not check values again, because every
check of values makes the CPU wait for the device.

Shapes: B batch, C channels, H height, W width.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

# Clamping in another precision may be off in the last bit; pyiqa allows the same tolerance.
RANGE_TOLERANCE = 1e-6


class NotFinite(ValueError):
    """An argument has NaN or infinite values; a training loop reports this as divergence."""


def check_tensor(name: str, tensor: object, shape: str) -> torch.Tensor:
    """Return `tensor` if it is a finite floating-point tensor of shape `shape`.

    shape: one letter per dimension, such as "BCHW"; no dimension may be empty. Otherwise ValueError
    (`NotFinite` for NaN or infinite values).
    """
    checked = check_shape(name, tensor, shape)
    _limits(name, checked)
    return checked


def check_shape(name: str, tensor: object, shape: str) -> torch.Tensor:
    """Return `tensor` if it is a floating-point tensor of shape `shape`; values are not checked.

    shape: as in `check_tensor`. Otherwise ValueError.
    """
    if not isinstance(tensor, torch.Tensor):
        raise ValueError(
            f"{name} must be a torch.Tensor of shape {shape}, got {type(tensor).__name__}"
        )
    if tensor.ndim != len(shape) or 0 in tensor.shape:
        raise ValueError(
            f"{name} must have shape {shape} and no empty dimension, got {tuple(tensor.shape)}"
        )
    if not tensor.is_floating_point():
        raise ValueError(f"{name} must be a floating-point tensor, got {tensor.dtype}")
    return tensor


def _limits(name: str, tensor: torch.Tensor) -> tuple[float, float]:
    """Least and greatest value in one pass, which also detects NaN (`NotFinite`)."""
    # NaN propagates through aminmax, so two numbers answer three questions in one pass.
    least, most = (float(end) for end in torch.aminmax(tensor.detach()))
    if not math.isfinite(least) or not math.isfinite(most):
        raise NotFinite(f"{name} has values that are NaN or infinite")
    return least, most


def check_image(name: str, image: object, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
    """Return `image` if it is a finite floating-point RGB batch BCHW (C = 3) in [low, high].

    Otherwise ValueError (`NotFinite` for NaN or infinite values).
    """
    tensor = check_shape(name, image, "BCHW")
    if tensor.shape[1] != 3:
        raise ValueError(
            f"{name} must have 3 channels (RGB) in shape BCHW, got {tuple(tensor.shape)}"
        )
    least, most = _limits(name, tensor)
    if least < low - RANGE_TOLERANCE or most > high + RANGE_TOLERANCE:
        raise ValueError(
            f"{name} must lie in [{low:g}, {high:g}], got values from {least:.6g} to {most:.6g}"
        )
    return tensor


def check_picture(name: str, image: object) -> None:
    """Raise ValueError unless `image` is a finite floating-point RGB image (3, H, W) in [0, 1].

    An array or a tensor, without an empty dimension. `NotFinite` for NaN or infinite values.
    """
    if not isinstance(image, np.ndarray | torch.Tensor):
        raise ValueError(
            f"{name} must be an array or tensor of shape (3, H, W), got {type(image).__name__}"
        )
    if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise ValueError(
            f"{name} must have shape (3, H, W) and no empty dimension, got {tuple(image.shape)}"
        )
    if not (
        image.is_floating_point()
        if isinstance(image, torch.Tensor)
        else np.issubdtype(image.dtype, np.floating)
    ):
        raise ValueError(f"{name} must be of a floating-point type, in [0, 1], got {image.dtype}")
    least, most = float(image.min()), float(image.max())
    if not math.isfinite(least) or not math.isfinite(most):
        raise NotFinite(f"{name} has values that are NaN or infinite")
    if least < -RANGE_TOLERANCE or most > 1 + RANGE_TOLERANCE:
        raise ValueError(f"{name} must lie in [0, 1], got values from {least:.6g} to {most:.6g}")


def check_same_shape(name: str, tensor: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    """Raise ValueError unless both tensors have the same shape."""
    if tensor.shape != other.shape:
        raise ValueError(
            f"{name} and {other_name} must have the same shape, got {tuple(tensor.shape)} and "
            f"{tuple(other.shape)}"
        )


def check_path(name: str, path: object) -> Path:
    """Return `path` as a Path. ValueError unless it is a string or a Path."""
    if not isinstance(path, str | Path):
        raise ValueError(f"{name} must be a path, got {path!r}")
    return Path(path)


def check_device(name: str, device: Any) -> None:
    """Raise ValueError unless `device` names a torch device that is available on this machine."""
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"{name} must be a device of torch such as 'cpu' or 'cuda:0', got {device!r}"
        ) from error
    try:
        available = kind != "cuda" or torch.cuda.is_available()
        torch.empty(0, device=device if available else "cpu")
    except (RuntimeError, AssertionError, NotImplementedError):
        available = False
    if not available:
        raise ValueError(f"{name} is {str(device)!r}, and torch finds no such device here")
