"""Score images with any metric of the pipeline, by name (table: gdpo/metrics/table.py).

    scores = score(["psnr_y", "niqe"], image_BCHW, reference_BCHW)
    # {"psnr_y": float64 B, "niqe": float64 B}

The formulas, NIQE, LPIPS, DISTS, CLIP-IQA and FID's network are our own code; the others are
pyiqa's. pyiqa's licence is PolyForm Noncommercial. It is an extra (`gdpo-sr[metrics]`), imported
only for its own metrics. Nothing is downloaded: a metric with missing weights raises an error that
names the file and its folder. For metrics without weights, the score of an image is bit-identical
whatever other images are in the batch.

Shapes: B batch, C channels, H W pixels; images are RGB in [0, 1].
"""

import importlib.util
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib import metadata
from pathlib import Path

import torch
from torch.nn import functional

from gdpo.checks import check_image, check_same_shape
from gdpo.files import sha256, shipped
from gdpo.metrics import clipiqa, dists, lpips, networks
from gdpo.metrics.maniqa import maniqa
from gdpo.metrics.niqe import Pristine, niqe, read_niqe
from gdpo.metrics.table import METRICS, metric

__all__ = [
    "METRICS",
    "NIQE_FILE",
    "check_available",
    "files",
    "higher_is_better",
    "missing",
    "network",
    "score",
    "score_computed",
    "unusable",
    "versions",
]

NIQE_FILE = shipped("assets/tiny-sd/niqe.mat")
AFINE_MULTIPLE = 32
PYIQA_MISSING = "pyiqa is not installed; `pip install 'gdpo-sr[metrics]'` does"


def _inception(device: torch.device | str) -> torch.nn.Module:
    # It imports torchvision: CPU seconds that only FID needs.
    from gdpo.metrics import inception

    return inception.build(device)


# Networks of ours that read published weights.
OWN: dict[str, Callable[[torch.device | str], torch.nn.Module]] = {
    "lpips_alex": partial(lpips.build, "alex"),
    "dists": dists.build,
    "clipiqa": clipiqa.build,
    "fid": _inception,
}


def higher_is_better(name: str) -> bool:
    """Whether a larger value of the metric means a better image. ValueError for an unknown name."""
    return metric(name).higher_is_better


def files(name: str) -> list[Path]:
    """The files that a metric reads, whether they exist or not. ValueError for an unknown name."""
    return (
        [NIQE_FILE] if name == "niqe" else [networks.hub() / file for file in metric(name).weights]
    )


def missing(names: Sequence[str]) -> dict[str, str]:
    """The metrics that lack pyiqa, or files: {name: text naming what is missing, and its place}."""
    lacking = {
        name: [file for file in files(name) if not file.is_file() or not file.stat().st_size]
        for name in names
    }
    reasons = {
        name: "; ".join(f"{file.name} is missing; put it into {file.parent}" for file in absent)
        for name, absent in lacking.items()
        if absent
    }
    if importlib.util.find_spec("pyiqa") is None:
        reasons |= {name: PYIQA_MISSING for name in names if metric(name).pyiqa}
    return reasons


def check_available(names: Sequence[str]) -> None:
    """Check that all metrics are known and their files exist.

    Errors: ValueError naming the first metric that is not, its missing files and their folders.
    """
    for name, reason in missing(names).items():
        raise ValueError(f"metric {name}: {reason}")


def unusable(names: Sequence[str], device: torch.device | str = "cpu") -> dict[str, str]:
    """The metrics that cannot be computed: {name: reason}.

    A file may be missing, broken, or hold the weights of another network. The check builds the
    networks, which `score` then reuses, so a broken file is known before the first image.
    """
    reasons = missing(names)
    for name in names:
        if name not in reasons and metric(name).weights:
            try:
                network(name, device)
            except ValueError as error:
                reasons[name] = str(error)
    return reasons


def versions(names: Sequence[str]) -> dict[str, str]:
    """A text per metric, for provenance: our code or pyiqa's version, and the SHA-256 of its files.

    Two values of a metric are comparable only if these texts are equal.
    Errors: ValueError as `check_available`.
    """
    check_available(names)
    return {
        name: "; ".join(
            # The time of change is part of the key, so that a replaced file is hashed again and an
            # unchanged one only once.
            [_origin(name), *(_hash(file, file.stat().st_mtime_ns) for file in files(name))]
        )
        for name in names
    }


