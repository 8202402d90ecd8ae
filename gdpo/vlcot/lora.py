"""LoRA on the trunk: what one GPU of 80 GB can train of the full size.

    trainable(trunk, lora, seed)   the linear layers of attention and MLP get adapters, all else is
                                   frozen; returns the parameters that are trained
    merge(trunk)                   the adapters added to their layers, and gone

W + alpha / rank B A;  A ~ N(0, (1 / rank)^2), drawn by its own name; B = 0. Output and embeddings
stay: their rows are the vocabulary's. The released code trains all weights, on six GPUs.
"""

import warnings

import torch
from torch import nn

from gdpo.config.model import Lora
from gdpo.seeds import torch_generator
from gdpo.vlcot.trunk import Trunk

LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def trainable(trunk: Trunk, lora: Lora | None, seed: int) -> dict[str, nn.Parameter]:
    """The parameters to be trained, by name: all, or those of new adapters.

    lora: rank and alpha of adapters; the trunk's own weights are frozen then.
    """
    if lora is None:
        return dict(trunk.named_parameters())
    from peft import LoraConfig, inject_adapter_in_model  # slow to import

    trunk.requires_grad_(False)
    wanted = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(LAYERS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, on a model class that it does not know
        inject_adapter_in_model(wanted, trunk)
    adapters = {name: p for name, p in trunk.named_parameters() if ".lora_" in name}
    with torch.no_grad():
        for name, parameter in adapters.items():
            if ".lora_A." in name:
                drawn = torch.randn(parameter.shape, generator=torch_generator(seed, "lora", name))
                parameter.copy_(drawn / lora.rank)
    return adapters


def merge(trunk: Trunk) -> None:
    """Add the adapters to the layers that they are on, and remove them."""
    from peft.tuners.lora import LoraLayer

    for parent in list(trunk.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, LoraLayer):
                layer.merge()
                setattr(parent, name, layer.get_base_layer())
    trunk.requires_grad_(True)
