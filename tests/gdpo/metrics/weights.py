"""Files of weights in the layout of the published ones, with random content, a few hundred kB each.

Every matrix is a Hankel matrix: row i is the random vector of the file from its i-th entry on. A
file of torch keeps the vector only, so 500 MB of weights take 100 kB, and yet no two rows are
equal.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import torch
from torch import nn


def write_all(hub: Path) -> None:
    """Every file of gdpo/metrics/table.py below torch.hub's folder."""
    for folder in ("pyiqa", "clip", "checkpoints"):
        (hub / folder).mkdir(parents=True, exist_ok=True)
    for write in (musiq, topiq, brisque, maniqa, lpips, dists, clip, afine, inception, niqe):
        write(hub)


def musiq(hub: Path) -> None:
    from pyiqa.archs.musiq_arch import MUSIQ

    _save(hub / "pyiqa/musiq_koniq_ckpt-e95806b9.pth", MUSIQ(pretrained=False))


def topiq(hub: Path) -> None:
    from pyiqa.archs.topiq_arch import CFANet

    from gdpo.metrics.networks import offline

    with offline("topiq_arch"):
        network = CFANet(pretrained=False, use_ref=False)
    torch.save({"params": _state(network)}, hub / "pyiqa/cfanet_nr_koniq_res50-9a73138b.pth")


def brisque(hub: Path) -> None:
    pair = [_hankel((774,)), _hankel((774, 36))]
    torch.save(pair, hub / "pyiqa/brisque_svm_weights.pth")


def maniqa(hub: Path) -> None:
    from pyiqa.archs.maniqa_arch import MANIQA

    from gdpo.metrics.networks import offline

    with offline("maniqa_arch"):  # its constructor reads values: not on the meta device
        network = MANIQA(pretrained=False)
    for name in ("ckpt_koniq10k.pt", "MANIQA_PIPAL-ae6d356b.pth"):
        _save(hub / "pyiqa" / name, network)


def lpips(hub: Path, kind: str = "alex") -> None:
    import torchvision

    from gdpo.metrics.lpips import FILES

    widths = (64, 192, 384, 256, 256) if kind == "alex" else (64, 128, 256, 512, 512)
    state = {
        f"lin{i}.model.1.weight": _hankel((1, width, 1, 1), 0.02).abs()
        for i, width in enumerate(widths)
    }
    linear, backbone = (hub / file for file in FILES[kind])
    torch.save(state, linear)
    models = torchvision.models
    with torch.device("meta"):
        _save(backbone, models.alexnet() if kind == "alex" else models.vgg16())


def dists(hub: Path) -> None:
    import torchvision

    state = {name: _hankel((1, 1475, 1, 1)).abs() for name in ("alpha", "beta")}
    torch.save(state, hub / "pyiqa/DISTS_weights-f5e65c96.pth")
    with torch.device("meta"):
        _save(hub / "checkpoints/vgg16-397923af.pth", torchvision.models.vgg16())


def clip(hub: Path) -> None:
    """RN50 as a plain file of weights: OpenAI's own holds TorchScript."""
    from pyiqa.archs.clip_model import CLIP

    with torch.device("meta"):
        network = CLIP(1024, 224, (3, 4, 6, 3), 64, None, 77, 49408, 512, 8, 12)
    _save(hub / "clip/RN50.pt", network)


def afine(hub: Path) -> None:
    from pyiqa.archs import afine_arch, afineclip_model

    with torch.device("meta"):
        parts: dict[str, nn.Module] = {
            "finetuned_clip": afineclip_model.AFINECLIP(
                512, 224, 12, 768, 32, 77, 49408, 512, 8, 12
            ),
            "natural": afine_arch.AFINEQhead(),
            "fidelity": afine_arch.AFINEDhead(),
        }
    state: dict[str, Any] = {name: _state(part) for name, part in parts.items()}
    state["fidelity_scale"] = afine_arch.AFINENLM_FR_Fit_with_limit(
        yita3=0.5, yita4=0.15
    ).state_dict()
    state["natural_scale"] = afine_arch.AFINENLM_NR_Fit().state_dict()
    state["adapter"] = afine_arch.AFINELearnLambda().state_dict()
    torch.save(state, hub / "pyiqa/afine.pth")


def inception(hub: Path) -> None:
    from pyiqa.archs import inception as module

    original = module.load_pretrained_network
    module.load_pretrained_network = lambda *_: None
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a deprecated argument
            network = module.fid_inception_v3()
    finally:
        module.load_pretrained_network = original
    _save(hub / "pyiqa/pt_inception-2015-12-05-6726825d.pth", network)


def niqe(hub: Path) -> None:
    rng = np.random.default_rng(0)
    factor = 0.1 * rng.normal(size=(36, 36))
    content = {
        "mu_prisparam": rng.random((1, 36)),
        "cov_prisparam": factor @ factor.T + 0.1 * np.eye(36),
    }
    scipy.io.savemat(str(hub / "pyiqa/niqe_modelparameters.mat"), content)


def _save(path: Path, network: nn.Module) -> None:
    torch.save(_state(network), path)


def _state(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: _entry(name, value) for name, value in network.state_dict().items()}


def _entry(name: str, value: torch.Tensor) -> torch.Tensor:
    """Random weights that keep activations alive: fan-in scaled; variances and scales of norms near
    one.
    """
    if name.endswith("attn_mask"):
        return value
    if not value.is_floating_point():
        return torch.zeros_like(value, device="cpu") if value.is_meta else value
    if value.ndim < 2:
        around = float(name.endswith(("weight", "var")))
        return (around + 0.1 * _hankel(value.shape)).half().float()
    fan_in = value.numel() // value.shape[0]
    return _hankel(value.shape, ((2 if value.ndim == 4 else 0.5) / fan_in) ** 0.5)


def _hankel(shape: tuple[int, ...] | torch.Size, scale: float = 1.0) -> torch.Tensor:
    rest = int(np.prod(shape[1:])) if len(shape) else 1
    first = shape[0] if len(shape) else 1
    drawn = torch.randn(first + rest, generator=torch.Generator().manual_seed(0), device="cpu")
    vector = (scale * drawn).half().float()  # pyiqa rounds CLIP's weights, as published, to half
    inner = torch.empty(shape[1:], device="meta").stride()
    return vector.as_strided(shape, (1, *inner) if len(shape) else ())