def _origin(name: str) -> str:
    return "gdpo" if metric(name).pyiqa is None else f"pyiqa {metadata.version('pyiqa')}"


@cache
def _hash(file: Path, changed: int) -> str:
    del changed
    return f"{file.name} sha256 {sha256(file)}"


def score(
    names: Sequence[str], image: torch.Tensor, reference: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """Score a batch: {name: float64 tensor of shape B on the image's device}, in the order of
    `names`.

    image, reference: BCHW, RGB in [0, 1]. reference: may be None if no metric needs one.
    Errors: ValueError for an unknown metric, a metric of sets of images (fid: see
    gdpo/metrics/fid.py), missing weights, a missing reference, wrong shapes, values out of range,
    or too small an image.
    """
    check_image("image", image)
    if reference is not None:
        check_image("reference", reference)
    return score_computed(names, image, reference)


def score_computed(
    names: Sequence[str], image: torch.Tensor, reference: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """As `score`, for images that were just computed.

    Their values are not checked, so the CPU does not wait for the device.
    """
    check_available(names)
    if reference is not None:
        check_same_shape("image", image, "reference", reference)
    for name in names:
        entry = metric(name)
        if entry.per_set:
            raise ValueError(f"{name} compares two sets of images; it has no value per image")
        if entry.needs_reference and reference is None:
            raise ValueError(f"reference must be given: {name} compares with it")
        # Checked before the first metric runs: the fifth must not fail after the first four have
        # taken minutes.
        if min(image.shape[2:]) < entry.min_side:
            size = tuple(image.shape[2:])
            raise ValueError(
                f"image must have sides of at least {entry.min_side} pixels for {name}, got {size}"
            )
    with torch.no_grad():
        return {name: _score(name, image, reference) for name in names}


def _score(name: str, image: torch.Tensor, reference: torch.Tensor | None) -> torch.Tensor:
    entry = metric(name)
    if name == "niqe":
        pristine = _pristine(NIQE_FILE, NIQE_FILE.stat().st_mtime_ns)
        return torch.cat([niqe(one, pristine) for one in image.split(1)])
    images = [
        one for one in (image, reference if entry.needs_reference else None) if one is not None
    ]
    # Copies of the images: A-FINE normalises its arguments in place.
    inputs = [
        # Clamped because a decoder may overshoot by rounding, for which pyiqa's networks raise an
        # error or extrapolate.
        one.clamp(0, 1).to(torch.float64 if entry.double else torch.float32)
        for one in images
    ]
    module = entry.formula or network(name, image.device)
    if name.startswith("maniqa"):
        return maniqa(module, inputs[0]).double()
    if name == "afine":
        inputs = [_multiple(one, AFINE_MULTIPLE) for one in inputs]
    groups = (
        [tuple(inputs)] if entry.batched else zip(*(one.split(1) for one in inputs), strict=True)
    )
    return torch.cat([module(*group).double().reshape(-1) for group in groups])


def _multiple(image: torch.Tensor, multiple: int) -> torch.Tensor:
    """Enlarge to the next sides divisible by `multiple`, bicubic, as A-FINE's own script does."""
    height, width = (-(-side // multiple) * multiple for side in image.shape[2:])
    if (height, width) == tuple(image.shape[2:]):
        return image
    return functional.interpolate(image, (height, width), mode="bicubic", align_corners=False)


@cache
def _pristine(path: Path, changed: int) -> Pristine:
    """The NIQE parameters in `path`; `changed`, its time of change, is a key of the cache."""
    del changed
    return read_niqe(path)


def network(name: str, device: torch.device | str) -> torch.nn.Module:
    """The network of a metric, on the device.

    The module is cached, and rebuilt when one of its files has changed.
    """
    return _built(
        name, torch.device(device), tuple((file, file.stat().st_mtime_ns) for file in files(name))
    )


@cache
def _built(name: str, device: torch.device, read: tuple[tuple[Path, int], ...]) -> torch.nn.Module:
    del read
    if name in OWN:
        return OWN[name](device)
    pyiqa_name = metric(name).pyiqa
    assert pyiqa_name is not None
    return networks.build(pyiqa_name, device, **metric(name).options)
