"""Prompt tags: of training pairs, computed by `degrade`; of a benchmark's images, computed at
evaluation.

    degrade.tags: hr     RAM on the HR patch (released code)         training pairs, stored in their
                         column `tags`
                  lr     RAM with DAPE on the enlarged LR patch
    model.tagger         RAM with DAPE on the enlarged LR image      evaluation and `gdpo-sr upscale
                         --tagger`

The tagger's folder is not a dependency in dvc.yaml, because it may be null and DVC allows no null
there. After replacing the tagger in that folder, run `dvc repro --force`.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gdpo.data.shards import Pair, enlarge
from gdpo.images import to_tensor
from tasks.run.training import device

if TYPE_CHECKING:
    from gdpo.tagger.tagger import Tagger


def load(folder: str | None, root: Path, *, dape: bool) -> "Tagger | None":
    """The tagger in `folder` (model.tagger) on the stage's device, or None if `folder` is None.

    Errors: ValueError naming a missing file.
    """
    if folder is None:
        return None
    from gdpo.tagger.tagger import Tagger

    return Tagger.from_folder(root / folder, dape=dape, device=str(device()))


def tagged(pairs: Iterator[Pair], kind: str, folder: str | None, root: Path) -> Iterator[Pair]:
    """The pairs with their tags; kind: degrade.tags. The pairs are tagged before the random flip,
    whereas the released code tags flipped pairs.
    """
    tagger = None if kind == "none" else load(folder, root, dape=kind == "lr")
    for pair in pairs:
        if tagger is None:
            yield pair
            continue
        seen = (
            pair.hr
            if kind == "hr"
            else enlarge(pair.lr, pair.hr.shape[:2], pair.degradation["enlarge"])
        )
        yield replace(pair, tags=tagger.tags(to_tensor(seen)[None])[0])
