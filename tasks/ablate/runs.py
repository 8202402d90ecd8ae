"""The runs behind `ablate`: their dependencies and how each is performed.

    work/ablate/rollouts/<fingerprint>.parquet    one rollout set per way of making candidates, with
                                                  the largest G of the rows
    work/ablate/runs/<fingerprint>/result.json    scores (I, N) of one trained model; written
                                                  atomically
    work/ablate/checkpoints/<fingerprint>/        of the current run: its checkpoint, or its
                                                  finished chunks

A run is named by a hash of everything it depends on: its own configuration, weights, data, code and
metrics. So tables share runs, and a repeated command resumes where the first one ended. Every run
computes with one thread (or on a GPU of its own) in a process that starts no others, so the number
of concurrent runs changes no bit of a result.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from gdpo.config import Config
from gdpo.data.shards import Pair, Shards
from gdpo.evaluate.benchmark import evaluate_image
from gdpo.files import written_aside
from gdpo.hooks import Hooks, Stopped
from gdpo.metrics.score import check_available, versions
from gdpo.model.base import base_hashes
from gdpo.model.checkpoints import read_adapters
from gdpo.model.naosd import NAOSD
from gdpo.model.sampling import base_dtype
from gdpo.preference.group import Group, schema, subset
from gdpo.preference.loop import finetune
from gdpo.preference.rollout import by_reference
from gdpo.pretrain.loop import pretrain
from gdpo.pretrain.start import initial_model
from tasks import paths
from tasks.ablate.rows import metrics_of
from tasks.files.chunks import Chunks, groups, skipped
from tasks.files.groups import read_groups
from tasks.files.rollouts import pairs_at_once
from tasks.files.selection import MANIFEST, Selected
from tasks.run.fingerprint import fingerprint, made_by, model_fingerprint, prompts_of
from tasks.run.training import device
from tasks.stages.evaluate import make_upscalers, open_pairs

WORK = Path(paths.WORK, "ablate")


@dataclass(frozen=True)
class Job:
    """One unit of work: `rollouts`, `naosd` (its evaluation), `finetune` or `pretrain`.

    config: of this run. sources: `sources()`, part of every fingerprint. noise_seed: of the
    evaluation, the same for all runs whatever their training seed. Of `finetune` jobs only:
    rollouts: the job that makes the groups; control: shuffle their advantages; every: train on
    every n-th group.
    """

    kind: str
    config: Config
    sources: dict[str, Any]
    noise_seed: int
    rollouts: "Job | None" = None
    control: bool = False
    every: int = 1

    @property
    def fingerprint(self) -> str:
        """A hash that is equal only for runs with equal results."""
        config = self.config
        read = {
            "rollouts": ("model", "rollout"),
            "naosd": ("model",),
            "pretrain": ("model", "pretrain"),
            "finetune": ("model", "reward", "rollout", "finetune"),
        }[self.kind]
        settings: dict[str, Any] = {name: getattr(config, name).model_dump() for name in read}
        if self.kind == "rollouts":
            settings["groups"] = config.ablate.groups
        else:
            keys = ("benchmarks", "color_fix", "precision", "batch")
            settings["evaluate"] = {key: getattr(config.evaluate, key) for key in keys} | {
                "noises": config.ablate.noises
            }
            settings["noise_seed"] = self.noise_seed
        rollouts = self.rollouts and self.rollouts.fingerprint
        plain = {
            "kind": self.kind,
            "seed": config.seed,
            "made": rollouts,
            "control": self.control,
            "every": self.every,
        }
        return fingerprint({**plain, **settings, "sources": self.sources}, [])[:32]

    @property
    def output(self) -> Path:
        """The file that exists once the job is done, relative to the root."""
        if self.kind == "rollouts":
            return WORK / f"rollouts/{self.fingerprint}.parquet"
        return WORK / f"runs/{self.fingerprint}/result.json"


def sources(config: Config, root: Path) -> dict[str, Any]:
    """Hashes of everything that every run depends on.

    Errors: ValueError naming the missing input and the command that makes it.
    """
    for path in (f"{paths.NAOSD}/model.json", paths.TRAIN, f"{paths.SELECTED}/{MANIFEST}"):
        if not (root / path).exists():
            raise ValueError(
                f"{path}: not there; `dvc repro select` makes what the ablations start from"
            )
    metrics = metrics_of(config)
    check_available(metrics)
    pairs, folders = open_pairs(config, root, config.evaluate.benchmarks[0], metrics)
    init = initial_model(config)
    return {
        **made_by(__name__),
        "metrics": versions(metrics),
        "base": base_hashes(root / config.model.base),
        "prompts": prompts_of(root / config.model.base),
        "naosd": model_fingerprint(root / paths.NAOSD),
        "tagger": None
        if config.model.tagger is None
        else fingerprint({}, [root / config.model.tagger]),
        "init": None if init is None else fingerprint({}, [root / init]),
        "train": Shards(root / paths.TRAIN).fingerprint(),
        "selected": fingerprint({}, [root / paths.SELECTED]),
        "held_out": pairs.fingerprint() if isinstance(pairs, Shards) else fingerprint({}, folders),
    }


def perform(job: Job, root: Path, hooks: Hooks) -> None:
    """Perform one job and write its output; does nothing if the output exists.

    Raises `Stopped` when asked to stop. Checkpoints and chunks are kept; only an evaluation, which
    is short, starts again.
    """
    if (root / job.output).exists():
        return
    if job.kind == "rollouts":
        _make_rollouts(job, root, hooks)
        return
    # By fingerprint: processes work on several jobs at once, and a later call finds its own again.
    work = root / WORK / "checkpoints" / job.fingerprint
    config, history = job.config, list[dict[str, float]]()
    base = root / config.model.base
    if job.kind == "pretrain":
        start = initial_model(config)
        init = None if start is None else read_adapters(root / start)[0]
        shards = Shards(root / paths.TRAIN)
        adapters, history = pretrain(
            NAOSD.from_base(base).to(device()),
            shards,
            config,
            init=init,
            folder=work,
            fingerprint=job.fingerprint,
            hooks=hooks,
        )
        # A fresh base: the trained one still has its adapters, for the policy and the fake score.
        model = NAOSD.from_base(base)
        model.merge(adapters)
        model.t_add, model.t_diff, model.prompt = (
            config.model.t_add,
            config.model.t_diff,
            config.model.prompt,
        )
    else:
        model = NAOSD.from_pretrained(root / paths.NAOSD, base=base)
        if job.kind == "finetune":
            policy = _reference(config, root)
            adapters, history = finetune(
                policy,
                _groups(job, root, policy),
                config,
                control=job.control,
                folder=work,
                fingerprint=job.fingerprint,
                hooks=hooks,
            )
            model.merge(adapters)
    images = list(_evaluated(job, model.to(device()), root, hooks))
    with written_aside((root / job.output).parent) as part:
        part.mkdir()
        last = history[-1] if history else None
        (part / "result.json").write_text(
            json.dumps({"images": images, "last": last}, allow_nan=False)
        )
    # After the result is in place: killed before, the job goes on from the checkpoint.
    shutil.rmtree(work, ignore_errors=True)


def _evaluated(job: Job, model: NAOSD, root: Path, hooks: Hooks) -> Iterator[dict[str, Any]]:
    """For every held-out image its id, photograph, detail share and scores, with the same noises
    for all runs.
    """
    config, metrics = job.config, list(job.sources["metrics"])
    pairs, _ = open_pairs(config, root, config.evaluate.benchmarks[0], metrics)
    upscalers = make_upscalers(config, root, {"it": model})
    for index in range(len(pairs)):
        if hooks.should_stop():
            raise Stopped(index)
        pair: Pair = pairs[index]
        noises, batch = config.ablate.noises, config.evaluate.batch
        scores = evaluate_image(
            pair, upscalers, metrics, seed=job.noise_seed, noises=noises, batch=batch
        ).scores["it"]
        values = {metric: array.tolist() for metric, array in scores.items()}
        yield {
            "id": pair.id,
            "source": pair.source,
            "detail_share": pair.detail_share,
            "scores": values,
        }


def _selected(config: Config, root: Path) -> list[Pair]:
    """`ablate.groups` patches of the selection, at equal steps of rank, so that they come from all
    photographs and not only from the best-ranked one.
    """
    pairs = Selected(root)
    count = min(config.ablate.groups, len(pairs))
    return [pairs[place * len(pairs) // count] for place in range(count)]


def _reference(config: Config, root: Path) -> NAOSD:
    """NAOSD on its device, loaded as in the stages rollout and finetune."""
    model = NAOSD.from_pretrained(root / paths.NAOSD, base=root / config.model.base)
    return model.to(device(), base_dtype(config.rollout.precision))


def _make_rollouts(job: Job, root: Path, hooks: Hooks) -> None:
    """Make one rollout set; its metadata names the pairs without a group. Errors: ValueError if no
    pair gave a group.
    """
    config = job.config
    pairs, at_once = _selected(config, root), pairs_at_once(config.rollout)
    chunks = Chunks(
        root / WORK / "checkpoints" / job.fingerprint, job.fingerprint, schema(config.rollout, "{}")
    )
    model = _reference(config, root)
    without: dict[str, str] = {}
    for start in range(0, len(pairs), at_once):
        table, is_new = chunks.get(
            start, partial(groups, model, pairs[start : start + at_once], config)
        )
        without |= skipped(table.schema)
        if is_new and hooks.should_stop():
            raise Stopped(start)
    if len(without) == len(pairs):
        id_, reason = next(iter(without.items()))
        chunks.remove()
        raise ValueError(f"no rollout has finite scores ({id_}: {reason}); nothing to train on")
    with written_aside(root / job.output) as part:
        chunks.join(part, {"skipped": json.dumps(without)})
    chunks.remove()


def left_out(job: Job, root: Path) -> list[dict[str, str]]:
    """The pairs that gave no group in a rollout set, with the reasons."""
    return [
        {"id": id_, "reason": reason}
        for id_, reason in skipped(pq.read_schema(root / job.output)).items()
    ]


def _groups(job: Job, root: Path, model: NAOSD) -> list[Group]:
    """The groups of a run, with the first G candidates of each stored group.

    Recomputes the reference's errors if the run's noise or target differs from that of the rollout
    set.
    """
    assert job.rollouts is not None
    stored, wanted = job.rollouts.config.rollout, job.config.rollout
    rollouts = read_groups(root / job.rollouts.output, job.every)
    groups = [subset(group, wanted.group) for group in rollouts]
    # Candidates and scores depend on neither, so one set serves rows with other noise or target.
    if (stored.noise, stored.target) == (wanted.noise, wanted.target):
        return groups
    return [_with_errors(model, group, job.config) for group in groups]


@torch.no_grad()
def _with_errors(model: NAOSD, group: Group, config: Config) -> Group:
    """The same candidates, with the reference's errors under `config`'s noise and target."""
    on_device = replace(group, latents=group.latents.to(next(model.parameters()).device))
    _, errors = by_reference(model, on_device, config)
    return replace(group, reference_error=errors.tolist())
