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

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from gdpo.config import Lora
from gdpo.seeds import torch_generator

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

Change = Callable[[torch.Tensor], torch.Tensor]  # weight -> weight, of one layer
# Parts of parameter names, as released. "conv" also takes the shortcuts of residual blocks and the
# convolutions of up- and downsamplers; no entry takes a time embedding.
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
    # The decoder has none: NAOSD decodes with the base's own.
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
        # The same parameters, not copies: the frozen base is in memory once, whatever the number of
        # roles.
        self.weight, self.bias = base.weight, base.bias
        self.stride, self.padding = base.stride, base.padding
        # The list of `Roles` itself: `Roles.use` changes it in place, which reaches all layers at
        # once.
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
        # peft imports the model classes of transformers: a CPU second that only training needs.
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

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
            # B stays 0, so a new role computes exactly what the base does.
            noise = torch.randn(a.shape, generator=torch_generator(seed, "lora", role, name))
            with torch.no_grad():
                # peft would draw A from torch's global generator, so it would depend on which roles
                # were added before. Drawn by the module's name, it does not.
                a.copy_(noise / lora.rank)
        if self.full is not None:
            layer = self._layers[self.full]
            if self._role_conv is None:
                self._plain_conv = layer.base_layer
                self._role_conv = RoleConv(layer.base_layer, self.active)
            # The LoRA of conv_in adds to the role's full copy of it, as in the release, where both
            # train.
            layer.base_layer = self._role_conv
        if train_full and self._role_conv is not None:
            self._role_conv.own(role)
        # Injection changes `requires_grad`, so set it again: true for the adapters of every role.
        roles = {role for layer in self._layers.values() for role in layer.lora_A}
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(
                self._is_adapter(name) and any(f".{known}" in name for known in roles)
            )

    @staticmethod
    def _is_adapter(name: str) -> bool:
        return any(part in name for part in (".lora_A.", ".lora_B.", ".weights.", ".biases."))

    @contextmanager
    def use(self, role: str | None) -> Iterator[None]:
        """Activate one role, or none (the frozen base), inside the `with` block."""
        # A copy, because all layers share the list; nested blocks then restore the outer role, also
        # after an exception.
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
        parameters: dict[str, nn.Parameter] = {}
        for name, layer in self._layers.items():
            parameters[f"{name}.lora_A"] = layer.lora_A[role].weight
            parameters[f"{name}.lora_B"] = layer.lora_B[role].weight
        if self._role_conv is not None and role in self._role_conv.weights:
            parameters[f"{self.full}.weight"] = self._role_conv.weights[role]
            parameters[f"{self.full}.bias"] = self._role_conv.biases[role]
        return parameters


def recompute(roles: Roles) -> None:
    """Recompute the network's activations in the backward pass instead of keeping them.

    Less memory for more time, and the same values. `use` is left before the backward pass comes, so
    each block remembers the role that it ran with.
    """

    def run(block: nn.Module, *inputs: Any) -> Any:
        role = roles.active[0] if roles.active else None

        def again(*args: Any) -> Any:
            with roles.use(role):
                return block(*args)

        return checkpoint(again, *inputs, use_reentrant=False, preserve_rng_state=False)

    network: Any = roles.network
    network.enable_gradient_checkpointing(run)


def merge_adapters(network: nn.Module, tensors: dict[str, torch.Tensor], scaling: float) -> None:
    """Merge adapters into the plain weights of `network`, in fp32 and in place.

    Arguments and errors: as `changes`. Nothing is merged after an error.
    """
    with torch.no_grad():
        for name, steps in changes(network, tensors, scaling).items():
            parameter = network.get_parameter(name)
            for change in steps:
                parameter.copy_(change(parameter))


def changes(
    network: nn.Module, tensors: dict[str, torch.Tensor], scaling: float
) -> dict[str, list[Change]]:
    """What adapters do to the plain weights of `network`: by parameter, functions to apply in turn.

    tensors: `<module>.lora_A|lora_B`, merged as weight + scaling * B A, and `<module>.weight|bias`,
    which replace the parameter; named as in `Roles.parameters`. scaling: alpha / rank.
    Errors: ValueError naming a module that the network lacks, whose shapes do not fit, or of whose
    pair lora_A, lora_B one is missing.
    """
    modules = dict(network.named_modules())
    weights = dict(network.named_parameters())
    changes_of: dict[str, list[Change]] = {}
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
            # Replacements come before additions: the LoRA of a layer was trained on top of its full
            # copy.
            changes_of[name] = [partial(_replaced, value)]
    for name, a in tensors.items():
        module_name, _, kind = name.rpartition(".")
        if kind != "lora_A":
            continue
        module, b = modules.get(module_name), tensors.get(f"{module_name}.lora_B")
        if module is None or b is None or not isinstance(module, nn.Linear | nn.Conv2d):
            raise ValueError(f"the base model has no layer {module_name} for this adapter")
        if (
            # A has the layer's kernel and `rank` outputs, B a kernel of 1 x 1. Adapters of an SD
            # model of another width have the same names, and only their shapes tell.
            a.shape[1:] != module.weight.shape[1:]
            or b.shape[:2] != (module.weight.shape[0], a.shape[0])
            or b[0, 0].numel() != 1
        ):
            raise ValueError(
                f"adapter {module_name} has shapes {tuple(a.shape)}, {tuple(b.shape)}: not this "
                "base model's"
            )
        changes_of.setdefault(f"{module_name}.weight", []).append(partial(_added, a, b, scaling))
    return changes_of


def _replaced(value: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return value.to(weight.dtype)


def _added(a: torch.Tensor, b: torch.Tensor, scaling: float, weight: torch.Tensor) -> torch.Tensor:
    """weight + scaling * B A, computed in fp32."""
    # A convolution's LoRA is A, of the same kernel with `rank` outputs, then B, of 1 x 1: over the
    # flattened kernel their composition is a matrix product, as in linear layers.
    delta = (b.float().flatten(1) @ a.float().flatten(1)) * scaling
    return (weight.float() + delta.reshape(weight.shape)).to(weight.dtype)
