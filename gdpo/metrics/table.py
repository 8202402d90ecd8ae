"""The table of metrics; each name denotes one variant.

This module does not import torch, so that `--help` is quick.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Metric:
    """One row of the table.

    variant: description of the exact variant. pyiqa: name of pyiqa's metric; None for our own code.
    options: differences from pyiqa's defaults. weights: files in torch.hub's folder
    ($TORCH_HOME/hub). min_side: minimum height and width in pixels. double: computed in float64.
    batched: the images of a batch are computed together. per_set: one value for two sets of images
    instead of one per image.
    """

    variant: str
    higher_is_better: bool
    needs_reference: bool
    pyiqa: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    weights: tuple[str, ...] = ()
    min_side: int = 1
    double: bool = True
    batched: bool = False
    per_set: bool = False


def _network(
    variant: str,
    up: bool,
    reference: bool,
    pyiqa: str,
    *weights: str,
    min_side: int = 32,
    batched: bool = True,
) -> Metric:
    return Metric(variant, up, reference, pyiqa, {}, weights, min_side, False, batched)


# "True, True" means: higher is better, needs a reference. MANIQA has two checkpoints: KonIQ for
# GDPO's reward, PIPAL for the published tables. NIQE has two parameter files: ours ships with the
# repository and suits small crops; the published one reproduces published values.
METRICS = {
    # Our code or pyiqa's formulas, without files to download. Formulas are computed image by image,
    # because sums over a batch would round in another order.
    "psnr_y": Metric(
        "PSNR in dB of Y (BT.601 video range, not rounded), no border crop", True, True
    ),
    "ssim_y": Metric(
        "SSIM of Y (BT.601 video range, rounded), 11x11 Gaussian, no border crop",
        True,
        True,
        min_side=11,
    ),
    "ms_ssim": Metric(
        "MS-SSIM of Y (YIQ, rounded), product of five scales", True, True, "ms_ssim", min_side=161
    ),
    "gmsd": Metric("GMSD of Y (YIQ)", False, True, "gmsd", min_side=8),
    "vif": Metric(
        "VIF of the steerable pyramid, Y (YIQ)", True, True, "vif", min_side=41, double=False
    ),
    "niqe": Metric(
        "NIQE with our pristine parameters, 32-pixel blocks: no published value compares",
        False,
        False,
        min_side=32,
    ),
    "piqe": Metric("PIQE", False, False, "piqe", min_side=16),
    "entropy": Metric("entropy of grey levels in bits", True, False, "entropy"),
    # Metrics with files to download.
    "niqe_pyiqa": Metric(
        *(
            "NIQE with the published pristine parameters (pyiqa's niqe), 96-pixel blocks",
            False,
            False,
            "niqe",
        ),
        weights=("pyiqa/niqe_modelparameters.mat",),
        min_side=96,
    ),
    "musiq": _network(
        "MUSIQ, KonIQ-10k weights", True, False, "musiq", "pyiqa/musiq_koniq_ckpt-e95806b9.pth"
    ),
    "maniqa_koniq": _network(
        *(
            "MANIQA, KonIQ-10k weights, 20 crops of a fixed grid",
            True,
            False,
            "maniqa",
            "pyiqa/ckpt_koniq10k.pt",
        ),
        min_side=224,
    ),
    "maniqa_pipal": _network(
        *(
            "MANIQA, PIPAL weights, 20 crops of a fixed grid",
            True,
            False,
            "maniqa-pipal",
            "pyiqa/MANIQA_PIPAL-ae6d356b.pth",
        ),
        min_side=224,
    ),
    "clipiqa": _network(
        "CLIP-IQA, RN50, five pairs of prompts", True, False, "clipiqa", "clip/RN50.pt"
    ),
    "lpips_alex": _network(
        *("LPIPS v0.1, AlexNet", False, True, "lpips"),
        *("pyiqa/LPIPS_v0.1_alex-df73285e.pth", "checkpoints/alexnet-owt-7be5be79.pth"),
    ),
    "dists": _network(
        *(
            "DISTS, VGG16",
            False,
            True,
            "dists",
            "pyiqa/DISTS_weights-f5e65c96.pth",
            "checkpoints/vgg16-397923af.pth",
        ),
    ),
    "afine": _network(
        "A-FINE, scaled to 0..100 (pyiqa's afine_all_scale)",
        False,
        True,
        "afine_all_scale",
        "pyiqa/afine.pth",
        batched=False,
    ),
    "fid": Metric(
        *(
            "FID of the two sets (clean-fid's resizing, Inception of 2015-12-05)",
            False,
            True,
            "fid",
        ),
        weights=("pyiqa/pt_inception-2015-12-05-6726825d.pth",),
        double=False,
        per_set=True,
    ),
}


def metric(name: str) -> Metric:
    """The row of a metric. ValueError for an unknown name, with the known ones."""
    if name not in METRICS:
        raise ValueError(f"unknown metric {name!r}; known are {', '.join(METRICS)}")
    return METRICS[name]
