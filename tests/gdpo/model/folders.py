"""Adapters of the tiny model."""

from functools import cache

import torch

from gdpo.config import Lora
from gdpo.model.checkpoints import Adapters
from gdpo.seeds import torch_generator
from tests import tiny

LORA = Lora(rank=2, alpha=4)


@cache
def adapters(name: str = "naosd") -> Adapters:
    model = tiny.model()
    model.unet_roles.add("policy", LORA, seed=0, train_full=True)
    model.vae_roles.add("policy", LORA, seed=0)
    tensors = {}
    for net, roles in (("unet", model.unet_roles), ("vae", model.vae_roles)):
        for key, p in roles.parameters("policy").items():
            moved = p.detach() + 0.1 * torch.randn(
                p.shape, generator=torch_generator(name, net, key)
            )
            tensors[f"{net}.{key}"] = moved
    return Adapters(name, tensors, LORA)
