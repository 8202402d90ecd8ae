"""The command line: `python -m tasks COMMAND`, installed as `gdpo-sr COMMAND`.

tasks/commands.py has a row for every command, which names its module.

    stages   are run by dvc.yaml. Module tasks.stages.NAME has
                 run(config: Config, root: Path, hooks: Hooks) -> None
             degrade, rollout, finetune and evaluate also take the name of the part, run or
             benchmark. --params, --profile and --set choose the parameters.
    tools    are run by people. The module, mostly tasks.tools.NAME, has
                 EXAMPLE: str
                 add_arguments(parser: argparse.ArgumentParser) -> None
                 main(args: argparse.Namespace) -> int

Only the module of the chosen command is imported, so that `--help` is quick. A failure is reported
in one line that names the file or key; GDPO_DEBUG=1 shows the traceback. Exit codes:
tasks/run/exit_codes.py.
"""

import argparse
import importlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from tasks import paths
from tasks.arguments import add_params
from tasks.commands import STAGES, TOOLS, Stage, commands_by_heading, gpus_of, nodes_of, section_of
from tasks.run import torchrun
from tasks.run.exit_codes import FAILED, INTERRUPTED, NEEDS_GPU, STOPPED, USAGE
from tasks.run.imports import without_bitsandbytes

if TYPE_CHECKING:
    from gdpo.config import Config
    from gdpo.train.loop import Stopped

# Module -> the extra of pyproject.toml that brings it.
EXTRAS = {
    "boto3": "fleet",
    "botocore": "fleet",
    "gradio": "app",
    "great_expectations": "fleet",
    "mlflow": "mlflow",
    "pillow_heif": "heic",
    "pyiqa": "metrics",
    "tensorboard": "track",
    "trackio": "trackio",
    "wandb": "wandb",
}


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line: its own begin with up to ten of usage."""

    def error(self, message: str) -> NoReturn:
        """Report wrong usage and exit with code 2."""
        self.exit(USAGE, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def build_parser(chosen: str | None = None) -> argparse.ArgumentParser:
    """The parser of all commands. Only the chosen tool's module is imported for its arguments."""
    parser = _Parser(
        prog="gdpo-sr",
        description=_overview(),
        epilog="example: gdpo-sr upscale photo.jpg",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", help="-h shows its options"
    )
    for name, stage in STAGES.items():
        example = f"example: gdpo-sr {name} --set {stage.example}"
        placeholder = stage.choice.option.upper() if stage.choice else ""
        writes = ", ".join(path.format(placeholder) for path in stage.writes)
        what = f"{stage.help}; writes {writes}"
        command = commands.add_parser(name, description=what, epilog=example)
        _add_stage_arguments(command, stage)
    for name, tool in TOOLS.items():
        command = commands.add_parser(name, description=tool.help)
        if name == chosen:
            module = importlib.import_module(tool.module)
            command.epilog = f"example: {module.EXAMPLE}"
            module.add_arguments(command)
    return parser


def _overview() -> str:
    """What the program is, and its commands by groups; argparse cannot group subcommands."""
    lines = ["One-step diffusion super-resolution post-trained with GDPO."]
    for heading, rows in commands_by_heading().items():
        lines += ["", f"{heading}:", *(f"  {name:<16} {text}" for name, text in rows.items())]
    return "\n".join(lines)


class _Version(argparse.Action):
    """Looks the version up only when it is wanted: importlib.metadata is slow to import."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib import metadata

        sys.stdout.write(f"{parser.prog} {metadata.version('gdpo-sr')}\n")
        parser.exit()


def _add_stage_arguments(parser: argparse.ArgumentParser, stage: Stage) -> None:
    add_params(parser)
    choice = stage.choice
    if choice is not None:
        parser.add_argument(
            f"--{choice.option}",
            choices=choice.values or None,
            default=choice.values[0] if choice.values else None,
            metavar=None if choice.values else "NAME",
            help=choice.help,
        )
    if stage.compares:
        parser.add_argument(
            "--against",
            metavar="RUN",
            help="then compare with a run: latest (the promoted one), or a per_image.parquet; "
            "exit code 4 on a regression",
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    # A name that the terminal cannot show must not end a command whose result is written.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # The base model is a local folder; no library may look for a newer version online.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    without_bitsandbytes()
    return _in_one_line(lambda: _run(argv))


def _run(argv: Sequence[str]) -> int:
    args = build_parser(argv[0] if argv else None).parse_args(argv)
    if args.command in TOOLS:
        return int(importlib.import_module(TOOLS[args.command].module).main(args))
    with StopFlag() as stop:
        return _run_stage(args, stop, argv)


def _in_one_line(run: Callable[[], int]) -> int:
    """Call `run` and return its exit code; report a ValueError or OSError in one line."""
    try:
        return run()
    except KeyboardInterrupt:  # of a tool; stages stop at the next step
        sys.stderr.write("gdpo-sr: stopped\n")
        return INTERRUPTED
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        return _fail(
            ValueError(f"{error.name} is not installed; `pip install 'gdpo-sr[{extra}]'` does")
        )
    except (ValueError, OSError) as error:
        if os.environ.get("GDPO_DEBUG") == "1":
            traceback.print_exc()
        return _fail(error)


def _fail(error: ValueError | OSError) -> int:
    from tasks.params import BadParams

    text = (
        f"{error.filename}: {error.strerror}"
        if isinstance(error, OSError) and error.filename
        else str(error)
    )
    return torchrun.ended(USAGE if isinstance(error, BadParams) else FAILED, " ".join(text.split()))


def _run_stage(args: argparse.Namespace, stop: "StopFlag", argv: Sequence[str]) -> int:
    """Load the parameters, then run the stage in this process or in torchrun's processes."""
    from tasks import params

    config = params.load(args.params, args.profile, args.set)
    stage = STAGES[args.command]
    wanted = gpus_of(config, args.command)
    if stage.needs_gpu and not config.allow_cpu and (gpus := _gpus()) < wanted:
        return _fail_without_gpu(args, wanted, gpus)
    # A rank reads the same parameters as its stage, and must not start ranks of its own.
    if torchrun.is_rank():
        with torchrun.rank(stop) as should_stop:
            return _run_here(args, config, should_stop)
    nodes = nodes_of(config, args.command)
    if wanted * nodes == 1:
        return _run_here(args, config, stop)
    host = torchrun.host(nodes, f"{args.command}.nodes")
    return torchrun.start(argv, wanted, stop, host)


