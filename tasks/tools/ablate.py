"""Tool `ablate`: the paper's ablations, each row beside its shuffled control.

    gdpo-sr ablate 5 6 7 9 11 fig7 options

    1. one rollout set per way of making candidates
    2. for every row and repeat, with and without shuffled advantages: fine-tune, evaluate
    3. write reports/ablate/<table>.md, .csv, .html, .svg; results.json; index.md

The tool starts from the outputs of `dvc repro select`. A row that several tables share is trained
once. Finished runs stay in work/ablate, so the same command resumes after a stop or a kill. Results
depend on the section `ablate` of params.yaml, and on everything that a pipeline run depends on.
tasks/ablate/findings.py defines the differences, their intervals and signs.
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from gdpo.config import Config
from tasks import paths
from tasks.ablate.rows import ABLATIONS, SIZES, AblationRow, base, changed, rows
from tasks.arguments import add_params
from tasks.report import paper
from tasks.run.exit_codes import NEEDS_GPU, STOPPED

if TYPE_CHECKING:
    from tasks.ablate.findings import RowScores
    from tasks.ablate.runs import Job

EXAMPLE = "gdpo-sr ablate 5 11 --set ablate.repeats=5"
LINE_EVERY_S = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which tables, with which parameters, and where they go."""
    parser.add_argument(
        "tables",
        nargs="*",
        type=_table,
        metavar="TABLE",
        help=f"{', '.join(ABLATIONS)}; default: all",
    )
    add_params(parser)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(paths.ABLATED),
        metavar="FOLDER",
        help="replaced; default: reports/ablate",
    )
    parser.add_argument("--json", action="store_true", help="print results.json")


def _table(text: str) -> str:
    """An argument type: the key of a table."""
    if text not in ABLATIONS:
        raise argparse.ArgumentTypeError(f"no ablation {text!r}; there is {', '.join(ABLATIONS)}")
    return text


def main(args: argparse.Namespace) -> int:
    """Do the missing runs, then write the tables. ValueError naming a missing input."""
    from tasks.params import load

    config = load(args.params, args.profile, args.set)
    if not config.allow_cpu and not _has_gpu():
        sys.stderr.write(
            "gdpo-sr: ablate needs a GPU and there is none here (allow_cpu: true lets it run on "
            "the CPU)\n"
        )
        return NEEDS_GPU
    # SIGTERM as Ctrl-C: the exception unwinds `run_all`, which ends the worker processes.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        text = run(
            config, Path.cwd(), list(dict.fromkeys(args.tables)) or list(ABLATIONS), args.out
        )
    except KeyboardInterrupt:
        sys.stderr.write(
            "gdpo-sr: stopped; finished runs are kept in work/ablate, the same command continues\n"
        )
        return STOPPED
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.stdout.write(
        (args.out / "results.json").read_text()
        if args.json
        else f"{text}\n{args.out / 'index.md'}\n"
    )
    return 0


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@dataclass(frozen=True)
class Runs:
    """The runs of the chosen tables, each once.

    reference: the evaluation of NAOSD. first: rollout sets, evaluations and pretrainings. then: the
    fine-tunings, which need them. rows: {table: {row: (the repeats, those of the control)}}; Fig. 7
    has no controls.
    """

    reference: "Job"
    first: list["Job"]
    then: list["Job"]
    rows: dict[str, dict[str, tuple[list["Job"], list["Job"]]]]


def needed_runs(config: Config, tables: Sequence[str], sources: dict[str, Any]) -> Runs:
    """The runs that these tables need. sources: see tasks.ablate.runs.sources."""
    from tasks.ablate.runs import Job

    start = base(config)
    # The groups of every size G in Table 7 are the first candidates of one set of the largest size.
    largest = changed(start, {"rollout": {"group": max(*SIZES, start.rollout.group)}})
    reference = Job("naosd", start, sources, config.seed)
    tables_of: dict[str, dict[str, tuple[list[Job], list[Job]]]] = {}
    for key in tables:
        tables_of[key] = {}
        for row in rows(key, start):
            try:
                tables_of[key][row.name] = _runs(row, start, largest, reference)
            except ValueError as error:
                raise ValueError(f"ablate {key}, row {row.name}: {error}") from error
        for t_add, t_diff in paper.FIGURE_7 if key == "fig7" else ():
            steps = {
                "model": {"t_add": t_add, "t_diff": t_diff},
                "pretrain": {"steps": config.ablate.pretrain_steps, "gpus": 1, "nodes": 1},
            }
            configs = [
                changed(start, steps).model_copy(update={"seed": config.seed + i})
                for i in range(config.ablate.repeats)
            ]
            jobs = [replace(reference, kind="pretrain", config=one) for one in configs]
            tables_of[key][f"({t_add}, {t_diff})"] = (jobs, [])
    every = [
        job
        for table in tables_of.values()
        for both in table.values()
        for jobs in both
        for job in jobs
    ]
    trained = {job.fingerprint: job for job in every if job.kind == "finetune"}
    rollouts = {
        job.rollouts.fingerprint: job.rollouts
        for job in trained.values()
        if job.rollouts is not None
    }
    others = {job.fingerprint: job for job in every if job.kind == "pretrain"}
    return Runs(
        reference,
        [*rollouts.values(), reference, *others.values()],
        list(trained.values()),
        tables_of,
    )


