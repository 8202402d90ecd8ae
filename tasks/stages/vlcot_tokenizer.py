"""Stage `vlcot-tokenizer`: images as codes -> models/vlcot/tokenizer and reports/vlcot/tokenizer.

training patches at the sides of the three stages -> latents of model.base's VAE -> k-means
-> encoder, codebook and decoder trained together -> the decoder alone, with an adversarial term
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from gdpo.config import Config
from gdpo.data.shards import Shards
from gdpo.files import written_aside
from gdpo.hooks import Hooks
from gdpo.images import resize_bicubic, to_tensor
from gdpo.train.loop import Loop, Stateful, checkpoints
from gdpo.vlcot.folder import load_tokenizer, load_vae, save_tokenizer, vocabulary_of
from gdpo.vlcot.start import initial_model
from gdpo.vlcot.tokenizer import TinyTokenizer, patches, to_network
from gdpo.vlcot.tokenizer_training import decoder_steps, fit_codebook, joint_steps
from tasks import paths
from tasks.run.fingerprint import fingerprint, inputs_of
from tasks.run.training import device, write_history

PICTURES, PER_CODE = 400, 64  # approximate number of pictures for k-means, of vectors per code


def run(config: Config, root: Path, hooks: Hooks) -> None:
    """Fit the codebook, tune the decoder, and write the tokenizer's folder and its history.

    Errors: ValueError naming the file or key; `Stopped` after writing a checkpoint to
    work/vlcot-tokenizer.
    """
    start = initial_model(config)
    if start is not None:
        _copy(root / start / "tokenizer", root)
        return
    settings = config.vlcot.tokenizer
    base = root / config.model.base / "vae"
    pairs = Shards(root / paths.TRAIN)
    work = paths.work(root, "vlcot-tokenizer")
    values = {
        "seed": config.seed,
        "vlcot.stages": config.vlcot.stages,
        "vlcot.tokenizer": settings.model_dump(exclude={"checkpoint_every"}),
        "model.base": fingerprint({}, [base]),
        paths.TRAIN: pairs.fingerprint(),
    }
    inputs = inputs_of(__name__, values)
    pictures = [pairs[i].hr for i in _chosen(config, pairs)]
    vae = load_vae(base).to(device())
    tokenizer = TinyTokenizer(vae, _codebook(config, vae, pictures).to(device()))
    steps = settings.joint_steps + settings.steps
    step, state = _steps(config, tokenizer, pictures)
    vae.requires_grad_(True)
    history = Loop(work, steps, state, inputs, settings.checkpoint_every, hooks).run(step)
    write_history(root / f"{paths.VLCOT_REPORTS}/tokenizer", history)
    with written_aside(root / paths.TOKENIZER) as part:
        save_tokenizer(part, tokenizer)
    checkpoints(work, inputs).remove()


def _copy(folder: Path, root: Path) -> None:
    """Take the tokenizer of vlcot.init as it is; nothing was trained, so the history is empty."""
    load_tokenizer(folder)  # whole and readable
    write_history(root / f"{paths.VLCOT_REPORTS}/tokenizer", [])
    with written_aside(root / paths.TOKENIZER) as part:
        shutil.copytree(folder, part)


def _steps(
    config: Config, tokenizer: TinyTokenizer, pictures: list[np.ndarray]
) -> tuple[Callable[[int], dict[str, float]], dict[str, Stateful]]:
    """The step function of both trainings, one after the other, and their state."""
    settings = config.vlcot.tokenizer
    first, joint = joint_steps(
        tokenizer,
        pictures,
        sizes=tuple(config.vlcot.stages),
        batch=settings.batch,
        steps=settings.joint_steps,
        seed=config.seed,
        lr=settings.lr,
    )
    then, decoder = decoder_steps(
        tokenizer,
        pictures,
        sizes=(config.vlcot.stages[-1],),
        batch=settings.batch,
        steps=settings.steps,
        seed=config.seed,
        lr=settings.lr,
        adversarial=settings.adversarial,
    )

    def step(i: int) -> dict[str, float]:
        return first(i) if i < settings.joint_steps else then(i - settings.joint_steps)

    return step, {**joint, **decoder}


def _codebook(config: Config, vae: AutoencoderKL, pictures: list[np.ndarray]) -> torch.Tensor:
    """K-means of the latents of the pictures at the sides of all stages."""
    settings, sides = config.vlcot.tokenizer, config.vlcot.stages
    least = torch.zeros(1, settings.patch**2 * vae.config.latent_channels)
    vocabulary_of(TinyTokenizer(vae, least), sides)  # the sides fit, before the work
    few = pictures[:: max(1, len(pictures) // PICTURES)]
    vectors = torch.cat(
        [
            _vectors(vae, [resize_bicubic(one, (side, side)) for one in few], settings.patch)
            for side in sides
        ]
    )
    every = max(1, len(vectors) // (PER_CODE * settings.codes))
    return fit_codebook(vectors[::every], settings.codes, config.seed)


def _chosen(config: Config, pairs: Shards) -> list[int]:
    """Which pairs: vlcot.tokenizer.images, spread evenly; all if there are fewer."""
    side, count = config.vlcot.stages[-1], min(config.vlcot.tokenizer.images, len(pairs))
    chosen = [place * len(pairs) // count for place in range(count)]
    shape = pairs[chosen[0]].hr.shape
    if shape[:2] != (side, side):
        raise ValueError(
            f"vlcot.stages: the last must be degrade.crop, got {side} and patches of "
            f"{shape[0]} x {shape[1]} pixels in data/shards/train"
        )
    return chosen


@torch.no_grad()
def _vectors(vae: AutoencoderKL, pictures: list[np.ndarray], patch: int) -> torch.Tensor:
    """The patches of the latents of pictures of one size (N, d), on the CPU."""
    vectors = []
    for first in range(0, len(pictures), 32):
        images = torch.stack([to_tensor(picture) for picture in pictures[first : first + 32]])
        x = to_network(images.to(device()), 1)
        vectors.append(patches(vae, x, patch).flatten(0, 2).cpu())
    return torch.cat(vectors)
