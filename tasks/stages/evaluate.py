"""Stage `evaluate`: scores bicubic and every model of evaluate.models on one benchmark, with the
same noises for all.

    python -m tasks evaluate --benchmark sample                     the held-out shards in
                                                                    data/shards/evaluation
    python -m tasks evaluate --benchmark realsr                     the folders of
                                                                    evaluate.pairs.realsr
    python -m tasks evaluate --benchmark sample --against latest    and compare with the promoted
                                                                    run (tasks/report/against.py)

Writes reports/evaluate/<benchmark> (format: tasks/files/evaluation.py). A stopped or killed run
resumes with the image it was processing. gdpo/evaluate/benchmark.py defines the scores and the
reward.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from gdpo.config import Config
from gdpo.data.shards import Pair, Shards
from gdpo.evaluate.benchmark import Upscaler, evaluate_image
from gdpo.evaluate.pairs import PairFolder
from gdpo.files import written_aside
from gdpo.metrics import fid
from gdpo.metrics.score import METRICS, check_available
from gdpo.model.naosd import NAOSD
from gdpo.model.sampling import super_resolve
from gdpo.train.loop import Hooks, Stopped
from tasks.files import tags
from tasks.files.evaluation import (
    Done,
    Kept,
    candidates,
    describe,
    folder_name,
    has_pictures,
    is_current,
    write_results,
)
from tasks.run.fingerprint import fingerprint
from tasks.run.provenance import origin
from tasks.run.training import device

SAMPLE = "sample"
# Images whose whole group of candidates is kept for the report; at most one per photograph.
CANDIDATE_IMAGES = 3


def run(
    config: Config, root: Path, hooks: Hooks, benchmark: str | None = None, *, keep: bool = False
) -> None:
    """Evaluate every model on every pair of `benchmark` (None: the first of evaluate.benchmarks).

    keep: do nothing if results exist and come from the same code, weights, data and settings.

    Raises `Stopped` between images. Finished images stay in work/evaluate/<benchmark>, and the same
    call resumes from them.

    Errors: ValueError naming the metric whose weights are missing, the folder, or every unusable
    pair.
    """
    benchmark = benchmark or config.evaluate.benchmarks[0]
    metrics = list(
        dict.fromkeys(
            [*config.evaluate.metrics, *config.reward.fidelity, *config.reward.perception]
        )
    )
    check_available(metrics)
    pairs, folders = open_pairs(config, root, benchmark, metrics)
    found = origin(config, root, benchmark, metrics, folders)
    if keep and is_current(root / "reports/evaluate" / benchmark, found):
        return
    kept = Kept(root / "work/evaluate" / benchmark, fingerprint(found, []))
    ways: dict[str, Upscaler] = {}  # loaded only if an image is missing
    images: list[Done] = []
    # The model whose means are logged: the second, usually GDPO-SR, or the only one.
    shown = list(config.evaluate.models)[:2][-1]
    for index, image in enumerate(pairs.ids):
        done = kept.read(folder_name(index, image))
        if done is None:
            ways = ways or upscalers(config, root, _models(config, root))
            done = _evaluate(config, pairs, index, ways, found, images, kept)
        images.append(done)
        means = {metric: float(values.mean()) for metric, values in done.scores[shown].items()}
        hooks.log(index, {"of": len(pairs.ids), **means})
        if hooks.should_stop():
            raise Stopped(index + 1)
    with written_aside(root / "reports/evaluate" / benchmark) as out:
        write_results(out, config, found, images, kept)
    kept.remove()


def open_pairs(
    config: Config, root: Path, name: str, metrics: list[str]
) -> tuple[Shards | PairFolder, list[Path]]:
    """The pairs of a benchmark, and the folders they come from. Errors: ValueError as in `run`."""
    if name == SAMPLE:
        folder = root / "data/shards/evaluation"
        pairs: Shards | PairFolder = Shards(folder)
        if not pairs.ids:
            raise ValueError(
                "data/shards/evaluation: no pairs; check degrade.evaluation and "
                "degrade.evaluation_crop"
            )
        folders = [folder]
    elif name in config.evaluate.pairs:
        known = config.evaluate.pairs[name]
        peers = {method: root / folder for method, folder in known.peers.items()}
        least = max(METRICS[metric].min_side for metric in metrics)
        folders = [root / known.lr, root / known.hr]
        pairs = PairFolder.checked(name, folders[0], folders[1], peers, least)
    else:
        raise ValueError(
            f"evaluate.pairs.{name}: no such benchmark; there is "
            f"{', '.join([SAMPLE, *config.evaluate.pairs])}"
        )
    if "fid" in metrics and len(pairs.ids) < 2:
        raise ValueError(
            f"benchmark {name}: fid compares sets of images, and this has one; leave fid out of "
            "evaluate.metrics"
        )
    return pairs, folders


def _evaluate(
    config: Config,
    pairs: Shards | PairFolder,
    index: int,
    ways: dict[str, Upscaler],
    found: dict[str, Any],
    before: list[Done],
    kept: Kept,
) -> Done:
    """Compute and store the outputs and scores of one image; FID features and candidates where
    needed.

    before: the images finished so far; they decide whether this image's candidates are kept.
    """
    pair: Pair = pairs[index]
    peers = pairs.peer(index) if isinstance(pairs, PairFolder) else {}
    metrics = [metric for metric in found["metrics"] if not METRICS[metric].per_set]
    result = evaluate_image(
        pair,
        ways,
        metrics,
        seed=config.seed,
        noises=found["noises"],
        batch=config.evaluate.batch,
        peers=peers,
    )
    features = {}
    if "fid" in found["metrics"]:
        sets = {**result.outputs, "hr": pair.hr[None]}
        features = {name: fid.features(outputs, device()) for name, outputs in sets.items()}
    entry, pictures = (
        describe(pair, folder_name(index, pair.id)),
        has_pictures(index, len(pairs.ids)),
    )
    group = None
    new = pair.source not in {done.entry["source"] for done in before}
    if pictures and new and sum(done.group is not None for done in before) < CANDIDATE_IMAGES:
        reference = next(iter(ways))
        group = candidates(pair, entry["folder"], reference, result.scores[reference], config)
    done = Done(entry, result.scores, group)
    kept.write(done, pair, result, features, pictures=pictures)
    return done


def _models(config: Config, root: Path) -> dict[str, NAOSD]:
    folders = config.evaluate.models.items()
    return {
        name: NAOSD.from_pretrained(root / folder, device=str(device())) for name, folder in folders
    }


def upscalers(config: Config, root: Path, models: Mapping[str, NAOSD]) -> dict[str, Upscaler]:
    """{model name: function from LR to SR}, with the configured colour correction, precision and
    tags.
    """
    settings: Any = {"color_fix": config.evaluate.color_fix, "precision": config.evaluate.precision}
    tagger = tags.load(config.model.tagger, root, dape=True)
    upscale = super_resolve if tagger is None else partial(tags.with_tags, tagger)
    return {name: partial(upscale, model, **settings) for name, model in models.items()}
