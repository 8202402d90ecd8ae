"""NAOSDPipeline gives what NAOSD gives, and exported folders load with diffusers and peft alone."""

import ast
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload_with_hook
from diffusers import DDPMScheduler, DiffusionPipeline
from peft import PeftModel
from PIL import Image

from gdpo import NAOSD, NAOSDPipeline
from gdpo.color import color_fix
from gdpo.config import Lora
from gdpo.model.adapters import unet_targets, vae_targets
from gdpo.model.card import IDENTITIES
from gdpo.model.checkpoints import Adapters, save_model
from gdpo.model.sampling import draw_noise
from gdpo.prior.architecture import SCHEDULER
from gdpo.released.export import LORA_FILE, export_lora, export_merged
from gdpo.upscale import diffusers_pipeline
from gdpo.upscale.pipeline import upscale
from tests import tiny


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


@pytest.fixture
def pipe() -> NAOSDPipeline:
    return quiet(of(tiny.model()))


def of(model: NAOSD) -> NAOSDPipeline:
    parts = (model.vae, model.text_encoder, model.tokenizer, model.unet)
    scheduler = DDPMScheduler.from_config(SCHEDULER)
    return NAOSDPipeline(
        *parts, scheduler, t_add=model.t_add, t_diff=model.t_diff, prompt=model.prompt
    )


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def photo(seed: int = 0, side: int = 9) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side + 3, 3)).astype(np.uint8)


def whole(pipe: Any, seed: int = 0) -> torch.Tensor:
    """Samples of two images in [0, 1], of seeded noise, BCHW."""
    x = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(seed))
    found: torch.Tensor = pipe(
        x,
        scale=1,
        generator=torch.Generator().manual_seed(1),
        color_fix="none",
        output_type="pt",
    ).images
    return found


def test_the_pipeline_is_naosd_bit_for_bit(pipe: NAOSDPipeline) -> None:
    model = tiny.model()
    x = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    noise, posterior = draw_noise([("a",), ("b",)], model.latent_shape(32, 48))
    with torch.no_grad():
        ours = model(x * 2 - 1, model.embed(["sharp"] * 2), noise, posterior)
    options: dict[str, Any] = {"latents": noise, "posterior_noise": posterior, "scale": 1}
    image = pipe(x, color_fix="none", output_type="pt", **options).images
    assert torch.equal(image, ours / 2 + 0.5)
    less = pipe(x, color_fix="none", output_type="pt", t_add=50, **options).images
    assert not torch.equal(image, less)
    model.t_add = 50
    with torch.no_grad():
        ours = model(x * 2 - 1, model.embed(["sharp"] * 2), noise, posterior)
    assert torch.equal(less, ours / 2 + 0.5)


@pytest.mark.parametrize("kind", ["none", "adain", "wavelet"])
def test_a_photograph_is_that_of_upscale(pipe: NAOSDPipeline, kind: str) -> None:
    """Enlarged, padded, prompted and colour-corrected alike; 36 x 48 is no multiple of 8."""
    model, given = tiny.model(), photo()
    ours = upscale(model, given, seed=3, color_fix=kind, words="a lake", tile=1024)
    noise, posterior = draw_noise([("upscale", 3)], model.latent_shape(40, 48))
    for image in (given, Image.fromarray(given), [given], (given / 255).astype(np.float32)):
        found = pipe(
            image, "a lake", latents=noise, posterior_noise=posterior, color_fix=kind
        ).images
        assert np.array_equal(np.array(found[0]), ours)


@pytest.mark.parametrize("kind", ["none", "adain", "wavelet"])
def test_colour_correction_is_that_of_gdpo(kind: str) -> None:
    image, reference = torch.rand(2, 2, 3, 40, 50, generator=torch.Generator().manual_seed(0))
    ours = color_fix(kind, image, reference)
    assert torch.equal(diffusers_pipeline._color_fix(kind, image, reference), ours)


