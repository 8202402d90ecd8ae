"""NAOSDPipeline gives what NAOSD gives, and exported folders load with diffusers and peft alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload_with_hook
from PIL import Image

from gdpo import NAOSDPipeline
from gdpo.color import color_fix
from gdpo.model.sampling import draw_noise
from gdpo.upscale import diffusers_pipeline
from gdpo.upscale.pipeline import upscale
from tests import tiny
from tests.gdpo.upscale.pipelines import quiet, whole


def photo(seed: int = 0, side: int = 9) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side + 3, 3)).astype(np.uint8)


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


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


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