def _run_here(args: argparse.Namespace, config: "Config", should_stop: Callable[[], bool]) -> int:
    """Run the stage in this process; `Stopped` becomes exit code 143."""
    from gdpo.train.loop import Hooks, Stopped
    from gdpo.train.world import current
    from tasks.run.copies import copies
    from tasks.run.recorder import Recorder

    stage = STAGES[args.command]
    run: Callable[..., None] = importlib.import_module(stage.module).run
    chosen = getattr(args, stage.choice.option) if stage.choice else None
    against = getattr(args, "against", None)
    names = [chosen] if chosen else []
    root = Path.cwd()
    work = paths.work(root, args.command, *names)
    progress: dict[str, Any] = {}
    copied: AbstractContextManager[dict[str, Any]] = nullcontext({})
    if stage.trains:
        section = section_of(config, args.command)
        progress = {"total": section.steps, "samples": section.batch, "track": config.track}
        if current().is_main:
            copied = copies(work)
    if against:
        from tasks.report.against import baseline_scores, check

        # Before the stage runs: a missing file would otherwise be reported after hours.
        baseline_scores(config, root, chosen, against, stage.system)
    try:
        name = " ".join([args.command, *names])
        with Recorder(work, name, **progress) as recorder, copied as copying:
            # All ranks decide together: if a signal has reached only some of them, those would stop
            # here and the others would wait for them in their first collective call.
            if current().any_rank(should_stop()):
                raise Stopped(0)
            options = {"keep": True} if against else {}
            # The other ranks compute the same values; one logs and copies them.
            own = Hooks(recorder.log, recorder.timed(should_stop), **copying)
            hooks = own if current().is_main else Hooks(should_stop=should_stop)
            run(config, root, hooks, *names, **options)
    except Stopped as stopped:
        return torchrun.ended(STOPPED, _stopped_line(stopped, root, work))
    return check(config, root, chosen, against, stage.system) if against else 0


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _fail_without_gpu(args: argparse.Namespace, wanted: int, present: int) -> int:
    """Print where the stage can run and how to fetch its outputs; returns exit code 3."""
    stage = os.environ.get("DVC_STAGE", args.command)
    needed = f"{wanted} GPUs ({STAGES[args.command].trains}.gpus)" if wanted > 1 else "a GPU"
    sys.stderr.write(
        f"gdpo-sr: {stage} needs {needed} and there {'is' if present < 2 else 'are'} "
        f"{present or 'none'} here "
        f"(allow_cpu: true lets it run on the CPU); run it on a worker, "
        f"then fetch what it made:\n  prefect deployment run gdpo-stage/a100 -p stage={stage} "
        "--watch\n"
        f"  dvc repro --pull {stage}\n"
    )
    return NEEDS_GPU


def _stopped_line(stopped: "Stopped", root: Path, work: Path) -> str:
    # What is set aside is of other inputs: the same command does not resume from it.
    kept = [path for path in work.rglob("*") if not path.parent.name.startswith("unused-")]
    checkpoint = next((path for path in kept if path.name == "checkpoint.pt"), None)
    if checkpoint is not None:
        place = f"at step {stopped.step}, checkpoint in {checkpoint.relative_to(root)}"
        return f"stopped {place}; the same command resumes"
    inputs = next((path for path in kept if path.name == "inputs.json"), None)
    if inputs is not None:  # images, or chunks of them
        place = f"after image {stopped.step}, kept in {inputs.parent.relative_to(root)}"
        return f"stopped {place}; the same command resumes"
    return "stopped, nothing half-written is left; the same command starts again"


class StopFlag:
    """`should_stop` for the loops: true once SIGTERM or SIGINT arrived.

    A second Ctrl-C ends the process at once.
    """

    def __init__(self) -> None:
        self._stop = False

    def __call__(self) -> bool:
        """Whether a signal arrived."""
        return self._stop

    def __enter__(self) -> "StopFlag":
        self._old = {
            number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._stop = True
        # Only for SIGINT: a person presses twice on purpose, but a scheduler may repeat its SIGTERM
        # while the checkpoint is written.
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
