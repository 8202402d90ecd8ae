"""What t_add does at inference: one NAOSD, the same photographs and noises, t_add varied.

    python benchmarks/knob.py [MODEL ...]      # default: assets/tiny-sd/naosd

The photographs are the validation photographs that ship (central 256 x 256 pixels), once degraded
as in training and once merely reduced; the shipped prior was trained on them, as on all of its
data, so read the differences between rows. Prints means and writes benchmarks/results/knob.json.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from gdpo import NAOSD
from gdpo.color import wavelet_color_fix
from gdpo.config import Degradation
from gdpo.data.degrade import degrade
from gdpo.files import written_aside
from gdpo.images import read_photo, resize_bicubic, to_tensor
from gdpo.metrics.score import score
from gdpo.seeds import numpy_generator, seed_of, seeded_noise

REPO = Path(__file__).resolve().parents[1]
SIDE, SCALE = 256, 4
T_ADD = (0, 50, 100, 150, 250, 350)
METRICS = ["psnr_y", "ssim_y", "niqe"]
PROMPT = "clean, high-resolution, 8k"


def main() -> None:
    """Score bicubic and every model at every t_add."""
    hr_BCHW = torch.stack([centre(path) for path in photographs()])
    inputs = {
        "degraded": torch.stack([enlarged(degraded(hr, i)) for i, hr in enumerate(hr_BCHW)]),
        "reduced": torch.stack([enlarged(reduced(hr)) for hr in hr_BCHW]),
    }
    result: dict[str, dict[str, dict[str, float]]] = {}
    for name in sys.argv[1:] or ["assets/tiny-sd/naosd"]:
        model = NAOSD.from_pretrained(REPO / name, dtype=torch.float32, device="cpu")
        for kind, lr_BCHW in inputs.items():
            table = result.setdefault(f"{name}, {kind}", {})
            table["bicubic"] = means(lr_BCHW, hr_BCHW)
            for t_add in T_ADD:
                table[str(t_add)] = means(super_resolve(model, lr_BCHW, t_add), hr_BCHW)
            for setting, values in table.items():
                sys.stdout.write(f"{name} {kind} {setting} {values}\n")
    with written_aside(REPO / "benchmarks/results/knob.json") as part:
        part.write_text(json.dumps(result, indent=1) + "\n")


def photographs() -> list[Path]:
    """The validation photographs."""
    return sorted((REPO / "assets/photos/validation").glob("*.webp"))


def centre(path: Path) -> torch.Tensor:
    """The central (3, SIDE, SIDE) pixels in [0, 1]."""
    photo = read_photo(path)
    top, left = ((side - SIDE) // 2 for side in photo.shape[:2])
    return to_tensor(photo[top : top + SIDE, left : left + SIDE])


def degraded(hr_CHW: torch.Tensor, index: int) -> torch.Tensor:
    """The LR image after the release's degradation."""
    return degrade(hr_CHW, Degradation(), numpy_generator(0, "knob", index))


def reduced(hr_CHW: torch.Tensor) -> torch.Tensor:
    """The LR image by bicubic reduction alone."""
    small = resize_bicubic(as_uint8(hr_CHW), (SIDE // SCALE, SIDE // SCALE))
    return to_tensor(small)


def enlarged(lr_CHW: torch.Tensor) -> torch.Tensor:
    """The LR image enlarged to (3, SIDE, SIDE) by bicubic interpolation."""
    return to_tensor(resize_bicubic(as_uint8(lr_CHW), (SIDE, SIDE)))


def as_uint8(image_CHW: torch.Tensor) -> np.ndarray:
    """A picture in [0, 1] as uint8 (H, W, 3)."""
    return (image_CHW.numpy().transpose(1, 2, 0) * 255).round().astype(np.uint8)


@torch.no_grad()
def super_resolve(model: NAOSD, lr_BCHW: torch.Tensor, t_add: int) -> torch.Tensor:
    """I_SR in [0, 1], colours corrected against the LR image; one noise per picture."""
    model.t_add = t_add
    seeds = [seed_of("knob", i) for i in range(len(lr_BCHW))]
    noise, posterior_noise = seeded_noise(seeds, model.latent_shape(SIDE, SIDE), 2)
    image = model(lr_BCHW * 2 - 1, model.embed([PROMPT]), noise, posterior_noise)
    return wavelet_color_fix(image * 0.5 + 0.5, lr_BCHW).clamp(0, 1)


def means(image_BCHW: torch.Tensor, hr_BCHW: torch.Tensor) -> dict[str, float]:
    """The mean of every metric over the photographs."""
    scores = score(METRICS, image_BCHW, hr_BCHW)
    return {name: round(float(values.mean()), 3) for name, values in scores.items()}


if __name__ == "__main__":
    main()
