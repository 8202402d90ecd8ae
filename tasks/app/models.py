"""The models that the page offers: those of this folder and the one that ships."""

import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from gdpo.errors import one_line
from gdpo.files import shipped
from gdpo.model.card import NAME, Card, Identity, read_identity
from gdpo.upscale.chains import VlcotResolver
from gdpo.upscale.protocol import Settings, SuperResolver
from gdpo.upscale.resolver import KINDS, NAOSDResolver, load_super_resolver
from tasks.paths import GDPO, MODEL_DIR
from tasks.tools.upscale_work import SHIPPED


def local_models(folder: Path) -> dict[str, Path]:
    """Names and folders of the models below `folder`/models, then the one that ships.

    The first is the default of `gdpo-sr upscale` without --model. A card that cannot be read is
    reported on stderr, and its model left out.
    """
    cards = [path for depth in ("*", "*/*") for path in folder.glob(f"{MODEL_DIR}/{depth}/{NAME}")]
    trained = folder / GDPO
    models = {}
    for path in sorted((card.parent for card in cards), key=lambda path: (path != trained, path)):
        try:
            identity = read_identity(path)
        except ValueError as error:
            sys.stderr.write(f"gdpo-sr: left out: {one_line(error)}\n")
            continue
        if identity.kind in KINDS:
            models[f"{identity.label} ({path.relative_to(folder)})"] = path
    own = shipped(SHIPPED)
    return models | {f"{read_identity(own).label} (ships with gdpo-sr)": own}


def strength(identity: Identity) -> int | None:
    """The timestep at which the model adds noise; None if it adds none that can be chosen."""
    return identity.t_add if isinstance(identity, Card) else None


def resolver(folder: Path, device: str, settings: Settings) -> SuperResolver:
    """The model in `folder` with these settings; the last model stays in memory.

    Errors: ValueError naming the file and its defect.
    """
    model = _loaded(folder, device)
    assert isinstance(model, NAOSDResolver | VlcotResolver)
    return replace(model, settings=settings)


@lru_cache(maxsize=1)
def _loaded(folder: Path, device: str) -> SuperResolver:
    return load_super_resolver(folder, device=device)