def _runs(
    row: AblationRow, start: Config, largest: Config, reference: "Job"
) -> tuple[list["Job"], list["Job"]]:
    """The repeats of a row, and those of its control."""
    config = changed(start, row.changes)
    # One rollout set per way of making candidates, and per input, serves every rollout.noise and
    # rollout.target. The set of noise candidates also serves every group size.
    of = config if config.rollout.input != start.rollout.input else start
    kept = {name: getattr(of.rollout, name) for name in ("input", "noise", "target")}
    made_by = largest if config.rollout.candidates == "noise" else config
    source = changed(made_by, {"rollout": kept})
    rollouts = replace(reference, kind="rollouts", config=source)
    runs: tuple[list[Job], list[Job]] = ([], [])
    for repeat in range(start.ablate.repeats):
        own = changed(config, {"finetune": {"repeat": repeat}})
        for control in (False, True):
            job = replace(
                reference,
                kind="finetune",
                config=own,
                rollouts=rollouts,
                control=control,
                every=row.every,
            )
            runs[control].append(job)
    return runs


def run(config: Config, root: Path, tables: Sequence[str], out: Path) -> str:
    """Do all runs and write the results; returns a sentence or two per table."""
    from tasks.ablate.pages import write
    from tasks.ablate.pool import run_all
    from tasks.ablate.runs import left_out, sources

    wanted = needed_runs(config, tables, sources(config, root))
    with _Progress(len(wanted.first) + len(wanted.then)) as done:
        # Two phases: a fine-tuning reads the rollout set of its row, which must be complete.
        run_all(wanted.first, root, config.ablate.processes, done)
        run_all(wanted.then, root, config.ablate.processes, done)
    images = _read(wanted.reference, root)["images"]
    results = {
        key: {name: _result(*both, root) for name, both in table.items()}
        for key, table in wanted.rows.items()
    }
    about = {
        "distances": {
            key: {name: _distances(*both, root) for name, both in table.items()}
            for key, table in wanted.rows.items()
        },
        "images": len(images),
        "sources": [image["source"] for image in images],
        "photographs": len({image["source"] for image in images}),
        "fine_tunings": len(wanted.then),
        "skipped": {
            job.config.rollout.candidates: left_out(job, root)
            for job in wanted.first
            if job.kind == "rollouts"
        },
        "params": {
            name: getattr(base(config), name).model_dump()
            for name in ("ablate", "reward", "rollout", "finetune")
        },
        "metrics": wanted.reference.sources["metrics"],
    }
    shares = np.array([image["detail_share"] for image in images])
    return write(out, base(config), about, _scores([wanted.reference], root), shares, results)


def _result(runs: list["Job"], controls: list["Job"], root: Path) -> "RowScores":
    from tasks.ablate.findings import RowScores

    return RowScores(_scores(runs, root), _scores(controls, root) if controls else None)


def _distances(runs: list["Job"], controls: list["Job"], root: Path) -> list[float | None]:
    """Distance from NAOSD at the last step, of a row and of its control: means over repeats, None
    where it is not logged.
    """

    def mean(jobs: list["Job"]) -> float | None:
        last = [_read(job, root)["last"] or {} for job in jobs]
        logged = [values["distance"] for values in last if "distance" in values]
        return float(np.mean(logged)) if logged else None

    return [mean(runs), mean(controls)]


def _scores(jobs: Sequence["Job"], root: Path) -> dict[str, Any]:
    """{metric: array (I, R, N)} over images, the repeats of one model, and noises."""
    by_run = [_read(job, root)["images"] for job in jobs]
    metrics = by_run[0][0]["scores"]
    return {
        m: np.array([[image["scores"][m] for image in images] for images in by_run]).swapaxes(0, 1)
        for m in metrics
    }


def _read(job: "Job", root: Path) -> dict[str, Any]:
    path = root / job.output
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{job.output}: damaged ({error}); delete it, and the same command writes it again"
        ) from error
    return content


class _Progress:
    """A progress bar on a terminal; otherwise at most one line per LINE_EVERY_S seconds."""

    def __init__(self, total: int) -> None:
        self._bar = tqdm(total=total, desc="ablate", unit="run", disable=None, leave=False)
        self._total, self._count, self._next = total, 0, time.monotonic() + LINE_EVERY_S

    def __call__(self, job: "Job") -> None:
        self._count += 1
        self._bar.update()
        if self._bar.disable and time.monotonic() >= self._next:
            self._next = time.monotonic() + LINE_EVERY_S
            sys.stderr.write(f"ablate {self._count}/{self._total} {job.kind}\n")
            sys.stderr.flush()

    def __enter__(self) -> Callable[["Job"], None]:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
