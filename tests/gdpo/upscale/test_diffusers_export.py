"""Exported folders and LoRA files in the pipeline of diffusers."""

import ast
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from peft import PeftModel

from gdpo import NAOSD, NAOSDPipeline
from gdpo.config import Lora
from gdpo.model.adapters import unet_targets, vae_targets
from gdpo.model.card import IDENTITIES
from gdpo.model.checkpoints import Adapters, save_model
from gdpo.released.export import LORA_FILE, export_lora, export_merged
from tests import tiny
from tests.gdpo.upscale.pipelines import of, quiet, whole


def adapters(model: NAOSD, name: str, parts: dict[str, list[str]]) -> Adapters:
    """A LoRA of rank 2 on the modules of each network."""
    generator, tensors = torch.Generator().manual_seed(len(name)), {}
    for part, modules in parts.items():
        for module in modules:
            weight = getattr(model, part).get_submodule(module).weight
            a = torch.randn(2, *weight.shape[1:], generator=generator)
            b = torch.randn(weight.shape[0], 2, *[1] * (weight.ndim - 2), generator=generator)
            tensors[f"{part}.{module}.lora_A"] = a / weight[0].numel()
            tensors[f"{part}.{module}.lora_B"] = b
    return Adapters(name, tensors, Lora(rank=2, alpha=4))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """Model folders naosd/ and gdpo/; merged/ and other/ (GDPO merged), pipelines; lora/ of GDPO's
    on NAOSD.
    """
    root, model = tmp_path_factory.mktemp("models"), tiny.model()
    unet, vae = unet_targets(model.unet), vae_targets(model.vae)
    chain = [
        adapters(model, "naosd", {"unet": unet, "vae": vae}),
        adapters(model, "gdpo", {"unet": unet}),
    ]
    for count, name in enumerate(("naosd", "gdpo"), 1):
        save_model(
            root / name,
            tiny_base,
            chain[:count],
            IDENTITIES[name],
            t_add=250,
            t_diff=100,
            prompt="sharp",
        )
    export_merged(root / "naosd", root / "merged")
    export_merged(root / "gdpo", root / "other")
    export_lora(root / "gdpo", root / "lora")
    return root


# The exported folders.
@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where diffusers copies the code of a pipeline to; not the user's own cache."""
    from diffusers.utils import dynamic_modules_utils as utils

    monkeypatch.setattr(utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    path = sys.path[:]
    yield tmp_path / "modules"
    sys.path[:] = path
    for name in [name for name in sys.modules if name.startswith("diffusers_modules")]:
        del sys.modules[name]


def load(folder: Path) -> Any:
    return quiet(NAOSDPipeline.from_pretrained(folder))


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() < 1e-5)


def test_diffusers_loads_the_exported_folder_by_its_own_code(models: Path, modules: Path) -> None:
    pipe = quiet(DiffusionPipeline.from_pretrained(models / "merged", trust_remote_code=True))
    assert type(pipe).__name__ == "NAOSDPipeline" and not isinstance(pipe, NAOSDPipeline)
    assert torch.equal(whole(pipe), whole(of(NAOSD.from_pretrained(models / "naosd"))))
    assert torch.equal(whole(pipe), whole(load(models / "merged")))


def test_the_exported_code_needs_nothing_of_gdpo(models: Path) -> None:
    tree = ast.parse((models / "merged/pipeline.py").read_text())
    names = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [])
        + [alias.name for alias in node.names if isinstance(node, ast.Import)]
    }
    assert names - set(sys.stdlib_module_names) == {"torch", "diffusers", "numpy", "PIL"}


def test_pipe_load_lora_weights(models: Path) -> None:
    pipe, wanted = load(models / "merged"), whole(load(models / "other"))
    before = whole(pipe)
    pipe.load_lora_weights(models / "lora")
    assert same(whole(pipe), wanted) and not same(before, wanted)
    pipe.unload_lora_weights()
    assert torch.equal(whole(pipe), before)


def test_unet_load_lora_adapter(models: Path) -> None:
    pipe = load(models / "merged")
    pipe.unet.load_lora_adapter(models / "lora", prefix="unet", weight_name=LORA_FILE)
    assert same(whole(pipe), whole(load(models / "other")))


def test_peft_from_pretrained(models: Path) -> None:
    pipe = load(models / "merged")
    pipe.unet = PeftModel.from_pretrained(pipe.unet, models / "lora")
    assert same(whole(pipe), whole(load(models / "other")))


def test_a_lora_on_another_base_is_refused(models: Path) -> None:
    message = "this LoRA was trained on naosd@sha256:[0-9a-f]{64}, which this pipeline is not"
    pipe = load(models / "other")
    before = whole(pipe)
    with pytest.raises(ValueError, match=message):
        pipe.load_lora_weights(models / "lora")
    assert torch.equal(whole(pipe), before)  # and it is not left on
    pipe.unet.load_lora_adapter(models / "lora", prefix="unet", weight_name=LORA_FILE)
    with pytest.raises(ValueError, match=message):
        whole(pipe)
    pipe = load(models / "other")
    PeftModel.from_pretrained(pipe.unet, models / "lora")
    with pytest.raises(ValueError, match=message):
        whole(pipe)


def test_a_lora_trained_on_the_merged_folder_belongs_on_it(models: Path, tmp_path: Path) -> None:
    model = NAOSD.from_pretrained(models / "merged")
    own = adapters(model, "gdpo", {"unet": unet_targets(model.unet)})
    shutil.copytree(models / "merged", tmp_path / "base")
    save_model(
        tmp_path / "gdpo",
        tmp_path / "base",
        [own],
        IDENTITIES["gdpo"],
        t_add=250,
        t_diff=100,
        prompt="sharp",
    )
    export_lora(tmp_path / "gdpo", tmp_path / "lora")
    pipe = load(models / "merged")
    pipe.load_lora_weights(tmp_path / "lora")
    assert same(whole(pipe), whole(load(models / "other")))
