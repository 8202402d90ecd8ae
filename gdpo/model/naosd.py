"""NAOSD, noise-aware one-step diffusion for super-resolution (paper Sec. 3.1), in its symbols.

    encode    z_LR = s * sample(E(x_LR))
    inject    z~   = sqrt(abar_add) z_LR + sqrt(1 - abar_add) eps       (Eq. 3; t_add = 250)
    denoise   e    = UNet(z~, t_diff, c)                                (t_diff = 100)
              z_SR = (z~ - sqrt(1 - abar_diff) e) / sqrt(abar_diff)     (Eq. 4)
    decode    I_SR = clamp(D(z_SR / s), -1, 1)

The methods check their arguments; gdpo/model/steps.py has the formulas without checks, for loops.
Every random tensor is an argument, so the noise of another implementation can be replayed.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from gdpo.checks import check_device, check_image, check_path, check_same_shape, check_tensor
from gdpo.model import prompts, steps
from gdpo.model.adapters import Roles, merge_adapters, unet_targets, vae_targets
from gdpo.model.base import read_base
from gdpo.model.card import NAME
from gdpo.model.checkpoints import Adapters, ModelFolder, read_folder
from gdpo.model.schedule import check_timestep

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel


class NAOSD(nn.Module):
    """UNet, VAE and text encoder with LoRA roles: x_BCHW -> image_BCHW in one step, in [-1, 1].

    t_add: timestep of the injected noise; None injects none (OSEDiff). t_diff: timestep at which
    the UNet denoises. prompt: the default prompt.
    """

    def __init__(
        self,
        unet: "UNet2DConditionModel",
        vae: "AutoencoderKL",
        text_encoder: nn.Module,
        tokenizer: object,
        *,
        t_add: int | None = 250,
        t_diff: int = 100,
        prompt: str = "",
    ) -> None:
        super().__init__()
        self.unet, self.vae, self.text_encoder = unet, vae, text_encoder.requires_grad_(False)
        self.tokenizer, self.t_add, self.t_diff, self.prompt = tokenizer, t_add, t_diff, prompt
        # conv_in alone can also train in full: the release unfreezes it beside its LoRA, and the
        # released files hold its weight.
        self.unet_roles = Roles(unet, unet_targets(unet), full="conv_in")
        self.vae_roles = Roles(vae, vae_targets(vae))
        # Training does not switch to train mode either: SD's networks have no dropout above 0, and
        # the mode would be one more thing in which policy and reference can differ.
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        base: str | Path | None = None,
    ) -> "NAOSD":
        """Load one of our model folders (model.json and adapters) or a diffusers folder.

        Adapters are merged in fp32, before the cast to `dtype`. base: replaces the base model that
        model.json names.
        Errors: ValueError naming the argument, or the file and its defect.
        """
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating-point type of torch, got {dtype!r}")
        check_device("device", device)
        below = None if base is None else check_path("base", base)
        path = check_path("folder", folder)
        if (path / NAME).exists():
            model = cls.from_folder(read_folder(path, below))
        else:
            model = cls.from_base(path)
        return model.to(device=device, dtype=dtype)

    @classmethod
    def from_base(cls, folder: Path) -> "NAOSD":
        """The model of a diffusers folder, without adapters, fp32 on the CPU.

        The folder holds unet, vae, text_encoder, tokenizer and scheduler.
        Errors: ValueError naming the folder or file, and the tensor if one is wrong.
        """
        return cls(**read_base(folder))

    @classmethod
    def from_folder(cls, source: ModelFolder) -> "NAOSD":
        """The model of one of our model folders, all adapters merged, fp32 on the CPU.

        Errors: ValueError naming the file that is incomplete or does not fit the base.
        """
        model = cls.from_base(source.base)
        source.check_complete(model.targets)
        # In the card's order: a file may replace conv_in as a whole, and the LoRA of later files
        # was trained on top of that.
        for adapters in source.adapters:
            model.merge(adapters)
        card = source.card
        model.t_add, model.t_diff, model.prompt = card.t_add, card.t_diff, card.prompt
        return model

    def merge(self, adapters: Adapters) -> None:
        """Merge adapters into the plain weights; the model must not have roles yet.

        Errors: as `merge_adapters`.
        """
        for name, tensors in adapters.parts().items():
            merge_adapters(getattr(self, name), tensors, adapters.scaling)

    @property
    def targets(self) -> dict[str, list[str]]:
        """The modules that carry LoRA, by network."""
        return {"unet": self.unet_roles.targets, "vae": self.vae_roles.targets}

    @property
    def scaling(self) -> float:
        """s, read from the VAE's configuration (0.18215 for SD)."""
        return float(self.vae.config.scaling_factor)

    @property
    def factor(self) -> int:
        """Down-scaling factor of the VAE: 8 for SD, 4 for the tiny prior."""
        # A VAE of n levels halves n - 1 times: the last level has no down-sampler.
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def multiple(self) -> int:
        """Height and width of x must be multiples of this, so that every UNet level can halve."""
        return self.factor * 2 ** (len(self.unet.config.block_out_channels) - 1)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of the latent of an image of height x width pixels."""
        return int(self.vae.config.latent_channels), height // self.factor, width // self.factor

    def embed(self, texts: list[str]) -> torch.Tensor:
        """The embeddings prompt_BLD of B prompts."""
        return prompts.embed(self.tokenizer, self.text_encoder, texts)

    # Checks of arguments: shapes, types and values.

    def _check(self, name: str, tensor: object) -> torch.Tensor:
        """Return `tensor` if it is finite, (B, C, H, W) and of the model's dtype.

        Under autocast, any floating-point dtype is accepted.
        """
        # A float64 image, numpy's default, would otherwise fail inside a convolution with a message
        # that names no argument. Under autocast the layers cast their inputs themselves.
        checked, wanted = check_tensor(name, tensor, "BCHW"), next(self.unet.parameters()).dtype
        if checked.dtype != wanted and not torch.is_autocast_enabled(checked.device.type):
            raise ValueError(f"{name} must be of the model's type, {wanted}, got {checked.dtype}")
        return checked

    def _check_latent(self, name: str, tensor: object) -> torch.Tensor:
        latent, channels = self._check(name, tensor), int(self.vae.config.latent_channels)
        if latent.shape[1] != channels:
            raise ValueError(
                f"{name} must have the VAE's {channels} channels in shape BCHW, got "
                f"{tuple(latent.shape)}"
            )
        return latent

    def _check_image(self, name: str, image: object) -> torch.Tensor:
        x = self._check(name, check_image(name, image, -1.0, 1.0))
        if x.shape[2] % self.multiple or x.shape[3] % self.multiple:
            raise ValueError(
                f"{name} must have sides that are a multiple of {self.multiple}, got "
                f"{tuple(x.shape)}"
            )
        return x

    def _check_prompt(self, prompt: object, batch: int) -> None:
        prompt_BLD, width = (
            check_tensor("prompt_BLD", prompt, "BLD"),
            int(self.unet.config.cross_attention_dim),
        )
        if len(prompt_BLD) not in (1, batch):
            raise ValueError(f"prompt_BLD must hold 1 or {batch} prompts, got {len(prompt_BLD)}")
        if prompt_BLD.shape[2] != width:
            raise ValueError(
                f"prompt_BLD must have the UNet's width {width} in shape BLD, got "
                f"{tuple(prompt_BLD.shape)}"
            )

    def _check_noise(self, name: str, noise: object, x: torch.Tensor) -> torch.Tensor:
        wanted = (len(x), *self.latent_shape(*x.shape[2:]))
        tensor = check_tensor(name, noise, "BCHW")
        if tensor.shape != wanted:
            raise ValueError(
                f"{name} must have the shape of the latent of x_BCHW, {wanted}, got "
                f"{tuple(tensor.shape)}"
            )
        return tensor

    def encode(self, x_BCHW: torch.Tensor, noise: torch.Tensor | torch.Generator) -> torch.Tensor:
        """z_LR (B, c, h, w): a sample of the posterior of x_BCHW in [-1, 1].

        noise: standard normal (B, c, h, w), or the generator to draw it from.
        Errors: ValueError naming the argument.
        """
        x = self._check_image("x_BCHW", x_BCHW)
        if isinstance(noise, torch.Generator):
            wanted = (len(x), *self.latent_shape(*x.shape[2:]))
            # On the generator's own device: a GPU draws other numbers for the same seed, so a
            # generator of the CPU gives the same image on every machine.
            noise = torch.randn(wanted, generator=noise, device=noise.device)
        return steps.encode(self, x, self._check_noise("noise", noise, x))

    def inject(
        self, z: torch.Tensor, noise: torch.Tensor, t_add: int | torch.Tensor | None = None
    ) -> torch.Tensor:
        """z~ (Eq. 3): z with standard normal noise added at timestep t_add.

        t_add: one timestep, or one per sample; None: the model's t_add. If that is None too
        (OSEDiff), no noise is added and z is returned.
        Errors: ValueError naming the argument.
        """
        check_same_shape(
            "noise", check_tensor("noise", noise, "BCHW"), "z", self._check_latent("z", z)
        )
        if t_add is not None:
            check_timestep("t_add", t_add)
        return steps.inject(self, z, noise, t_add)

    def predict_noise(
        self, z_noisy: torch.Tensor, prompt: torch.Tensor, t: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """e = UNet(z~, t, c). prompt: (1 or B, L, D). t: default t_diff. Checks nothing."""
        t = self.t_diff if t is None else t
        if isinstance(t, int):
            # diffusers would copy a plain number to the device and wait for it.
            t = torch.full((1,), t, device=z_noisy.device)
        # A view without a copy: the candidates of a group share one prompt.
        prompt = prompt.expand(len(z_noisy), -1, -1)
        return self.unet(z_noisy, t, prompt.to(z_noisy.dtype)).sample

    def denoise(self, z: torch.Tensor, prompt_BLD: torch.Tensor) -> torch.Tensor:
        """z_SR from z~ (Eq. 4). prompt_BLD: 1 or B prompts.

        Errors: ValueError naming the argument.
        """
        self._check_latent("z", z)
        self._check_prompt(prompt_BLD, len(z))
        return steps.denoise(self, z, prompt_BLD)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """image_BCHW in [-1, 1] from the scaled latent z.

        Errors: ValueError naming the argument.
        """
        return steps.decode(self, self._check_latent("z", z))

    def forward(
        self,
        x_BCHW: torch.Tensor,
        prompt_BLD: torch.Tensor,
        noise: torch.Tensor,
        posterior_noise: torch.Tensor,
    ) -> torch.Tensor:
        """I_SR, (B, 3, H, W) in [-1, 1], of x_BCHW, the LR image enlarged to full size.

        prompt_BLD: 1 or B prompts. noise, posterior_noise: standard normal (B, c, h, w).
        Errors: ValueError naming the argument for a wrong shape, type or range, or NaN. Each
        argument is checked once; intermediate results are not.
        """
        x = self._check_image("x_BCHW", x_BCHW)
        self._check_prompt(prompt_BLD, len(x))
        self._check_noise("noise", noise, x)
        self._check_noise("posterior_noise", posterior_noise, x)
        z_noisy = steps.inject(self, steps.encode(self, x, posterior_noise), noise)
        return steps.decode(self, steps.denoise(self, z_noisy, prompt_BLD))