def test_several_images_and_samples_are_those_of_single_calls(pipe: NAOSDPipeline) -> None:
    given = [photo(0), photo(1)]
    seeds = [torch.Generator().manual_seed(seed) for seed in range(4)]
    many = pipe(given, generator=seeds, num_images_per_prompt=2, output_type="np").images
    assert many.shape == (4, 36, 48, 3)
    for index in range(4):
        alone = torch.Generator().manual_seed(index)
        one = pipe(given[index // 2], generator=alone, output_type="np").images
        assert np.abs(one[0] - many[index]).max() < 1e-5
    assert len(np.unique(many.reshape(4, -1)[:, 0])) == 4


def test_the_callback_sees_and_replaces_the_clean_latent(pipe: NAOSDPipeline) -> None:
    seen = []

    def callback(own: Any, step: int, t: int, named: dict[str, torch.Tensor]) -> dict[str, Any]:
        seen.append((own is pipe, step, t, tuple(named["latents"].shape)))
        return {"latents": torch.zeros_like(named["latents"])}

    options: dict[str, Any] = {"scale": 1, "output_type": "latent"}
    x = torch.zeros(1, 3, 32, 32)
    z = pipe(x, callback_on_step_end=callback, **options).images
    assert seen == [(True, 0, 100, (1, 4, 8, 8))] and not z.any()
    assert pipe(x, return_dict=False, **options)[0].any()


def test_slicing_and_tiling_of_the_vae(pipe: NAOSDPipeline) -> None:
    plain = whole(pipe)
    pipe.enable_vae_slicing()
    assert torch.allclose(whole(pipe), plain, atol=1e-5)
    pipe.disable_vae_slicing()
    pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size = 32, 8
    pipe.enable_vae_tiling()
    tiled = whole(pipe)
    assert tiled.shape == plain.shape and not torch.equal(tiled, plain)
    pipe.disable_vae_tiling()
    assert torch.equal(whole(pipe), plain)


def test_a_progress_bar_counts_the_three_passes(
    pipe: NAOSDPipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe.set_progress_bar_config(disable=False)
    pipe(photo())
    assert "3/3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": [photo(), photo(side=5)]}, "several of one size"),
        ({"image": "photo.jpg"}, "image must be PIL's, an RGB array or a tensor"),
        ({"image": torch.full((1, 3, 8, 8), 2.0)}, "image must be in \\[0, 1\\]"),
        ({"image": np.full((8, 8, 3), np.nan)}, "image must be in \\[0, 1\\]"),
        ({"prompt": ["a", "b"]}, "one per image, 1: 2"),
        ({"latents": torch.zeros(1, 4, 1, 1)}, "latents must have the shape \\(1, 4, 10, 12\\)"),
        ({"scale": 0}, "scale must be a positive number"),
        ({"t_add": 1000}, "t_add must be a timestep"),
        ({"color_fix": "all"}, "color_fix must be one of"),
        ({"output_type": "jpg"}, "output_type must be"),
    ],
)
def test_a_wrong_argument_is_named(
    pipe: NAOSDPipeline, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pipe(**{"image": photo(), **arguments})


def test_saved_and_loaded_it_gives_the_same_bits(pipe: NAOSDPipeline, tmp_path: Path) -> None:
    pipe.register_to_config(t_add=None, prompt="more", lora_base=["0" * 64])
    pipe.save_pretrained(tmp_path / "saved")
    again = quiet(NAOSDPipeline.from_pretrained(tmp_path / "saved"))
    assert torch.equal(whole(again), whole(pipe))
    for key in ("t_add", "t_diff", "prompt", "scale", "lora_base"):
        assert again.config[key] == pipe.config[key]
    again.save_pretrained(tmp_path / "twice")
    assert tiny.tree(tmp_path / "twice").keys() == {
        name.replace("saved", "twice", 1) for name in tiny.tree(tmp_path / "saved")
    }


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


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


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


def test_cpu_offload_brings_each_network_to_the_device_before_it_runs(
    pipe: NAOSDPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the hooks that `enable_model_cpu_offload` sets, the CPU in the place of a GPU."""
    plain, brought, hook = whole(pipe), [], None
    for name in pipe.model_cpu_offload_seq.split("->"):
        _, hook = cpu_offload_with_hook(getattr(pipe, name), "cpu", prev_module_hook=hook)
        own = getattr(pipe, name)._hf_hook

        def before(*given: Any, own: Any = own.pre_forward, name: str = name, **more: Any) -> Any:
            brought.append(name)
            return own(*given, **more)

        monkeypatch.setattr(own, "pre_forward", before)
    assert torch.equal(whole(pipe), plain)
    assert brought == ["text_encoder", "vae", "unet", "vae"]


def test_in_bfloat16_it_gives_nearly_the_same(pipe: NAOSDPipeline) -> None:
    plain = pipe(photo(), color_fix="none", output_type="np", generator=seeded()).images
    pipe.to(torch.bfloat16)
    low = pipe(photo(), color_fix="none", output_type="np", generator=seeded()).images
    assert 0 < np.abs(low - plain).mean() < 0.02
