"""The metrics by name, one row each; the name says which variant is computed.

A row has everything there is to say about a metric: adding a formula of ours, or a metric that
pyiqa computes without weights, touches this file only. With weights, gdpo/metrics/networks.py names
the functions of pyiqa that download or unpickle them. No torch at the top of this module, so that
`gdpo-sr --help` is quick.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gdpo.model.sources import IQA, TORCHVISION, VGG16, Source

OURS, PYIQA = "Apache-2.0 (ours)", "PolyForm Noncommercial 1.0.0 (pyiqa)"


@dataclass(frozen=True)
class Metric:
    """One row of the table.

    label: heading in tables; it names the variant of a metric that has several. variant: what
    exactly is computed. decimals: as printed for one image. formula: our own function of the images
    (and references), BCHW in [0, 1], that returns B values; None for a network. pyiqa: name of
    pyiqa's metric, None for our own code; options: differences from pyiqa's defaults. weights:
    files below torch.hub's folder ($TORCH_HOME/hub) and where they come from. min_side: least
    height and width in pixels. double: computed in float64. batched: images of a batch are computed
    together. per_set: one value for two sets of images, none per image.
    """

    label: str
    variant: str
    higher_is_better: bool
    needs_reference: bool
    decimals: int = 3
    formula: Callable[..., Any] | None = None
    pyiqa: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Source] = field(default_factory=dict)
    min_side: int = 1
    double: bool = True
    batched: bool = False
    per_set: bool = False

    @property
    def licence(self) -> str:
        """Licence of the code that computes the metric."""
        return OURS if self.pyiqa is None else PYIQA


def _formula(name: str) -> Callable[..., Any]:
    """A function of fidelity.py or formulas.py, imported at its first call: torch is slow."""

    def compute(*images: Any) -> Any:
        from gdpo.metrics import fidelity, formulas

        module = fidelity if hasattr(fidelity, name) else formulas
        return getattr(module, name)(*images)

    return compute


# MANIQA has two checkpoints: KonIQ for GDPO's reward, PIPAL for the published tables. NIQE has two
# parameter files: ours ships and fits small crops, the published one gives published values.
# Formulas go image by image: the planes of one image stay in the processor's cache, and those of a
# batch are memory that the system hands out page by page (benchmarks/metrics.py).
METRICS = {
    "psnr_y": Metric(
        label="PSNR-Y",
        variant="PSNR in dB of Y (BT.601 video range, not rounded), no border crop",
        higher_is_better=True,
        needs_reference=True,
        decimals=2,
        formula=_formula("psnr_y"),
    ),
    "ssim_y": Metric(
        label="SSIM-Y",
        variant="SSIM of Y (BT.601 video range, rounded), 11x11 Gaussian, no border crop",
        higher_is_better=True,
        needs_reference=True,
        formula=_formula("ssim_y"),
        min_side=11,
    ),
    "ms_ssim": Metric(
        label="MS-SSIM",
        variant="MS-SSIM of Y (YIQ, rounded), product of five scales",
        higher_is_better=True,
        needs_reference=True,
        formula=_formula("ms_ssim"),
        min_side=161,
    ),
    "gmsd": Metric(
        label="GMSD",
        variant="GMSD of Y (YIQ)",
        higher_is_better=False,
        needs_reference=True,
        formula=_formula("gmsd"),
        min_side=8,
    ),
    "vif": Metric(
        label="VIF",
        variant="VIF of the steerable pyramid, Y (YIQ)",
        higher_is_better=True,
        needs_reference=True,
        pyiqa="vif",
        min_side=41,
        double=False,
    ),
    "niqe": Metric(
        label="NIQE (own fit)",
        variant="NIQE with our pristine parameters, 32-pixel blocks: no published value compares",
        higher_is_better=False,
        needs_reference=False,
        min_side=32,
    ),
    "piqe": Metric(
        label="PIQE",
        variant="PIQE",
        higher_is_better=False,
        needs_reference=False,
        decimals=1,
        formula=_formula("piqe"),
        min_side=16,
    ),
    "entropy": Metric(
        label="Entropy",
        variant="entropy of grey levels in bits",
        higher_is_better=True,
        needs_reference=False,
        formula=_formula("entropy"),
    ),
    "niqe_pyiqa": Metric(
        label="NIQE (published)",
        variant="NIQE with the published pristine parameters (pyiqa's niqe), 96-pixel blocks",
        higher_is_better=False,
        needs_reference=False,
        pyiqa="niqe",
        weights={"pyiqa/niqe_modelparameters.mat": Source(0, *IQA)},
        min_side=96,
    ),
    "musiq": Metric(
        label="MUSIQ",
        variant="MUSIQ, KonIQ-10k weights",
        higher_is_better=True,
        needs_reference=False,
        decimals=2,
        pyiqa="musiq",
        weights={"pyiqa/musiq_koniq_ckpt-e95806b9.pth": Source(109_000_000, *IQA)},
        min_side=32,
        double=False,
        batched=True,
    ),
    "topiq_nr": Metric(
        label="TOPIQ",
        variant="TOPIQ without reference, KonIQ-10k weights, ResNet-50",
        higher_is_better=True,
        needs_reference=False,
        pyiqa="topiq_nr",
        weights={"pyiqa/cfanet_nr_koniq_res50-9a73138b.pth": Source(180_000_000, *IQA)},
        min_side=64,
        double=False,
        batched=True,
    ),
    "brisque": Metric(
        label="BRISQUE",
        variant="BRISQUE of Y (BT.601 video range), the authors' support vectors",
        higher_is_better=False,
        needs_reference=False,
        decimals=2,
        pyiqa="brisque",
        weights={"pyiqa/brisque_svm_weights.pth": Source(0, *IQA)},
        min_side=32,
    ),
    "maniqa_koniq": Metric(
        label="MANIQA (KonIQ)",
        variant="MANIQA, KonIQ-10k weights, 20 crops of a fixed grid",
        higher_is_better=True,
        needs_reference=False,
        pyiqa="maniqa",
        weights={"pyiqa/ckpt_koniq10k.pt": Source(543_000_000, *IQA)},
        min_side=224,
        double=False,
        batched=True,
    ),
    "maniqa_pipal": Metric(
        label="MANIQA (PIPAL)",
        variant="MANIQA, PIPAL weights, 20 crops of a fixed grid",
        higher_is_better=True,
        needs_reference=False,
        pyiqa="maniqa-pipal",
        weights={"pyiqa/MANIQA_PIPAL-ae6d356b.pth": Source(543_000_000, *IQA)},
        min_side=224,
        double=False,
        batched=True,
    ),
    "clipiqa": Metric(
        label="CLIPIQA",
        variant="CLIP-IQA, RN50, five pairs of prompts",
        higher_is_better=True,
        needs_reference=False,
        weights={"clip/RN50.pt": Source(256_000_000, "MIT", "OpenAI's CLIP, models of its README")},
        min_side=32,
        double=False,
        batched=True,
    ),
    "lpips_alex": Metric(
        label="LPIPS",
        variant="LPIPS v0.1, AlexNet",
        higher_is_better=False,
        needs_reference=True,
        weights={
            "pyiqa/LPIPS_v0.1_alex-df73285e.pth": Source(6_000, *IQA),
            "checkpoints/alexnet-owt-7be5be79.pth": Source(244_000_000, *TORCHVISION),
        },
        min_side=32,
        double=False,
        batched=True,
    ),
    "dists": Metric(
        label="DISTS",
        variant="DISTS, VGG16",
        higher_is_better=False,
        needs_reference=True,
        weights={
            "pyiqa/DISTS_weights-f5e65c96.pth": Source(12_000, *IQA),
            "checkpoints/vgg16-397923af.pth": VGG16,
        },
        min_side=32,
        double=False,
        batched=True,
    ),
    "afine": Metric(
        label="A-FINE",
        variant="A-FINE, scaled to 0..100 (pyiqa's afine_all_scale)",
        higher_is_better=False,
        needs_reference=True,
        pyiqa="afine_all_scale",
        weights={"pyiqa/afine.pth": Source(610_000_000, *IQA)},
        min_side=32,
        double=False,
    ),
    "fid": Metric(
        label="FID",
        variant="FID of the two sets (clean-fid's resizing, Inception of 2015-12-05)",
        higher_is_better=False,
        needs_reference=True,
        decimals=2,
        weights={"pyiqa/pt_inception-2015-12-05-6726825d.pth": Source(95_600_000, *IQA)},
        double=False,
        per_set=True,
    ),
}


def metric(name: str) -> Metric:
    """The row of a metric. ValueError for an unknown name, with the known ones."""
    if name not in METRICS:
        raise ValueError(f"unknown metric {name!r}; known are {', '.join(METRICS)}")
    return METRICS[name]


def weight_sources() -> dict[str, Source]:
    """{file name: source} of the weights of all metrics."""
    return {
        path.rpartition("/")[2]: source
        for metric in METRICS.values()
        for path, source in metric.weights.items()
    }
