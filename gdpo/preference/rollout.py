"""Rollouts: G candidates per LR image from the frozen reference, every metric of each, once (paper Sec. 3.2).

    for each selected pair:  G noises -> NAOSD -> images -> metrics -> reward -> advantage
                             images -> VAE encoder -> posterior moments;  the reference's noise errors for K stored noises

The released sampler is the frozen reference, not the policy, so nothing here depends on the policy's weights: one set
trains every objective, reward and group size. All randomness comes from (seed, pair id, candidate).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from gdpo.config import Rollout
from gdpo.data.shards import Pair, enlarge
from gdpo.images import to_tensor
from gdpo.model.naosd import NAOSD
from gdpo.model.prompts import compose
from gdpo.model.sampling import autocast, super_resolve
from gdpo.preference.errors import Latents, noise_errors
from gdpo.rewards.attribute_aware import attribute_aware_reward, group_advantage
from gdpo.rewards.complexity import detail_share
from gdpo.rewards.metrics import higher_is_better, score
from gdpo.training import Key
from gdpo.upscale.color import color_fix

SCHEMA_VERSION = "1"


@dataclass(frozen=True)
class Group:
    """One group as stored: raw metrics, reward and advantage (lists of G), re-encoded latents, reference errors (K, G)."""

    id: str
    prompt: str
    detail_share: float
    metrics: dict[str, list[float]]
    reward: list[float]
    advantage: list[float]
    latents: Latents
    reference_error: list[list[float]]


def schema(config: Rollout, header: str) -> pa.Schema:
    """The Parquet schema of a rollout set; `header` (JSON) says what made it."""
    metrics = pa.struct([(name, pa.list_(pa.float64())) for name in (*config.fidelity, *config.perception)])
    fields = {
        "id": pa.string(), "prompt": pa.string(), "detail_share": pa.float64(), "metrics": metrics,
        "reward": pa.list_(pa.float64()), "advantage": pa.list_(pa.float64()), "shape": pa.list_(pa.int32()),
        "latent_mean": pa.binary(), "latent_std": pa.binary(), "reference_error": pa.list_(pa.list_(pa.float64())),
    }  # fmt: skip
    return pa.schema(fields, metadata={"gdpo-rollout": SCHEMA_VERSION, "rollout": header})


def to_row(group: Group) -> dict[str, Any]:
    """A group as one Parquet row; latents as float16 bytes."""
    plain = {name: getattr(group, name) for name in ("id", "prompt", "detail_share", "metrics", "reward", "advantage")}
    latents = {f"latent_{k}": getattr(group.latents, k).half().numpy().tobytes() for k in ("mean", "std")}
    return {**plain, **latents, "shape": list(group.latents.mean.shape), "reference_error": group.reference_error}


def from_row(row: dict[str, Any]) -> Group:
    """The group of one Parquet row."""
    mean, std = (
        torch.from_numpy(np.frombuffer(row[f"latent_{k}"], np.float16).reshape(row["shape"]).astype(np.float32))
        for k in ("mean", "std")
    )
    plain = {name: row[name] for name in ("id", "prompt", "detail_share", "metrics", "reward", "advantage", "reference_error")}
    return Group(latents=Latents(mean, std), **plain)


def reward_of(metrics: dict[str, list[float]], share: float, config: Rollout) -> tuple[list[float], list[float]]:
    """(rewards, advantages) of one group from its raw metric values."""

    def oriented(names: list[str]) -> torch.Tensor:
        rows = [[v if higher_is_better(n) else -v for v in metrics[n]] for n in names]
        return torch.tensor(rows, dtype=torch.float64).reshape(len(names), config.group).T[None]

    shares = torch.tensor([share], dtype=torch.float64)
    reward = attribute_aware_reward(oriented(config.fidelity), oriented(config.perception), shares)
    return reward[0].tolist(), group_advantage(reward)[0].tolist()


@torch.no_grad()
def rollout(model: NAOSD, pairs: list[Pair], config: Rollout, *, seed: int, prompt: str | None = None) -> Iterator[Group]:
    """The groups of a few pairs of one size, computed together: len(pairs) * G candidates in one forward pass.

    model: the frozen reference, adapters merged. prompt: what follows the tags, for the candidates and (stored) for all noise
    errors, as released; None: the model's own. Errors: ValueError naming the pair whose scores are not finite.
    """
    size = config.group
    lr = torch.stack([to_tensor(enlarge(p.lr, p.hr.shape[:2], p.degradation["enlarge"])) for p in pairs])
    hr = torch.stack([to_tensor(p.hr) for p in pairs])
    prompts = [compose(p.tags, model.prompt if prompt is None else prompt) for p in pairs]
    keys: list[Key] = [(seed, "rollout", p.id, i) for p in pairs for i in range(size)]
    repeated = [prompt for prompt in prompts for _ in range(size)]
    plain = super_resolve(model, lr, keys, color_fix="none", precision=config.precision, prompts=repeated, per_image=size)
    metrics = _scores(plain, lr.repeat_interleave(size, 0), hr.repeat_interleave(size, 0), config)
    shares = detail_share(hr, config.grayscale)
    mean, std = _encode(model, plain, config)
    for b, pair in enumerate(pairs):
        part = slice(b * size, (b + 1) * size)
        raw = {name: values[part].tolist() for name, values in metrics.items()}
        bad = [name for name, values in raw.items() if not np.isfinite(values).all()]
        if bad:
            raise ValueError(f"pair {pair.id}: metric {bad[0]} of its candidates is not finite")
        reward, advantage = reward_of(raw, float(shares[b]), config)
        # Rounded and laid out as they are stored (the encoder's output may be channels-last, which other kernels take), so
        # that errors computed from the file are the same bits.
        latents = Latents(mean[part].half().float().contiguous(), std[part].half().float().contiguous())
        embedded = model.embed([prompts[b]])
        errors = [
            noise_errors(model, latents, embedded, config, seed=seed, group=pair.id, visit=visit).tolist()
            for visit in range(config.noises)
        ]
        stored = Latents(latents.mean.to("cpu"), latents.std.to("cpu"))
        yield Group(pair.id, prompts[b], float(shares[b]), raw, reward, advantage, stored, errors)


def _scores(image: torch.Tensor, lr: torch.Tensor, hr: torch.Tensor, config: Rollout) -> dict[str, torch.Tensor]:
    fixed = color_fix(config.color_fix, image, lr.to(image.device))
    return score([*config.fidelity, *config.perception], fixed, hr.to(image.device))


def _encode(model: NAOSD, image: torch.Tensor, config: Rollout) -> tuple[torch.Tensor, torch.Tensor]:
    """Posterior moments of the decoded candidates (re-encoded with the adapted encoder, as released), a batch at a time."""
    with autocast(config.precision, image.device.type):
        mean, std = model.posterior(image * 2 - 1)
    return mean.float(), std.float()
