"""The seam between the systems: a folder's card says what loads it, and it is read once."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gdpo import NAOSD, load_super_resolver
from gdpo.config import Lora
from gdpo.model.card import IDENTITIES, Identity, read_identity
from gdpo.model.checkpoints import Adapters, save_model
from gdpo.model.sampling import super_resolve
from gdpo.upscale.pipeline import upscale
from gdpo.upscale.protocol import Settings
from tests import tiny

PHOTO = np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)


@pytest.fixture
def folder(tiny_base: Path, tmp_path: Path) -> Path:
    """A GDPO-SR on the tiny base."""
    lora = Lora(rank=2, alpha=4)
    model = tiny.model()
    model.unet_roles.add("policy", lora, seed=0)
    tensors = {
        f"unet.{key}": p.detach() + 0.1 for key, p in model.unet_roles.parameters("policy").items()
    }
    save_model(
        tmp_path / "gdpo",
        tiny_base,
        [Adapters("gdpo", tensors, lora)],
        IDENTITIES["gdpo"],
        t_add=250,
        t_diff=100,
        prompt="sharp",
    )
    return tmp_path / "gdpo"


def stated(folder: Path, **values: object) -> None:
    """Change keys of the card; ... removes one."""
    path = folder / "model.json"
    content = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: v for key, v in content.items() if v is not ...}))


def test_a_photograph_and_a_batch_are_those_of_the_model(folder: Path) -> None:
    settings = Settings(color_fix="adain", t_add=100, tile=64, words="two boats")
    found = load_super_resolver(folder, settings=settings)
    model = NAOSD.from_pretrained(folder)
    assert (found.scale, found.identity.label, found.identity.role) == (4.0, "GDPO-SR", "reward")
    image = upscale(model, PHOTO, seed=3, t_add=100, color_fix="adain", tile=64, words="two boats")
    made = found.photo(PHOTO, seed=3)
    assert np.array_equal(made.image, image) and made.text == "two boats, sharp"
    assert found.photo(PHOTO, size=(20, 30)).image.shape == (20, 30, 3)
    x = torch.rand(2, 3, 32, 32)
    keys = [(0, "a"), (0, "b")]
    expected = super_resolve(model, x, keys, color_fix="adain", precision="fp32")
    assert torch.equal(found.batch(x, keys), expected)


def test_the_card_is_opened_once_and_the_base_hashed_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    open_ = Path.open

    def counted(self: Path, *args: object, **options: object) -> object:
        opened.append(str(self))
        return open_(self, *args, **options)

    monkeypatch.setattr(Path, "open", counted)
    load_super_resolver(folder)
    assert opened.count(str(folder / "model.json")) == 1
    weights = [path for path in opened if path.endswith("diffusion_pytorch_model.safetensors")]
    assert len(weights) == len(set(weights)) == 2


def test_an_old_card_is_a_naosd_with_the_role_of_its_last_adapters(folder: Path) -> None:
    stated(folder, kind=..., label=..., role=...)
    old = read_identity(folder)
    assert (old.kind, old.label, old.role) == ("naosd", "GDPO-SR", "reward")
    assert load_super_resolver(folder).identity.label == "GDPO-SR"


def test_a_diffusers_folder_is_a_naosd_without_adapters(tiny_base: Path) -> None:
    found = load_super_resolver(tiny_base).identity
    assert found == Identity(kind="naosd", label=tiny_base.name, role="baseline")


def test_a_kind_that_this_version_does_not_know_is_named(folder: Path) -> None:
    stated(folder, kind="other", t_add=..., more=1)
    assert read_identity(folder).kind == "other"
    with pytest.raises(ValueError, match=r"model.json: kind is 'other', and this version runs"):
        load_super_resolver(folder)
    stated(folder, role="best")
    with pytest.raises(ValueError, match=r"model.json: role is 'best'"):
        load_super_resolver(folder)
    with pytest.raises(ValueError, match=r"nowhere: no such model folder"):
        load_super_resolver(folder / "nowhere")
