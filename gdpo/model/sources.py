"""Size, licence and origin of third-party files. This module downloads nothing.

The base model is a folder, which `gdpo-sr fetch` downloads. Weights of metrics are single files,
found by name. The tagger's files are converted to a folder of our own. Repository names refer to
the Hugging Face hub unless another place is named.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """One artefact.

    size: approximate bytes; 0 if small or variable. where: repository or address.
    """

    size: int
    licence: str
    where: str


# `fetch.base` lists the sources of the base model: the official repository,
# stabilityai/stable-diffusion-2-1-base, no longer exists.
BASE_LICENCE = "CreativeML OpenRAIL++-M"
# Files that `read_base` reads -> approximate bytes for SD2.1-base in fp32 (half in fp16).
BASE_FILES = {
    "unet/config.json": 1_000,
    "unet/diffusion_pytorch_model.safetensors": 3_460_000_000,
    "vae/config.json": 1_000,
    "vae/diffusion_pytorch_model.safetensors": 335_000_000,
    "text_encoder/config.json": 1_000,
    "text_encoder/model.safetensors": 1_360_000_000,
    "tokenizer/tokenizer_config.json": 1_000,
    "scheduler/scheduler_config.json": 1_000,
}
VOCABULARY = 1_100_000  # the tokenizer's, in one file or two
IQA = ("CC BY-NC-SA 4.0", "chaofengc/IQA-PyTorch-Weights")
_RAM_LISTS = ("Apache-2.0", "ram/data of the GitHub repository xinyu1205/recognize-anything")
TORCHVISION = ("BSD-3-Clause", "download.pytorch.org/models")
VGG16 = Source(553_000_000, *TORCHVISION)
# Weights that are no metric's; those are in gdpo/metrics/table.py.
WEIGHTS = {
    "LPIPS_v0.1_vgg-a78928a0.pth": Source(7_000, *IQA),
    "vgg16-397923af.pth": VGG16,
    "ram_swin_large_14m.pth": Source(
        5_625_634_877, "Apache-2.0", "xinyu1205/recognize_anything_model"
    ),
    "DAPE.pth": Source(
        7_000_000, "Apache-2.0", "the SeeSR repository's README (Google Drive), or Joypop/TVTSR"
    ),
    "ram_tag_list.txt": Source(42_000, *_RAM_LISTS),
    "ram_tag_list_threshold.txt": Source(21_000, *_RAM_LISTS),
}
# Files of the perceptual loss, relative to torch.hub's folder ($TORCH_HOME/hub).
LPIPS_VGG = ("pyiqa/LPIPS_v0.1_vgg-a78928a0.pth", "checkpoints/vgg16-397923af.pth")
# Files from which the tagger folder is converted.
TAGGER = (
    "ram_swin_large_14m.pth",
    "DAPE.pth",
    "ram_tag_list.txt",
    "ram_tag_list_threshold.txt",
)


def source_of(path: Path) -> Source:
    """The source of a file, by its name; files not listed ship with this repository."""
    return WEIGHTS.get(
        path.name, Source(0, "ships with this repository", "git checkout of this repository")
    )
