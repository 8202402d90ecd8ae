"""LoRA roles on one frozen base network.

The roles are `policy`, `fake` (VSD's score of the generator) and none (reference, real score).

    targets   the released rule: convolutions, attention and feed-forward projections; no norms,
              biases or time embeddings
    roles     all adapter layers share one list of active roles, so switching roles is one list
              assignment, without a loop over 258 modules, a change of `requires_grad` or a second
              copy of the UNet
    conv_in   is also trained in full when NAOSD is pretrained (released code); each role may own
              a copy

On SD2.1-base at rank 4 the rule gives 258 UNet modules (4,055,712 parameters) and 32 VAE-encoder
modules (369,356).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from gdpo.config import Lora
from gdpo.seeds import torch_generator

UNET_NEEDLES = (
    "to_k",
    "to_q",
    "to_v",
    "to_out.0",
    "conv",
    "proj_out",
    "proj_in",
    "ff.net.2",
    "ff.net.0.proj",
)
VAE_NEEDLES = ("to_k", "to_q", "to_v", "to_out.0", "conv")


def _weights(module: nn.Module, needles: tuple[str, ...]) -> list[str]:
    """Names of the modules whose `.weight` the released rule selects.

    The rule skips every name that contains "bias" or "norm".
    """
    names = [
        name.removesuffix(".weight")
        for name, _ in module.named_parameters()
        if name.endswith(".weight")
    ]
    return [
        name for name in names if "norm" not in name and any(needle in name for needle in needles)
    ]


def unet_targets(unet: nn.Module) -> list[str]:
    """The UNet modules that carry LoRA (released code): 258 on SD2.1-base."""
    return _weights(unet, UNET_NEEDLES)


def vae_targets(vae: nn.Module) -> list[str]:
    """The VAE encoder modules that carry LoRA, `quant_conv` included (released code).

    There are 32 on SD2.1-base.
    """
    return [
        name
        for name in _weights(vae, VAE_NEEDLES)
        if name.startswith("encoder.") or name == "quant_conv"
    ]


class RoleConv(nn.Module):
    """A convolution of which each role may own a trainable copy of weight and bias.

    A role without a copy uses the frozen base.
    """

    def __init__(self, base: nn.Conv2d, active: list[str]) -> None:
        super().__init__()
        self.weight, self.bias = base.weight, base.bias
        self.stride, self.padding = base.stride, base.padding
        self.active = active
        self.weights, self.biases = nn.ParameterDict(), nn.ParameterDict()

    def own(self, role: str) -> None:
        """Give `role` a trainable copy of the base weight and bias."""
        assert self.bias is not None
        self.weights[role] = nn.Parameter(self.weight.detach().clone())
        self.biases[role] = nn.Parameter(self.bias.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve x (B, C, H, W) with the active role's weights."""
        role = next((name for name in self.active if name in self.weights), None)
        weight, bias = (
            (self.weight, self.bias) if role is None else (self.weights[role], self.biases[role])
        )
        return F.conv2d(x, weight, bias, self.stride, self.padding)


