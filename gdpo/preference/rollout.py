"""Rollouts: sample and score G candidates per LR image (paper Sec. 3.2).

    for each selected pair:
        G noises -> NAOSD -> images -> every metric
        images -> VAE encoder -> posterior moments     (rollout.input lr: none of this; z_LR and
                                                        z_SR are there already)
        latents, K stored noises -> the reference's errors

As in the released code, the frozen reference samples the candidates, not the policy. Rollouts
therefore do not depend on the policy's weights, and one set of them trains every objective, reward
and group size (docs/rollouts.md). All randomness comes from (seed, pair id, candidate).
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from gdpo.color import color_fix
from gdpo.config import Config
from gdpo.data.shards import Pair, enlarge
from gdpo.images import to_tensor
from gdpo.metrics.score import score_computed
from gdpo.model import steps
from gdpo.model.naosd import NAOSD
from gdpo.model.prompts import compose
from gdpo.model.sampling import autocast
from gdpo.preference.candidates import Candidates, candidates, stored
from gdpo.preference.errors import check_group, noise_target, predict, squared
from gdpo.preference.group import Group, Latents, Skipped
from gdpo.seeds import seed_of


@torch.no_grad()
def rollout(
    model: NAOSD,
    pairs: list[Pair],
    config: Config,
    *,
    epoch: int = 0,
    role: str | None = None,
    noise_indices: Sequence[int] | None = None,
) -> Iterator[Group | Skipped]:
    """The groups of a few pairs of one size: len(pairs) * G candidates in one forward pass.

    model: NAOSD with its adapters merged. role: the role that samples the candidates; the reference
    errors always come from the frozen model. epoch: of online training; each has candidates of its
    own, and the rollout stage stores those of epoch 0. noise_indices: those of the K noises that
    get seeds and errors; default: all.

    A pair with pixels, scores or errors that are not finite yields `Skipped` and does not affect
    the others. The function synchronises with the device once, at the end.
    """
    size = config.rollout.group
    groups, whole, metrics, errors = _computed(model, pairs, config, epoch, role, noise_indices)
    values = torch.stack(
        [value.double().view(len(pairs), size).to(errors.device) for value in metrics.values()], 1
    )
    # One copy for all values: each copy to the CPU waits for the device.
    copied = torch.cat([whole[:, None].double(), values.flatten(1), errors.flatten(1)], 1).tolist()
    for group, (is_whole, *numbers) in zip(groups, copied, strict=True):
        lists = [numbers[i : i + size] for i in range(0, len(numbers), size)]
        # The metrics come first, the K lists of errors after them; hence not strict.
        raw = dict(zip(metrics, lists, strict=False))
        bad = [f"metric {name}" for name, scores in raw.items() if not np.isfinite(scores).all()]
        bad += ["a pixel"] * (not is_whole)
        if bad:
            yield Skipped(group.id, f"{bad[-1]} of its candidates is not finite")
            continue
        latents = group.latents.to(torch.device("cpu"))
        yield _finite(
            replace(group, metrics=raw, latents=latents, reference_error=lists[len(raw) :])
        )


def _computed(
    model: NAOSD,
    pairs: list[Pair],
    config: Config,
    epoch: int,
    role: str | None,
    noise_indices: Sequence[int] | None,
) -> tuple[list[Group], torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
    """(groups, finite, metrics, errors) of B pairs; all tensors stay on the device.

    groups: still without metrics and errors. finite: (B,) bool, whether all pixels of a group's
    candidates are. metrics: {name: (B * G,)}. errors: (B, K, G).
    """
    settings, size = config.rollout, config.rollout.group
    lr = torch.stack(
        [to_tensor(enlarge(p.lr, p.hr.shape[:2], p.degradation["enlarge"])) for p in pairs]
    )
    hr = torch.stack([to_tensor(p.hr) for p in pairs])
    prompts = [compose(p.tags, config.model.training_prompt) for p in pairs]
    # By pair and candidate, not by position: neither parts, batches nor workers change a candidate.
    seeds = [[_seed(config.seed, "rollout", p.id, i, epoch) for i in range(size)] for p in pairs]
    with model.unet_roles.use(role):
        sampled = candidates(model, lr, [seed for own in seeds for seed in own], prompts, config)
    whole = sampled.image.isfinite().unflatten(0, (len(pairs), size)).flatten(1).all(1)
    # The metrics need valid pixels; `rollout` skips a group whose pixels are replaced here.
    sampled = replace(sampled, image=sampled.image.nan_to_num(0, 1, 0))
    metrics = _scores(
        sampled.image, lr.repeat_interleave(size, 0), hr.repeat_interleave(size, 0), config
    )
    latents = _latents(model, sampled, config)
    kept = range(settings.noises) if noise_indices is None else noise_indices
    groups = []
    for b, pair in enumerate(pairs):
        # Other keys than those of the candidates: the errors are compared at noises from which no
        # candidate was made.
        noise_seeds = [
            [_seed(config.seed, f"noise {k}", pair.id, i, epoch) for i in range(size)] for k in kept
        ]
        lr_id = hashlib.sha256(pair.lr.tobytes()).hexdigest()
        groups.append(
            Group(
                pair.id,
                lr_id,
                pair.tags,
                prompts[b],
                pair.detail_share,
                seeds[b],
                {},
                latents[b],
                noise_seeds,
                [],
            )
        )
    # Always without a role: r is the reference's error, whichever model sampled the candidates.
    with model.unet_roles.use(None):
        with_errors = [by_reference(model, group, config) for group in groups]
    return (
        [group for group, _ in with_errors],
        whole,
        metrics,
        torch.stack([errors for _, errors in with_errors]),
    )


def by_reference(model: NAOSD, group: Group, config: Config) -> tuple[Group, torch.Tensor]:
    """(group, errors): the active role's errors (K, G) float64 for each of the K noises.

    With `rollout.input: lr` the group gets the predictions, one for each noise.
    """
    prompt, errors, predictions = model.embed([group.prompt]), [], []
    for noise_index in range(len(group.noise_seeds)):
        batch = noise_target(model, group, config.rollout, noise_index)
        predictions.append(predict(model, batch, prompt, config.rollout))
        errors.append(squared(predictions[-1] - batch.target.double(), batch))
    if config.rollout.input == "lr":
        # Lossless: the network's output is float32 or bfloat16.
        latents = replace(group.latents, prediction=torch.cat(predictions).float())
        group = replace(group, latents=latents)
    return group, torch.stack(errors)


def _finite(group: Group) -> Group | Skipped:
    """The group, or `Skipped` if a latent or an error is not finite."""
    try:
        check_group(group)
    except ValueError as error:
        return Skipped(group.id, str(error).removeprefix(f"group {group.id}: "))
    return group


def _seed(seed: int, what: str, pair: str, candidate: int, epoch: int) -> int:
    # Epoch 0 leaves the key as the rollout stage has it, so the first epoch of online training uses
    # the same groups as cached rollouts.
    return seed_of(seed, what, pair, candidate, *([epoch] if epoch else []))


def _scores(
    image: torch.Tensor, lr: torch.Tensor, hr: torch.Tensor, config: Config
) -> dict[str, torch.Tensor]:
    # For the scores only. The loss compares latents of the model's own image: a correction after
    # the network is nothing that the policy could learn.
    fixed = color_fix(config.rollout.color_fix, image, lr.to(image.device))
    return score_computed(config.rollout.metrics, fixed, hr.to(image.device))


def _latents(model: NAOSD, sampled: Candidates, config: Config) -> list[Latents]:
    """The latents of each group, as stored, without the predictions."""
    size = config.rollout.group
    if config.rollout.input == "lr" or config.rollout.candidates == "action":
        both = zip(stored(sampled.latent).split(size), stored(sampled.lr), strict=True)
        return [Latents(latent, None, z_lr) for latent, z_lr in both]
    with autocast(config.rollout.precision, sampled.image.device.type):
        # Re-encode with the adapted encoder, as in the released code.
        moments = steps.posterior(model, sampled.image * 2 - 1)
    mean, std = (stored(part).split(size) for part in moments)
    return [Latents(*each) for each in zip(mean, std, strict=True)]
