"""Images as codes and back: the interface of tokenizers, and the tiny profile's.

    tiny   VAE latent -> patches of p x p -> nearest of K codes -> decoder
           (training: gdpo/vlcot/tokenizer_training.py)
    paper  gdpo/vlcot/llamagen.py

    codes_Bhw = tokenizer.encode(image_BCHW)      image in [0, 1]; h = H / factor
    image_BCHW = tokenizer.decode(codes_Bhw)      any h, w

Images of any size that is a multiple of `factor` are taken. gdpo/vlcot/tokenizer_training.py makes
the tiny one.
"""

from math import isqrt
from typing import Protocol

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import nn

from gdpo.checks import check_image


class ImageTokenizer(Protocol):
    """Images to codes and back. factor: pixels a side of a code; codes: their number."""

    factor: int
    codes: int
    codebook: torch.Tensor

    def encode(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        """Codes (B, h, w) of images in [0, 1] whose sides `factor` divides; else ValueError."""
        ...

    def decode(self, codes_Bhw: torch.Tensor) -> torch.Tensor:
        """Images BCHW in [0, 1] of codes; ValueError for a code outside the codebook."""
        ...


def to_network(image: torch.Tensor, factor: int) -> torch.Tensor:
    """Images in [0, 1] -> [-1, 1]; ValueError for wrong images, or sides that are no multiples."""
    check_image("image_BCHW", image)
    if image.shape[2] % factor or image.shape[3] % factor:
        raise ValueError(
            f"image_BCHW must have sides that are multiples of {factor}, got "
            f"{tuple(image.shape[2:])}"
        )
    return image * 2 - 1


def check_codes(codes: torch.Tensor, count: int) -> None:
    """ValueError unless `codes` are (B, h, w) in 0..count - 1."""
    if codes.ndim != 3 or not codes.numel() or int(codes.min()) < 0 or int(codes.max()) >= count:
        raise ValueError(
            f"codes_Bhw must be codes 0..{count - 1} of shape (B, h, w), got {tuple(codes.shape)}"
        )


class TinyTokenizer(nn.Module):
    """A VAE and a codebook on patches of its latent.

    codebook: (K, p^2 c) of a VAE of c latent channels; it moves with the module and is part of its
    state. p, the latent positions a side of one code, follows from its width.
    """

    codebook: torch.Tensor

    def __init__(self, vae: AutoencoderKL, codebook: torch.Tensor) -> None:
        super().__init__()
        channels = vae.config.latent_channels
        side = isqrt(codebook.shape[-1] // channels) if codebook.ndim == 2 else 0
        if not side or codebook.shape[1] != side * side * channels:
            raise ValueError(
                f"the codebook must be (K, p^2 {channels}), got {tuple(codebook.shape)}"
            )
        self.vae, self.patch = vae, side
        self.register_buffer("codebook", codebook)
        self.factor = side * 2 ** (len(vae.config.block_out_channels) - 1)
        self.codes = len(codebook)

    @torch.no_grad()
    def encode(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        """As `ImageTokenizer.encode`."""
        vectors = patches(self.vae, to_network(image_BCHW, self.factor), self.patch)
        return self.nearest(vectors)

    def nearest(self, vectors_BhwD: torch.Tensor) -> torch.Tensor:
        """The code (B, h, w) that each vector is nearest to."""
        return (
            torch.cdist(vectors_BhwD.flatten(0, 2), self.codebook)
            .argmin(1)
            .reshape(vectors_BhwD.shape[:3])
        )

    def latents(self, codes_Bhw: torch.Tensor) -> torch.Tensor:
        """The latents (B, c, p h, p w) that codes stand for."""
        vectors = self.codebook[codes_Bhw].permute(0, 3, 1, 2)
        return F.pixel_shuffle(vectors, self.patch)

    @torch.no_grad()
    def decode(self, codes_Bhw: torch.Tensor) -> torch.Tensor:
        """As `ImageTokenizer.decode`."""
        check_codes(codes_Bhw, self.codes)
        image = self.vae.decode(self.latents(codes_Bhw)).sample
        return (image.float() / 2 + 0.5).clamp(0, 1)


def patches(vae: AutoencoderKL, image_BCHW: torch.Tensor, patch: int) -> torch.Tensor:
    """The latent means of images in [-1, 1] as vectors (B, h, w, patch^2 c)."""
    mean = vae.encode(image_BCHW).latent_dist.mean
    return F.pixel_unshuffle(mean, patch).permute(0, 2, 3, 1)
