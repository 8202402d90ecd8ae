"""A group: the G stored candidates of one LR image, and their rewards and advantages.

    stored per candidate    the seed of its noise, every raw metric, posterior moments of its
                            re-encoded latent (or its latent), and the reference's error for each
                            stored noise seed
    stored per group        LR id, tags, prompt, detail share; with `rollout.input: lr` also z_LR
                            and the reference's prediction for each stored noise; a SHA-256 of
                            the row
    derived, never stored   R = rho_s mean(FR) + rho_d mean(NR) of min-max normalised metrics;
                            A = (R - mean) / std

Rewards are derived, so one set of rollouts serves every reward. The first candidates of a group
form a smaller group, so the set also serves every smaller G.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from gdpo.config import Reward, Rollout
from gdpo.metrics.score import higher_is_better
from gdpo.rewards.attribute_aware import attribute_aware_reward, group_advantage, perception_weight

SCHEMA_VERSION = "4"
STORED = {"mean": np.float16, "std": np.float16, "lr": np.float16, "prediction": np.float32}


@dataclass(frozen=True)
class Latents:
    """The latents from which the errors of a group are computed.

                            mean (G, c, h, w)     std          lr        prediction
        input reencoded     posterior mean of     posterior    None      None
                            each candidate        deviation
        input lr            z_SR of each          None         z_LR      the reference's eps_hat
                                                                         (K, c, h, w) of each noise
        candidates action   each action           None         z_LR      None

    std has the shape of mean, and lr (c, h, w) is the sample of z_LR that the candidates share.
    mean, std and lr are float32, or float16 when read from a file; prediction is float32, the
    precision in which the reference's errors were computed from it.
    """

    mean: torch.Tensor
    std: torch.Tensor | None
    lr: torch.Tensor | None = None
    prediction: torch.Tensor | None = None

    def to(self, device: torch.device) -> "Latents":
        """The latents on `device`; copies to a GPU are asynchronous."""
        later = device.type != "cpu"

        def moved(x: torch.Tensor | None) -> torch.Tensor | None:
            return None if x is None else x.to(device, non_blocking=later)

        mean = self.mean.to(device, non_blocking=later)
        return Latents(mean, moved(self.std), moved(self.lr), moved(self.prediction))


@dataclass(frozen=True)
class Group:
    """One stored group.

    seeds and each list in metrics have length G; noise_seeds and reference_error have shape (K, G)
    for K stored noises. lr: SHA-256 of the LR patch's pixels. tags: None if the patches were not
    tagged. detail_share: rho_d of the HR patch, in [0, 1].
    """

    id: str
    lr: str
    tags: str | None
    prompt: str
    detail_share: float
    seeds: list[int]
    metrics: dict[str, list[float]]
    latents: Latents
    noise_seeds: list[list[int]]
    reference_error: list[list[float]]


@dataclass(frozen=True)
class Skipped:
    """A pair without a usable group, and the reason."""

    id: str
    reason: str


PLAIN = (
    "id",
    "lr",
    "tags",
    "prompt",
    "detail_share",
    "seeds",
    "metrics",
    "noise_seeds",
    "reference_error",
)


def schema(config: Rollout, header: str) -> pa.Schema:
    """The Parquet schema of a rollout set; `header` is JSON that describes how it was made."""
    # float64: rewards divide by the range of a group's scores, which may lie in the last digits of
    # float32.
    metrics = pa.struct([(name, pa.list_(pa.float64())) for name in config.metrics])
    fields = {
        "id": pa.string(),
        "lr": pa.string(),
        "tags": pa.string(),
        "prompt": pa.string(),
        "detail_share": pa.float64(),
        "seeds": pa.list_(pa.int64()),
        "metrics": metrics,
        "noise_seeds": pa.list_(pa.list_(pa.int64())),
        "reference_error": pa.list_(pa.list_(pa.float64())),
        "shape": pa.list_(pa.int32()),
        "latent_mean": pa.binary(),
        "latent_std": pa.binary(),
        "latent_lr": pa.binary(),
        "latent_prediction": pa.binary(),
        "sha256": pa.string(),
    }
    return pa.schema(fields, metadata={"gdpo-rollout": SCHEMA_VERSION, "rollout": header})


def to_row(group: Group) -> dict[str, Any]:
    """A group as one Parquet row, latents as bytes of the types `STORED`.

    The cast loses nothing: the latents were rounded to float16 before the errors were computed.
    """
    row = {name: getattr(group, name) for name in PLAIN}
    for name, dtype in STORED.items():
        latent = getattr(group.latents, name)
        row[f"latent_{name}"] = None if latent is None else latent.numpy().astype(dtype).tobytes()
    row["shape"] = list(group.latents.mean.shape)
    return {**row, "sha256": row_hash(row)}


def row_hash(row: dict[str, Any]) -> str:
    """SHA-256 over all columns of a row but the hash itself."""
    plain = {name: row[name] for name in (*PLAIN, "shape")}
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for name in STORED:
        latent = row[f"latent_{name}"] or b""
        digest.update(len(latent).to_bytes(8, "big"))
        digest.update(latent)
    return digest.hexdigest()


def from_row(row: dict[str, Any]) -> Group:
    """The group of one Parquet row."""

    def latent(name: str, *shape: int) -> torch.Tensor | None:
        content = row[f"latent_{name}"]
        if content is None:
            return None
        # A copy, because bytes are read-only, and torch warns about tensors on such memory.
        return torch.from_numpy(np.frombuffer(content, STORED[name]).reshape(shape).copy())

    size, *one = row["shape"]
    mean = latent("mean", size, *one)
    assert mean is not None
    others = latent("std", size, *one), latent("lr", *one), latent("prediction", -1, *one)
    return Group(latents=Latents(mean, *others), **{name: row[name] for name in PLAIN})


def subset(group: Group, size: int) -> Group:
    """The group of the first `size` candidates, identical to a rollout with G = `size`.

    Errors: ValueError if the group has fewer candidates, or `size` is below 2.
    """
    if not 2 <= size <= len(group.seeds):
        raise ValueError(
            f"group {group.id} has {len(group.seeds)} candidates; a subset of {size} cannot be "
            "taken"
        )
    latents = group.latents
    return replace(
        group,
        # The first ones: candidate i has the same seed whatever G is.
        seeds=group.seeds[:size],
        metrics={name: values[:size] for name, values in group.metrics.items()},
        latents=replace(
            latents,
            mean=latents.mean[:size],
            std=None if latents.std is None else latents.std[:size],
        ),
        noise_seeds=[seeds[:size] for seeds in group.noise_seeds],
        reference_error=[errors[:size] for errors in group.reference_error],
    )


def reward_of(
    metrics: dict[str, list[float]], detail_share: float, reward: Reward
) -> tuple[list[float], list[float]]:
    """(rewards, advantages) of one group from its raw metric values, each of length G.

    Errors: ValueError naming a metric of the reward that the group lacks.
    """

    def oriented(names: list[str]) -> torch.Tensor:
        for name in names:
            if name not in metrics:
                raise ValueError(
                    f"the rollouts hold no {name}, which the reward uses; add it to rollout.metrics"
                )
        rows = [[v if higher_is_better(n) else -v for v in metrics[n]] for n in names]
        return torch.tensor(rows, dtype=torch.float64).reshape(len(names), size).T[None]

    size = len(next(iter(metrics.values())))
    # float64 and no device: the rewards decide the sign of a gradient, and they are six numbers.
    shares = torch.tensor([perception_weight(reward, detail_share)], dtype=torch.float64)
    values = attribute_aware_reward(oriented(reward.fidelity), oriented(reward.perception), shares)
    return values[0].tolist(), group_advantage(values)[0].tolist()
