"""NAOSD as a pipeline of diffusers: `gdpo-sr export` copies this file to pipeline.py of a folder.

    pipe = DiffusionPipeline.from_pretrained("exported", trust_remote_code=True)
    image = pipe(Image.open("photo.jpg"), generator=torch.Generator().manual_seed(0)).images[0]

It imports torch, diffusers, numpy and Pillow, and nothing of gdpo, so that it runs without gdpo.
The few formulas that gdpo has too (noise schedule, Eqs. 3 and 4, colour correction) give the same
bits; tests/gdpo/upscale/test_diffusers_pipeline.py holds this.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image, ImageOps

CODE = "pipeline"  # the module of an exported folder that has this class
OF_BASE = "@sha256:"  # in a LoRA's base_model_name_or_path, before the base's hash
COLOR_FIXES = ("none", "adain", "wavelet")


class NAOSDPipeline(DiffusionPipeline, StableDiffusionLoraLoaderMixin):
    """One-step super-resolution: noise-aware one-step diffusion (paper Sec. 3.1, Eqs. 3 and 4).

    t_add: timestep of the injected noise; None injects none. t_diff: timestep at which the UNet
    denoises. prompt: ends every prompt. scale: the enlargement that the model is trained for.
    lora_base: hashes of this model as the base of a LoRA; a LoRA that names another base is
    refused, by `load_lora_weights` and by the call.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _callback_tensor_inputs = ("latents",)

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        scheduler: Any,
        t_add: int | None = 250,
        t_diff: int = 100,
        prompt: str = "",
        scale: float = 4.0,
        lora_base: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler
        )
        self.register_to_config(
            t_add=t_add, t_diff=t_diff, prompt=prompt, scale=scale, lora_base=list(lora_base or [])
        )

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        prompt: str | list[str] | None = None,
        *,
        scale: float | None = None,
        t_add: int | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        posterior_noise: torch.Tensor | None = None,
        color_fix: str = "wavelet",
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Any:
        """Enlarge one image or several of one size; the samples of an image follow one another.

        image: PIL images; arrays HWC or BHWC, uint8 or float in [0, 1]; tensors CHW or BCHW in
        [0, 1]; or a list of one of them. prompt: what is in the image; the model's own words follow
        it. scale: default the model's. t_add: default the model's; less keeps closer to the image.
        generator: one, or one per sample; it draws the posterior's noise, then the injected noise.
        latents, posterior_noise: standard normal (B, c, h, w), the injected noise and that of the
        VAE's posterior, instead of draws. color_fix: "none", "adain" or "wavelet".
        output_type: "pil", "np" (BHWC), "pt" (BCHW), both in [0, 1], or "latent" (z_SR).
        callback_on_step_end: called as (pipeline, 0, t_diff, {"latents": z_SR}) before decoding;
        what it returns under "latents" is decoded.
        Errors: ValueError naming the argument.
        """
        self._check_loras()
        if color_fix not in COLOR_FIXES:
            raise ValueError(f"color_fix must be one of {', '.join(COLOR_FIXES)}: {color_fix!r}")
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type must be pil, np, pt or latent, got {output_type!r}")
        if set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs):
            raise ValueError("callback_on_step_end_tensor_inputs can name latents only")
        t_add = self.config.t_add if t_add is None else t_add
        if t_add is not None and not 0 <= t_add < self.scheduler.config.num_train_timesteps:
            raise ValueError(f"t_add must be a timestep of the schedule, got {t_add}")
        factor = self.config.scale if scale is None else scale
        if not 0 < factor < float("inf"):
            raise ValueError(f"scale must be a positive number, got {scale}")
        enlarged = _enlarged(image, factor)
        height, width = enlarged.shape[2:]
        device, count = self._execution_device, num_images_per_prompt
        embeddings = _repeated(self._embed(prompt, len(enlarged), device), count)

        with self.progress_bar(total=3) as bar:
            padded = _pad(enlarged, self._multiple) * 2 - 1
            x = padded.to(device=device, dtype=self.vae.dtype)
            distribution = self.vae.encode(x).latent_dist
            mean = _repeated(self._scaling * distribution.mean, count)
            std = _repeated(self._scaling * distribution.std, count)
            posterior_noise = self._noise("posterior_noise", posterior_noise, mean, generator)
            latents = self._noise("latents", latents, mean, generator)
            z = mean + std * posterior_noise
            bar.update()
            z_noisy = z if t_add is None else self._inject(z, latents, t_add)
            z = self._denoise(z_noisy, embeddings)
            if callback_on_step_end is not None:
                named = {"latents": z} if callback_on_step_end_tensor_inputs else {}
                z = callback_on_step_end(self, 0, self.config.t_diff, named).get("latents", z)
            bar.update()
            images = z
            if output_type != "latent":
                images = self.vae.decode(z / self._scaling).sample.clamp(-1, 1)
            bar.update()
        self.maybe_free_model_hooks()
        if output_type != "latent":
            images = (images[..., :height, :width].float().cpu() / 2 + 0.5).clamp(0, 1)
            reference = _repeated(enlarged.cpu(), count)
            images = _as_output(_color_fix(color_fix, images, reference), output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @classmethod
    def _dict_from_json_file(cls, json_file: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        # A folder names its own pipeline.py. This class is that code already, so that its
        # from_pretrained neither runs the folder's file nor asks for trust_remote_code.
        index: dict[str, Any] = super()._dict_from_json_file(json_file, *args, **kwargs)
        if index.get("_class_name") == [CODE, cls.__name__]:
            index["_class_name"] = cls.__name__
        return index

    def load_lora_weights(self, *args: Any, **kwargs: Any) -> None:
        """As in diffusers; ValueError for a LoRA that names another base, which is taken off."""
        before = set(getattr(self.unet, "peft_config", {}))
        super().load_lora_weights(*args, **kwargs)
        try:
            self._check_loras()
        except ValueError:
            # Taken off before the error is raised: a caller that catches it would otherwise go on
            # with the wrong LoRA.
            self.delete_adapters(list(set(self.unet.peft_config) - before))
            raise

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As in diffusers, and pipeline.py, so that the folder loads without gdpo."""
        super().save_pretrained(save_directory, *args, **kwargs)
        # The folder carries this very file, so the file imports nothing of gdpo.
        shutil.copyfile(__file__, Path(save_directory, f"{CODE}.py"))
        index = Path(save_directory, self.config_name)
        content = json.loads(index.read_text())
        content["_class_name"] = [CODE, type(self).__name__]
        index.write_text(json.dumps(content, indent=2) + "\n")

    def enable_vae_slicing(self) -> None:
        """Decode one sample at a time."""
        self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        """Decode all samples at once."""
        self.vae.disable_slicing()

    def enable_vae_tiling(self) -> None:
        """Encode and decode large images in tiles; the UNet sees the whole latent."""
        self.vae.enable_tiling()

    def disable_vae_tiling(self) -> None:
        """Encode and decode images whole."""
        self.vae.disable_tiling()

    def _check_loras(self) -> None:
        """ValueError for a LoRA on the UNet that names another base, however it was loaded."""
        for config in getattr(self.unet, "peft_config", {}).values():
            name = getattr(config, "base_model_name_or_path", None) or ""
            _, stated, digest = name.partition(OF_BASE)
            if stated and digest not in self.config.lora_base:
                raise ValueError(
                    f"this LoRA was trained on {name}, which this pipeline is not; load it on the "
                    "merged export of that model"
                )

    @property
    def _scaling(self) -> float:
        return float(self.vae.config.scaling_factor)

    @property
    def _multiple(self) -> int:
        """Sides of x must be multiples of this, so that every level of the networks can halve."""
        levels = len(self.vae.config.block_out_channels) + len(self.unet.config.block_out_channels)
        return int(2 ** (levels - 2))

    def _embed(
        self, prompt: str | list[str] | None, batch: int, device: torch.device
    ) -> torch.Tensor:
        texts = [prompt or ""] * batch if prompt is None or isinstance(prompt, str) else prompt
        if len(texts) != batch:
            raise ValueError(f"prompt must be one text, or one per image, {batch}: {len(texts)}")
        ending = self.config.prompt
        tokens = self.tokenizer(
            [f"{text}, {ending}" if text else ending for text in texts],
            padding="max_length",
            max_length=77,
            truncation=True,
            return_tensors="pt",
        )
        embeddings: torch.Tensor = self.text_encoder(tokens.input_ids.to(device))[0]
        return embeddings.to(self.unet.dtype)

    @staticmethod
    def _noise(name: str, noise: torch.Tensor | None, like: torch.Tensor, generator: Any) -> Any:
        if noise is None:
            return randn_tensor(like.shape, generator, like.device, like.dtype)
        if noise.shape != like.shape:
            raise ValueError(
                f"{name} must have the shape {tuple(like.shape)}, got {tuple(noise.shape)}"
            )
        return noise.to(like)

    def _inject(self, z: torch.Tensor, noise: torch.Tensor, t_add: int) -> torch.Tensor:
        scale, sigma = self._coefficients(t_add, z)
        return scale * z + sigma * noise

    def _denoise(self, z: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        t = torch.full((1,), self.config.t_diff, device=z.device)
        noise = self.unet(z, t, embeddings).sample.to(z.dtype)
        scale, sigma = self._coefficients(self.config.t_diff, z)
        return (z - sigma * noise) / scale

    def _coefficients(self, t: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t), (1, 1, 1, 1), from betas in float64."""
        config = self.scheduler.config
        # From the configuration, in float64: the scheduler's own tensor of alphas is float32, which
        # changes the last bits of the result.
        ends = config.beta_start**0.5, config.beta_end**0.5
        root = torch.linspace(*ends, config.num_train_timesteps, dtype=torch.float64)
        abar = torch.cumprod(1 - root**2, 0)[t].reshape(1, 1, 1, 1)
        return abar.sqrt().to(like), (1 - abar).sqrt().to(like)


def _enlarged(image: Any, scale: float) -> torch.Tensor:
    """The bicubic enlargement, BCHW in [0, 1], float32."""
    if isinstance(image, torch.Tensor):
        return _enlarged_tensor(image[None] if image.ndim == 3 else image, scale)
    if isinstance(image, np.ndarray) and image.ndim == 4:
        image = list(image)
    several = list(image) if isinstance(image, list | tuple) else [image]
    if several and all(isinstance(one, torch.Tensor) for one in several):
        return _enlarged_tensor(torch.stack(several), scale)
    pictures = [_picture(one) for one in several]
    if len({one.size for one in pictures}) != 1:
        raise ValueError("image must be one image, or several of one size")
    width, height = (max(1, round(scale * side)) for side in pictures[0].size)
    large = [one.resize((width, height), Image.Resampling.BICUBIC) for one in pictures]
    return torch.from_numpy(np.stack([np.array(one) for one in large])).movedim(3, 1).float() / 255


def _picture(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return ImageOps.exif_transpose(image).convert("RGB")
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype.kind not in "uf":
        raise ValueError(
            f"image must be PIL's, an RGB array or a tensor, got {array.dtype} {array.shape}"
        )
    if array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):
            raise ValueError("image must be in [0, 1] when its type is floating-point")
        array = (array * 255).round()
    return Image.fromarray(array.astype(np.uint8))


def _enlarged_tensor(image: torch.Tensor, scale: float) -> torch.Tensor:
    if image.ndim != 4 or image.shape[1] != 3 or not image.is_floating_point():
        raise ValueError(
            f"image must be a floating-point tensor BCHW, got {image.dtype} {tuple(image.shape)}"
        )
    if not (image.min() >= 0 and image.max() <= 1):
        raise ValueError("image must be in [0, 1]")
    if scale == 1:
        return image.float()
    size = [max(1, round(scale * side)) for side in image.shape[2:]]
    large = F.interpolate(image.float(), size, mode="bicubic", antialias=True, align_corners=False)
    return large.clamp(0, 1)


def _repeated(x: torch.Tensor, count: int) -> torch.Tensor:
    # A copy would change the memory layout, and with it the last bits of a convolution.
    return x if count == 1 else x.repeat_interleave(count, 0)


def _pad(x: torch.Tensor, multiple: int) -> torch.Tensor:
    bottom, right = -x.shape[2] % multiple, -x.shape[3] % multiple
    mode = "reflect" if bottom < x.shape[2] and right < x.shape[3] else "replicate"
    return F.pad(x, (0, right, 0, bottom), mode=mode) if bottom or right else x


def _as_output(images: torch.Tensor, kind: str) -> Any:
    if kind == "pt":
        return images
    array = images.movedim(1, -1).contiguous()
    if kind == "np":
        return array.numpy()
    return [Image.fromarray(one) for one in (array * 255).round().to(torch.uint8).numpy()]


def _color_fix(kind: str, image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """The colours of the reference (gdpo/color.py), clamped to [0, 1]."""
    if kind == "adain":
        if image.shape[2] * image.shape[3] == 1:
            return reference.clone()
        variance, mean = torch.var_mean(image, (2, 3), keepdim=True)
        wanted, wanted_mean = torch.var_mean(reference, (2, 3), keepdim=True)
        image = (image - mean) / (variance + 1e-5).sqrt() * (wanted + 1e-5).sqrt() + wanted_mean
    elif kind == "wavelet":
        image = image - _lowest_band(image) + _lowest_band(reference)
    return image.clamp(0, 1)


def _lowest_band(image: torch.Tensor) -> torch.Tensor:
    for reach in (1, 2, 4, 8, 16):
        padded = F.pad(image, (reach, reach, reach, reach), mode="replicate")
        for axis in (2, 3):
            size = image.shape[axis]
            before, middle, after = (
                padded.narrow(axis, start * reach, size) for start in (0, 1, 2)
            )
            padded = (before + 2 * middle + after) / 4
        image = padded
    return image
