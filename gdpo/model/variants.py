"""Several models on one base: its weights are in memory once, each model adds its own adapters.

    W' = W + (alpha / rank) B A      for each adapter file of the model in use, in merging order

W' is computed whenever a layer runs, by the arithmetic of `merge_adapters`, and dropped afterwards.
Outputs are therefore bit-identical to those of a model into which the adapters were merged on the
same device.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import parametrize

from gdpo.model.adapters import Change, changes
from gdpo.model.base import base_hashes
from gdpo.model.card import Card, Identity
from gdpo.model.checkpoints import ModelFolder, open_folder
from gdpo.model.naosd import NAOSD


class _Merged(nn.Module):
    """The weight of one layer with the adapters of the model in use."""

    def __init__(self, of_model: Mapping[str, Sequence[Change]], used: list[str]) -> None:
        super().__init__()
        self.of_model, self.used = of_model, used

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """`weight` after the changes of the model in use."""
        # Autocast would compute B A in bf16.
        with torch.autocast(weight.device.type, enabled=False):
            for change in self.of_model.get(self.used[0], ()):
                weight = change(weight)
        return weight


class Variants:
    """Models with adapters on the fp32 base `base`, which this object changes.

    Errors: ValueError naming the file of adapters that is incomplete or does not fit the base.
    """

    def __init__(self, base: NAOSD, models: Mapping[str, ModelFolder]) -> None:
        self._base, self._models = base, models
        self._used = [next(iter(models))]  # one list shared by all layers
        of_layer: dict[tuple[str, str], dict[str, list[Change]]] = {}
        device = next(base.parameters()).device
        for name, source in models.items():
            source.check_complete(base.targets)
            for adapters in source.adapters:
                for part, tensors in adapters.parts().items():
                    on_device = {key: tensor.to(device) for key, tensor in tensors.items()}
                    steps_of = changes(getattr(base, part), on_device, adapters.scaling)
                    for parameter, steps in steps_of.items():
                        own = of_layer.setdefault((part, parameter), {})
                        own.setdefault(name, []).extend(steps)
        for (part, parameter), of_model in of_layer.items():
            module, _, kind = parameter.rpartition(".")
            parametrize.register_parametrization(
                getattr(base, part).get_submodule(module), kind, _Merged(of_model, self._used)
            )

    def use(self, name: str) -> NAOSD:
        """The base as the model `name`, until the next call."""
        self._used[0] = name
        card = self._models[name].card
        base = self._base
        base.t_add, base.t_diff, base.prompt = card.t_add, card.t_diff, card.prompt
        return base


def load_models(
    folders: Mapping[str, Path],
    identities: Mapping[str, Identity],
    device: str,
    dtype: torch.dtype = torch.float32,
    base: Path | None = None,
) -> dict[str, Callable[[], NAOSD]]:
    """Models of kind naosd on `device`; a function per model makes it the one in use.

    folders, identities: by name; an identity that is a `Card` is that of one of our model folders,
    any other that of a diffusers folder. Our folders with one base share it: each base is hashed
    and read once. dtype: of the weights; models that share a base are in fp32. base: replaces the
    base that the cards name.
    Errors: ValueError naming the file.
    """
    hashes = cache(base_hashes)
    models: dict[str, Callable[[], NAOSD]] = {}
    of_base: dict[Path, dict[str, ModelFolder]] = {}
    for name, folder in folders.items():
        card = identities[name]
        if isinstance(card, Card):
            source = open_folder(folder, card, base, hashes)
            # Resolved, because cards name their base relative to their own folder.
            of_base.setdefault(source.base.resolve(), {})[name] = source
        else:
            models[name] = partial(_same, NAOSD.from_base(folder).to(device, dtype))
    for sources in of_base.values():
        # A model that is alone on its base is merged once; `Variants` would merge at every forward
        # pass.
        if len(sources) == 1:
            ((name, source),) = sources.items()
            models[name] = partial(_same, NAOSD.from_folder(source).to(device, dtype))
            continue
        assert dtype == torch.float32  # adapters are merged in fp32, at every forward pass
        first = next(iter(sources.values()))
        variants = Variants(NAOSD.from_base(first.base).to(device), sources)
        models |= {name: partial(variants.use, name) for name in sources}
    return {name: models[name] for name in folders}


def _same(model: NAOSD) -> NAOSD:
    return model
