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

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gdpo.config import Config
from gdpo.config.evaluation import SAMPLE
from gdpo.data.shards import Pair, Shards
from gdpo.evaluate.benchmark import Upscaler, evaluate_image
from gdpo.evaluate.models import EvaluatedModels
from gdpo.evaluate.pairs import BenchmarkPairs
from gdpo.files import written_aside
from gdpo.hooks import Hooks, Stopped
from gdpo.metrics import fid
from gdpo.metrics.score import METRICS, check_available
from gdpo.model.card import IDENTITIES
from gdpo.model.naosd import NAOSD
from gdpo.upscale.protocol import Settings, SuperResolver
from gdpo.upscale.resolver import NAOSDResolver, load_super_resolvers
from tasks import paths
from tasks.files import tags
from tasks.files.evaluation import (
    FinishedImage,
    ImageStore,
    candidate_group,
    folder_name,
    has_pictures,
    image_entry,
    is_current,
    write_results,
)
from tasks.run.fingerprint import inputs_of
from tasks.run.provenance import origin
from tasks.run.training import device

# Images whose whole group of candidates is kept for the report; at most one per photograph.
CANDIDATE_IMAGES = 3


@dataclass(frozen=True)
class Evaluation:
    """A stage that evaluates: this one, or that of another system.

    command: its name. module: its module, whose code the results depend on. reports: the folder of
    its results. load: as `gdpo.upscale.resolver.load_super_resolvers`.
    """

    command: str
    module: str
    reports: str
    load: Callable[..., Mapping[str, SuperResolver]]


OWN = Evaluation("evaluate", __name__, paths.EVALUATED, load_super_resolvers)


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
    evaluate_benchmark(config, root, hooks, benchmark, OWN, keep=keep)


def evaluate_benchmark(
    config: Config,
    root: Path,
    hooks: Hooks,
    benchmark: str | None,
    stage: Evaluation,
    *,
    keep: bool = False,
) -> None:
    """As `run`, for any stage that evaluates."""
    benchmark = benchmark or config.evaluate.benchmarks[0]
    reports = root / stage.reports / benchmark
    work = paths.work(root, stage.command, benchmark)
    metrics = list(
        dict.fromkeys(
            [*config.evaluate.metrics, *config.reward.fidelity, *config.reward.perception]
        )
    )
    check_available(metrics)
    pairs, folders = open_pairs(config, root, benchmark, metrics)
    provenance = origin(stage.module, config, root, benchmark, metrics, folders)
    if keep and is_current(reports, provenance):
        return
    # Without the code's hash, which `inputs_of` adds together with the versions of the libraries.
    made_from = {key: value for key, value in provenance.items() if key != "code"}
    kept = ImageStore(work, inputs_of(stage.module, made_from))
    upscalers: dict[str, Upscaler] = {}  # loaded only if an image is missing
    images: list[FinishedImage] = []
    ours = EvaluatedModels.of_origin(provenance, benchmark).ours  # its means are logged
    for index, image in enumerate(pairs.ids):
        done = kept.read(folder_name(index, image))
        if done is None:
            # With the first missing image: a run that has them all needs no model, and no GPU.
            upscalers = upscalers or _load(config, root, stage)
            done = _evaluate_image(config, pairs, index, upscalers, provenance, images, kept)
        images.append(done)
        of_ours = done.scores[ours].items()
        means = {metric: float(values.mean()) for metric, values in of_ours}
        hooks.log(index, {"of": len(pairs.ids), **means})
        if hooks.should_stop():
            raise Stopped(index + 1)
    with written_aside(reports) as out:
        write_results(out, config, provenance, images, kept)
    kept.remove()


def open_pairs(
    config: Config, root: Path, name: str, metrics: list[str]
) -> tuple[Shards | BenchmarkPairs, list[Path]]:
    """The pairs of a benchmark, and the folders they come from. Errors: ValueError as in `run`."""
    if name == SAMPLE:
        folder = root / paths.HELD_OUT
        pairs: Shards | BenchmarkPairs = Shards(folder)
        if not pairs.ids:
            raise ValueError(
                f"{paths.HELD_OUT}: no pairs; check degrade.evaluation and degrade.evaluation_crop"
            )
        folders = [folder]
    elif name in config.evaluate.pairs:
        settings = config.evaluate.pairs[name]
        baselines = {method: root / folder for method, folder in settings.baselines.items()}
        least = max(METRICS[metric].min_side for metric in metrics)
        folders = [root / settings.lr, root / settings.hr]
        pairs = BenchmarkPairs.checked(name, folders[0], folders[1], baselines, least)
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


def _evaluate_image(
    config: Config,
    pairs: Shards | BenchmarkPairs,
    index: int,
    upscalers: dict[str, Upscaler],
    provenance: dict[str, Any],
    before: list[FinishedImage],
    kept: ImageStore,
) -> FinishedImage:
    """Compute and store the outputs and scores of one image; FID features and candidates where
    needed.

    before: the images finished so far; they decide whether this image's candidates are kept.
    """
    pair: Pair = pairs[index]
    baselines = pairs.baseline_outputs(index) if isinstance(pairs, BenchmarkPairs) else {}
    metrics = [metric for metric in provenance["metrics"] if not METRICS[metric].per_set]
    result = evaluate_image(
        pair,
        upscalers,
        metrics,
        seed=config.seed,
        noises=provenance["noises"],
        batch=config.evaluate.batch,
        baselines=baselines,
    )
    features = {}
    if "fid" in provenance["metrics"]:
        sets = {**result.outputs, "hr": pair.hr[None]}
        features = {name: fid.features(outputs, device()) for name, outputs in sets.items()}
    entry, pictures = (
        image_entry(pair, folder_name(index, pair.id)),
        has_pictures(index, len(pairs.ids)),
    )
    group = None
    # By the images finished so far: a resumed run reads them back in the same order and therefore
    # keeps the candidates of the same images.
    new = pair.source not in {done.entry["source"] for done in before}
    if pictures and new and sum(done.group is not None for done in before) < CANDIDATE_IMAGES:
        reference = next(iter(upscalers))
        group = candidate_group(pair, entry["folder"], reference, result.scores[reference], config)
    done = FinishedImage(entry, result.scores, group)
    kept.write(done, pair, result, features, pictures=pictures)
    return done


def _load(config: Config, root: Path, stage: Evaluation) -> dict[str, Upscaler]:
    """The models of evaluate.models."""
    folders = {name: root / folder for name, folder in config.evaluate.models.items()}
    models = stage.load(folders, device=str(device()), settings=_settings(config, root))
    return {name: model.batch for name, model in models.items()}


def make_upscalers(config: Config, root: Path, models: Mapping[str, NAOSD]) -> dict[str, Upscaler]:
    """{name: function from LR to SR} of networks in memory, as the stage runs its own."""
    settings = _settings(config, root)

    def run(model: NAOSD) -> Upscaler:
        return NAOSDResolver(IDENTITIES["naosd"], lambda: model, settings).batch

    return {name: run(model) for name, model in models.items()}


def _settings(config: Config, root: Path) -> Settings:
    """The configured colour correction, precision and tagger."""
    return Settings(
        color_fix=config.evaluate.color_fix,
        precision=config.evaluate.precision,
        tagger=tags.load(config.model.tagger, root, dape=True),
    )