class Roles:
    """The LoRA roles of one network (`unet` or `vae`).

    Construction freezes the network's own weights. `add` injects the adapters of a new role; `use`
    activates one role (or none) inside a `with` block. full: name of a convolution that roles may
    train in full, or None.
    """

    def __init__(self, network: nn.Module, targets: list[str], *, full: str | None = None) -> None:
        self.network = network.requires_grad_(False)
        self.targets = targets
        self.active: list[str] = []
        self.full = full
        self._layers: dict[str, LoraLayer] = {}
        self._plain_conv: nn.Conv2d | None = None
        self._role_conv: RoleConv | None = None

    def add(self, role: str, lora: Lora, *, seed: int, train_full: bool = False) -> None:
        """Inject the adapters of `role`: A ~ N(0, (1/rank)^2), B = 0 (peft's "gaussian").

        A is drawn from the generator of (seed, role, module name). train_full: also give the role
        its own copy of the `full` convolution.
        """
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            target_modules=self.targets,
            init_lora_weights="gaussian",
        )
        # peft would warn about earlier roles, which it records here.
        vars(self.network).pop("peft_config", None)
        if self.full is not None and self._plain_conv is not None:
            # peft derives the new adapter's shape from the base layer, so it needs the plain one.
            self._layers[self.full].base_layer = self._plain_conv
        inject_adapter_in_model(config, self.network, adapter_name=role)
        self._layers = {n: m for n, m in self.network.named_modules() if isinstance(m, LoraLayer)}
        for name, layer in self._layers.items():
            layer._active_adapter = self.active  # one list shared by all layers
            for part in (layer.lora_A[role], layer.lora_B[role]):
                part.float()  # also on a bf16 base: in bf16 small updates would round to zero
            a = layer.lora_A[role].weight
            noise = torch.randn(a.shape, generator=torch_generator(seed, "lora", role, name))
            with torch.no_grad():
                a.copy_(noise / lora.rank)
        if self.full is not None:
            layer = self._layers[self.full]
            if self._role_conv is None:
                self._plain_conv = layer.base_layer
                self._role_conv = RoleConv(layer.base_layer, self.active)
            layer.base_layer = self._role_conv
        if train_full and self._role_conv is not None:
            self._role_conv.own(role)
        # Injection changes `requires_grad`, so set it again: true for the adapters of every role.
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(
                any(f".{known}" in name for known in self._known()) and self._is_adapter(name)
            )

    def _known(self) -> set[str]:
        return {role for layer in self._layers.values() for role in layer.lora_A}

    @staticmethod
    def _is_adapter(name: str) -> bool:
        return any(part in name for part in (".lora_A.", ".lora_B.", ".weights.", ".biases."))

    @contextmanager
    def use(self, role: str | None) -> Iterator[None]:
        """Activate one role, or none (the frozen base), inside the `with` block."""
        before = self.active[:]
        self.active[:] = [] if role is None else [role]
        try:
            yield
        finally:
            self.active[:] = before

    def parameters(self, role: str) -> dict[str, nn.Parameter]:
        """The trainable parameters of `role` by name.

        The names are `<module>.lora_A|lora_B`, and `<module>.weight|bias` for a full copy.
        """
        found: dict[str, nn.Parameter] = {}
        for name, layer in self._layers.items():
            found[f"{name}.lora_A"] = layer.lora_A[role].weight
            found[f"{name}.lora_B"] = layer.lora_B[role].weight
        if self._role_conv is not None and role in self._role_conv.weights:
            found[f"{self.full}.weight"] = self._role_conv.weights[role]
            found[f"{self.full}.bias"] = self._role_conv.biases[role]
        return found


def merge_adapters(network: nn.Module, tensors: dict[str, torch.Tensor], scaling: float) -> None:
    """Merge adapters into the plain weights of `network`, in fp32 and in place.

    tensors: `<module>.lora_A|lora_B`, merged as weight + scaling * B A, and `<module>.weight|bias`,
    which replace the parameter; named as in `Roles.parameters`. scaling: alpha / rank.
    Errors: ValueError naming a module that the network lacks, whose shapes do not fit, or of whose
    pair lora_A, lora_B one is missing.
    """
    modules = dict(network.named_modules())
    weights = dict(network.named_parameters())
    with torch.no_grad():
        for name, value in tensors.items():
            module_name, _, kind = name.rpartition(".")
            if kind not in ("lora_A", "lora_B", "weight", "bias") or (
                kind == "lora_B" and f"{module_name}.lora_A" not in tensors
            ):
                raise ValueError(
                    f"adapter {name}: not a pair of lora_A and lora_B, nor a weight or bias"
                )
            if kind in ("weight", "bias"):
                if name not in weights or weights[name].shape != value.shape:
                    raise ValueError(
                        f"the base model has no parameter {name} of shape {tuple(value.shape)}"
                    )
                weights[name].copy_(value)
        for name, a in tensors.items():
            module_name, _, kind = name.rpartition(".")
            if kind != "lora_A":
                continue
            module, b = modules.get(module_name), tensors.get(f"{module_name}.lora_B")
            if module is None or b is None or not isinstance(module, nn.Linear | nn.Conv2d):
                raise ValueError(f"the base model has no layer {module_name} for this adapter")
            weight = module.weight
            if (
                a.shape[1:] != weight.shape[1:]
                or b.shape[:2] != (weight.shape[0], a.shape[0])
                or b[0, 0].numel() != 1
            ):
                raise ValueError(
                    f"adapter {module_name} has shapes {tuple(a.shape)}, {tuple(b.shape)}: not "
                    "this base model's"
                )
            delta = (b.float().flatten(1) @ a.float().flatten(1)) * scaling
            module.weight.copy_(
                (module.weight.float() + delta.reshape(module.weight.shape)).to(module.weight.dtype)
            )
