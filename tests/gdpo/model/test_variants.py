"""Models that share a base: the same bits as apart, and the base read and hashed once."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gdpo.config import Lora
from gdpo.model.card import IDENTITIES, read_identity
from gdpo.model.checkpoints import Adapters, save_model
from gdpo.model.naosd import NAOSD
from gdpo.model.sampling import super_resolve
from gdpo.model.variants import load_models
from gdpo.seeds import torch_generator
from tests import tiny

LORA = Lora(rank=2, alpha=4)
CHAINS = {"naosd": ["naosd"], "gdpo": ["naosd", "gdpo"], "control": ["naosd", "control"]}


def adapters(name: str) -> Adapters:
    """Adapters whose B is not zero; those of `naosd` also replace conv_in and change the VAE."""
    model = tiny.model()
    model.unet_roles.add("policy", LORA, seed=0, train_full=name == "naosd")
    parts = {"unet": model.unet_roles}
    if name == "naosd":
        model.vae_roles.add("policy", LORA, seed=0)
        parts["vae"] = model.vae_roles
    tensors = {
        f"{part}.{key}": p.detach()
        + 0.1 * torch.randn(p.shape, generator=torch_generator(name, part, key))
        for part, roles in parts.items()
        for key, p in roles.parameters("policy").items()
    }
    return Adapters(name, tensors, LORA)


@pytest.fixture(scope="module")
def folders(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three model folders on one base."""
    root = tmp_path_factory.mktemp("models")
    made = {name: adapters(name) for name in CHAINS}
    for index, (name, chain) in enumerate(CHAINS.items()):
        save_model(
            root / name,
            tiny_base,
            [made[each] for each in chain],
            IDENTITIES[name],
            t_add=200 + index,
            t_diff=100 + index,
            prompt=name,
        )
    return {name: root / name for name in CHAINS}


def together(folders: dict[str, Path]) -> dict[str, Callable[[], NAOSD]]:
    identities = {name: read_identity(folder) for name, folder in folders.items()}
    return load_models(folders, identities, "cpu")


def image(model: NAOSD, precision: Any) -> torch.Tensor:
    x = torch.rand(1, 3, 30, 32, generator=torch_generator("x"))
    return super_resolve(model, x, [(0, "a")], color_fix="none", precision=precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_switching_gives_the_bits_of_models_loaded_apart(
    folders: dict[str, Path], precision: str
) -> None:
    models = together(folders)
    apart = {
        name: image(NAOSD.from_pretrained(folder), precision) for name, folder in folders.items()
    }
    for name in ["gdpo", "naosd", "control", "gdpo"]:
        model = models[name]()
        assert (model.t_add, model.t_diff, model.prompt)[2] == name
        assert torch.equal(image(model, precision), apart[name])
    assert not torch.equal(apart["gdpo"], apart["control"])
    assert not torch.equal(apart["gdpo"], apart["naosd"])


def test_the_base_is_in_memory_once_and_its_files_are_hashed_once(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: Counter[str] = Counter()
    digest = hashlib.file_digest

    def counted(file: Any, name: str) -> Any:
        hashed[Path(file.name).name] += 1
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    models = together(folders)
    assert len({id(model()) for model in models.values()}) == 1
    # Of the base those of the UNet and of the VAE; and every folder's own adapters.
    assert hashed.pop("diffusion_pytorch_model.safetensors") == 2
    adapters = [path.name for folder in folders.values() for path in folder.glob("*.safetensors")]
    assert hashed == Counter(adapters)
    plain = sum(p.numel() for p in tiny.model().parameters())
    assert sum(p.numel() for p in models["gdpo"]().parameters()) == plain


def test_a_folder_that_stands_alone_is_loaded_merged(
    folders: dict[str, Path], tiny_base: Path
) -> None:
    found = together({"gdpo": folders["gdpo"], "plain": tiny_base})
    assert torch.equal(
        image(found["gdpo"](), "fp32"), image(NAOSD.from_pretrained(folders["gdpo"]), "fp32")
    )
    assert found["plain"]() is found["plain"]() is not found["gdpo"]()


def test_adapters_of_another_shape_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    card = json.loads((folders["gdpo"] / "model.json").read_text())
    card["adapters"][1]["rank"] = 3
    for path in folders["gdpo"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    card["base"] = str((folders["gdpo"] / card["base"]).resolve())
    (tmp_path / "model.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=r"gdpo.safetensors: .* has rank 2, and model.json says 3"):
        together({"naosd": folders["naosd"], "gdpo": tmp_path})
