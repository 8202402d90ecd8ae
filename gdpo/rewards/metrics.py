"""Every image metric the pipeline uses, by one name each that says which variant it is.

    scores = score(["psnr_y", "niqe"], image_BCHW, reference_BCHW)      # {"psnr_y": float64 B, "niqe": float64 B}

psnr_y, ssim_y and niqe are ours; the others are pyiqa's formulas and networks (its licence is PolyForm Noncommercial;
it is imported only when one of its metrics is asked for, which takes seconds). Nothing is ever downloaded: a metric
whose weights are absent is an error that says which file goes where. For all metrics that need no weights the same
image gives the same bytes, whatever else is in the batch.

Shapes: B batch, C channels, H W pixels; images are RGB in [0, 1].
"""

import contextlib
import importlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from gdpo.checks import check_image, check_same_shape
from gdpo.rewards.fidelity import SSIM_WINDOW, psnr_y, ssim_y
from gdpo.rewards.niqe import Pristine, niqe, read_niqe

NIQE_FILE = Path(__file__).resolve().parents[2] / "assets" / "tiny-sd" / "niqe.mat"


@dataclass(frozen=True)
class Metric:
    """One row of the table.

    min_side: least height and width in pixels; pyiqa: name and options of pyiqa's metric, None for ours; weights:
    files under torch.hub's folder ($TORCH_HOME/hub); double: computed in float64.
    """

    higher_is_better: bool
    needs_reference: bool
    min_side: int = 1
    pyiqa: tuple[str, dict[str, Any]] | None = None
    weights: tuple[str, ...] = ()
    double: bool = True


METRICS = {
    # Ours, or pyiqa's formulas: no weights.
    "psnr_y": Metric(True, True),
    "ssim_y": Metric(True, True, SSIM_WINDOW),
    "ms_ssim": Metric(True, True, 161, ("ms_ssim", {"color_space": "ycbcr"})),
    "gmsd": Metric(False, True, 8, ("gmsd", {})),
    "vif": Metric(True, True, 41, ("vif", {}), (), False),
    "niqe": Metric(False, False, 32),
    "piqe": Metric(False, False, 16, ("piqe", {})),
    "entropy": Metric(True, False, 1, ("entropy", {})),
    # Networks. MANIQA has two checkpoints: KonIQ for GDPO's reward, PIPAL for the published tables.
    "musiq": Metric(True, False, 32, ("musiq", {}), ("pyiqa/musiq_koniq_ckpt-e95806b9.pth",), False),
    "maniqa_koniq": Metric(True, False, 224, ("maniqa", {}), ("pyiqa/ckpt_koniq10k.pt",), False),
    "maniqa_pipal": Metric(True, False, 224, ("maniqa-pipal", {}), ("pyiqa/MANIQA_PIPAL-ae6d356b.pth",), False),
    "lpips_alex": Metric(
        *(False, True, 32, ("lpips", {})),
        ("pyiqa/LPIPS_v0.1_alex-df73285e.pth", "checkpoints/alexnet-owt-7be5be79.pth"),
        False,
    ),
    "dists": Metric(
        *(False, True, 32, ("dists", {})),
        ("pyiqa/DISTS_weights-f5e65c96.pth", "checkpoints/vgg16-397923af.pth"),
        False,
    ),
    "clipiqa": Metric(True, False, 32, ("clipiqa", {}), ("clip/RN50.pt",), False),
}


def higher_is_better(name: str) -> bool:
    """Whether a larger value of the metric means a better image. ValueError for an unknown name."""
    return _metric(name).higher_is_better


def check_available(names: Sequence[str]) -> None:
    """Raise ValueError naming the first metric that is unknown or whose file is missing, that file and its place."""
    for name in names:
        for file in _files(name):
            if not file.is_file():
                raise ValueError(f"metric {name}: {file.name} is missing; put it into {file.parent}")


def score(names: Sequence[str], image: torch.Tensor, reference: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """Score a batch: {name: float64 tensor of shape B on the image's device}, in the order of `names`.

    image, reference: BCHW, RGB in [0, 1]; the reference may be None when no metric needs it. Raises ValueError for an
    unknown metric, missing weights, a missing reference, wrong shapes, values out of range, or too small an image.
    """
    check_available(names)
    check_image("image", image)
    if reference is not None:
        check_image("reference", reference)
        check_same_shape("image", image, "reference", reference)
    for name in names:
        if _metric(name).needs_reference and reference is None:
            raise ValueError(f"reference must be given: {name} compares with it")
        if min(image.shape[2:]) < _metric(name).min_side:
            least, size = _metric(name).min_side, tuple(image.shape[2:])
            raise ValueError(f"image must have sides of at least {least} pixels for {name}, got {size}")
    with torch.no_grad():
        return {name: _score(name, image, reference) for name in names}


def _score(name: str, image: torch.Tensor, reference: torch.Tensor | None) -> torch.Tensor:
    metric = _metric(name)
    if name == "niqe":
        return niqe(image, _pristine(NIQE_FILE, NIQE_FILE.stat().st_mtime_ns))
    if metric.pyiqa is None:
        assert reference is not None
        return {"psnr_y": psnr_y, "ssim_y": ssim_y}[name](image, reference)
    images = [one for one in (image, reference if metric.needs_reference else None) if one is not None]
    inputs = [one.to(torch.float64 if metric.double else torch.float32).clamp(0, 1) for one in images]
    # Formulas go image by image: sums over a batch are rounded in another order than over one image.
    groups = [tuple(inputs)] if metric.weights else zip(*(one.split(1) for one in inputs), strict=True)
    network = _network(name, image.device)
    value = torch.cat([network(*group).double().reshape(-1) for group in groups])
    # An all-black image is divided by its maximum inside PIQE; any other image without active blocks scores 100.
    return value.nan_to_num(nan=100.0) if name == "piqe" else value


def _metric(name: str) -> Metric:
    if name not in METRICS:
        raise ValueError(f"unknown metric {name!r}; known are {', '.join(METRICS)}")
    return METRICS[name]


def _files(name: str) -> list[Path]:
    """The files a metric reads."""
    if name == "niqe":
        return [NIQE_FILE]
    return [Path(torch.hub.get_dir()) / file for file in _metric(name).weights]


@cache
def _pristine(path: Path, changed: int) -> Pristine:
    """The NIQE parameters, read again when the file has changed."""
    del changed
    return read_niqe(path)


@cache
def _network(name: str, device: torch.device) -> torch.nn.Module:
    """pyiqa's module without its wrapper, whose range check would copy every batch back from the device."""
    pyiqa_name, options = METRICS[name].pyiqa or (name, {})
    if name == "ms_ssim":  # pyiqa looks for a module of that name and, finding none, imports all its 60
        importlib.import_module("pyiqa.archs.ssim_arch")
    quiet = _no_download_by_timm() if pyiqa_name.startswith("maniqa") else contextlib.nullcontext()
    with warnings.catch_warnings(), quiet:
        warnings.simplefilter("ignore")  # deprecated names, and a file left open
        metric = importlib.import_module("pyiqa").create_metric(pyiqa_name, device=device, **options)
    network: torch.nn.Module = metric.net.eval()
    return network


@contextlib.contextmanager
def _no_download_by_timm() -> Iterator[None]:
    """MANIQA fetches an ImageNet ViT that its own checkpoint then overwrites; there is no switch for it."""
    timm: Any = importlib.import_module("timm")
    original = timm.create_model
    timm.create_model = lambda name, pretrained=False, **options: original(name, pretrained=False, **options)
    try:
        yield
    finally:
        timm.create_model = original
