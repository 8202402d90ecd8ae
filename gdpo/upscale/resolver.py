"""The interface between the systems: a model of any kind takes pictures and returns pictures.

    model = load_super_resolver("models/gdpo")
    model.photo(photo, seed=0).image         `gdpo-sr upscale`
    model.batch(enlarged_BCHW, keys)         the stage evaluate

model.json states the kind: naosd, or vlcot (RealSR-R1: gdpo/upscale/chains.py). Each has its own
class with the methods of `SuperResolver`, and its loader in `KINDS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from gdpo.checks import check_device, check_path
from gdpo.model.card import NAME, Identity, read_identity
from gdpo.model.naosd import NAOSD
from gdpo.model.prompts import compose
from gdpo.model.sampling import super_resolve
from gdpo.model.variants import load_models
from gdpo.seeds import Key
from gdpo.upscale.pipeline import upscale
from gdpo.upscale.protocol import Settings, SuperResolver, UpscaledPhoto


@dataclass(frozen=True)
class NAOSDResolver:
    """A model of kind naosd. model: returns the network, in use for this model."""

    identity: Identity
    model: Callable[[], NAOSD]
    settings: Settings
    scale: float = 4.0

    def batch(self, enlarged_BCHW: torch.Tensor, keys: list[Key]) -> torch.Tensor:
        """As in `SuperResolver`."""
        model, settings, prompts = self.model(), self.settings, None
        if settings.tagger is not None:
            # All samples are of one image, so one tagging serves them.
            tags = settings.tagger.tags(enlarged_BCHW[:1])[0]
            prompts = [compose(tags, model.prompt)] * len(keys)
        return super_resolve(
            model,
            enlarged_BCHW,
            keys,
            color_fix=settings.color_fix,
            precision=settings.precision,
            prompts=prompts,
        )

    def photo(
        self,
        photo: NDArray[Any],
        *,
        scale: float | None = None,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        on_tile: Callable[[int, int], None] = lambda done, total: None,
    ) -> UpscaledPhoto:
        """As in `SuperResolver`."""
        prompts: list[str] = []
        image = upscale(
            self.model(),
            photo,
            scale=self.scale if scale is None else scale,
            size=size,
            seed=seed,
            t_add=self.settings.t_add,
            color_fix=self.settings.color_fix,
            tile=self.settings.tile,
            tagger=self.settings.tagger,
            words=self.settings.words,
            on_prompt=prompts.append,
            on_tile=on_tile,
        )
        return UpscaledPhoto(image, prompts[0])


def load_super_resolver(
    folder: str | Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    base: str | Path | None = None,
    settings: Settings | None = None,
) -> SuperResolver:
    """The model in `folder`, of the kind that its model.json states, ready to run on `device`.

    A folder in diffusers layout is a NAOSD without adapters. dtype: of the weights. base: replaces
    the base model that model.json names; a model of kind vlcot has none.
    Errors: ValueError naming the argument, or the file and its defect.
    """
    below = None if base is None else check_path("base", base)
    folders = {"it": check_path("folder", folder)}
    identities = _identities(folders)
    check_device("device", device)
    load = KINDS[identities["it"].kind]
    return load(folders, identities, device, settings or Settings(), dtype, below)["it"]


def load_super_resolvers(
    folders: Mapping[str, Path], *, device: str, settings: Settings
) -> dict[str, SuperResolver]:
    """Several models by name, in fp32; those of one base share its weights in memory.

    Errors: as `load_super_resolver`.
    """
    identities = _identities(folders)
    resolvers: dict[str, SuperResolver] = {}
    for kind, load in KINDS.items():
        own = {name: folder for name, folder in folders.items() if identities[name].kind == kind}
        if own:
            resolvers |= load(own, identities, device, settings, torch.float32, None)
    return {name: resolvers[name] for name in folders}


def _load_naosd(
    folders: Mapping[str, Path],
    identities: Mapping[str, Identity],
    device: str,
    settings: Settings,
    dtype: torch.dtype,
    base: Path | None,
) -> dict[str, SuperResolver]:
    models = load_models(folders, identities, device, dtype, base)
    return {
        name: NAOSDResolver(identities[name], model, settings) for name, model in models.items()
    }


def _load_vlcot(
    folders: Mapping[str, Path],
    identities: Mapping[str, Identity],
    device: str,
    settings: Settings,
    dtype: torch.dtype,
    base: Path | None,
) -> dict[str, SuperResolver]:
    del identities  # its own card has more
    if base is not None:
        folder = next(iter(folders.values()))
        raise ValueError(f"base: {folder} is of kind vlcot and has no base; leave it out")
    # Imported here, so that what runs models of kind naosd alone neither loads nor depends on it.
    from gdpo.upscale.chains import load_chains

    return load_chains(folders, device=device, settings=settings, dtype=dtype)


Loader = Callable[
    [Mapping[str, Path], Mapping[str, Identity], str, Settings, torch.dtype, Path | None],
    dict[str, SuperResolver],
]
# Loads models of a kind by name; the arguments are those of `load_super_resolver`.
KINDS: dict[str, Loader] = {"naosd": _load_naosd, "vlcot": _load_vlcot}


def _identities(folders: Mapping[str, Path]) -> dict[str, Identity]:
    """What the cards state. ValueError naming the card of a kind that is not known here."""
    identities = {name: read_identity(folder) for name, folder in folders.items()}
    for name, identity in identities.items():
        if identity.kind not in KINDS:
            raise ValueError(
                f"{folders[name] / NAME}: kind is {identity.kind!r}, and this version runs "
                f"{' and '.join(KINDS)}; update it"
            )
    return identities
