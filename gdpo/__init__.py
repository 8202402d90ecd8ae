"""GDPO-SR: one-step diffusion super-resolution with group preferences.

The public names of the package; each is imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gdpo.color import adain_color_fix, wavelet_color_fix
    from gdpo.data.degrade import degrade
    from gdpo.model.naosd import NAOSD
    from gdpo.preference.objectives import gdpo_loss
    from gdpo.pretrain.vsd import fake_score_loss, vsd_loss
    from gdpo.released.read import load_released_checkpoint
    from gdpo.rewards.attribute_aware import attribute_aware_reward, group_advantage
    from gdpo.rewards.detail import detail_share
    from gdpo.upscale.diffusers_pipeline import NAOSDPipeline
    from gdpo.upscale.resolver import load_super_resolver

# Importing torch and diffusers takes seconds; `gdpo-sr --help` must not.
_HOME = {
    "NAOSD": "gdpo.model.naosd",
    "NAOSDPipeline": "gdpo.upscale.diffusers_pipeline",
    "adain_color_fix": "gdpo.color",
    "attribute_aware_reward": "gdpo.rewards.attribute_aware",
    "degrade": "gdpo.data.degrade",
    "detail_share": "gdpo.rewards.detail",
    "fake_score_loss": "gdpo.pretrain.vsd",
    "gdpo_loss": "gdpo.preference.objectives",
    "group_advantage": "gdpo.rewards.attribute_aware",
    "load_released_checkpoint": "gdpo.released.read",
    "load_super_resolver": "gdpo.upscale.resolver",
    "vsd_loss": "gdpo.pretrain.vsd",
    "wavelet_color_fix": "gdpo.color",
}
__all__ = [
    "NAOSD",
    "NAOSDPipeline",
    "adain_color_fix",
    "attribute_aware_reward",
    "degrade",
    "detail_share",
    "fake_score_loss",
    "gdpo_loss",
    "group_advantage",
    "load_released_checkpoint",
    "load_super_resolver",
    "vsd_loss",
    "wavelet_color_fix",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'gdpo' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
