"""Tags of training pairs and of a benchmark's images, with RAM and DAPE made very small."""

from pathlib import Path
from typing import Any

import pytest
import torch

from gdpo.config import Config
from gdpo.data.shards import enlarge
from gdpo.images import to_tensor
from gdpo.model import sampling
from gdpo.model.card import IDENTITIES
from gdpo.model.naosd import NAOSD
from gdpo.released.tagger import import_tagger
from gdpo.tagger.tagger import Tagger
from gdpo.upscale import resolver
from gdpo.upscale.protocol import Settings
from gdpo.upscale.resolver import NAOSDResolver
from tasks.files import tags
from tasks.stages import evaluate
from tests import tiny
from tests.gdpo.tagger import released_tagger

SETTINGS: Any = {"color_fix": "none", "precision": "fp32"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models/tagger, whose thresholds lie where the tiny pictures differ."""
    root = tmp_path_factory.mktemp("root")
    source = released_tagger.write(root / "ckp")
    import_tagger(source, root / "models/first", dape=root / "ckp/DAPE.pth")
    medians = []
    for dape in (False, True):
        tagger = Tagger.from_folder(root / "models/first", dape=dape)
        rows = torch.cat([tagger.probabilities(views(index)[int(dape)]) for index in range(4)])
        medians.append(rows.quantile(0.5, dim=0))
    # Three tags tell HR images apart, three the LR ones.
    limits = torch.cat([medians[0][:3], medians[1][3:]])
    (root / "ckp/ram_tag_list_threshold.txt").write_text(
        "".join(f"{limit}\n" for limit in limits.tolist())
    )
    import_tagger(source, root / "models/tagger", dape=root / "ckp/DAPE.pth")
    return root


def views(index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The HR image and the enlarged LR image of a tiny pair, (1, 3, 32, 32)."""
    pair = tiny.pair(index)
    up = enlarge(pair.lr, pair.hr.shape[:2], pair.degradation["enlarge"])
    return to_tensor(pair.hr)[None], to_tensor(up)[None]


def config(kind: str) -> Config:
    return tiny.settings(model={"tagger": "models/tagger"}, degrade={"tags": kind})


def found(root: Path, kind: str) -> list[str | None]:
    return [
        pair.tags
        for pair in tags.tagged((tiny.pair(i) for i in range(4)), kind, "models/tagger", root)
    ]


def test_training_pairs_are_tagged_by_the_patch_that_the_key_names(root: Path) -> None:
    ram, with_dape = (
        Tagger.from_folder(root / "models/tagger", dape=dape) for dape in (False, True)
    )
    hr = [ram.tags(views(i)[0])[0] for i in range(4)]
    lr = [with_dape.tags(views(i)[1])[0] for i in range(4)]
    assert found(root, "hr") == hr and found(root, "lr") == lr and found(root, "none") == [None] * 4
    assert hr != lr and len(set(hr)) > 1  # otherwise the lines above say nothing


def test_tags_change_nothing_else_of_a_pair(root: Path) -> None:
    (pair,) = tags.tagged(iter([tiny.pair(1)]), "hr", "models/tagger", root)
    plain = tiny.pair(1)
    assert (pair.id, pair.degradation, pair.detail_share) == (
        plain.id,
        plain.degradation,
        plain.detail_share,
    )
    assert (pair.hr == plain.hr).all() and (pair.lr == plain.lr).all()


def test_a_tagger_that_is_not_there_is_named_with_the_way_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"models/tagger/tags.json: no such file; `gdpo-sr import-weights ram_swin_large",
    ):
        found(tmp_path, "hr")
    assert tags.load(None, tmp_path, dape=True) is None


def test_evaluation_has_the_tagger_of_the_configuration_and_none_without(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        resolver, "super_resolve", lambda *args, **options: seen.append(options["prompts"])
    )
    lr = views(2)[1]
    for settings in (config("none"), tiny.settings()):
        evaluate.make_upscalers(settings, root, {"naosd": tiny.model()})["naosd"](lr, [(0, "a")])
    tagger = Tagger.from_folder(root / "models/tagger", dape=True)
    assert seen == [[f"{tagger.tags(lr)[0]}, sharp"], None]


def test_evaluation_puts_the_tags_of_the_enlarged_image_before_the_models_prompt(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: list[str] = []
    model: NAOSD = tiny.model()
    embed = model.embed
    monkeypatch.setattr(model, "embed", lambda texts: (prompts.extend(texts), embed(texts))[1])
    tagger = tags.load("models/tagger", root, dape=True)
    assert tagger is not None
    lr = views(2)[1].expand(2, -1, -1, -1)
    settings = Settings(**SETTINGS, tagger=tagger)
    image = NAOSDResolver(IDENTITIES["naosd"], lambda: model, settings).batch(
        lr, [(0, "a"), (0, "b")]
    )
    expected = tagger.tags(lr[:1])[0]
    assert expected and prompts == [f"{expected}, sharp"] * 2
    again = sampling.super_resolve(model, lr, [(0, "a"), (0, "b")], prompts=prompts[:2], **SETTINGS)
    assert torch.equal(image, again)
