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

Only the module of the chosen command is imported, so that `--help` is quick. Exit codes:

    0    success
    1    failure, reported in one line that names the file or key; GDPO_DEBUG=1 shows the traceback
    2    wrong usage or parameters
    3    the stage needs a GPU
    4    a regression (evaluate --against)
    143  stopped by SIGTERM or SIGINT after a checkpoint; the same command resumes
"""

import argparse
import importlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from tasks.commands import STAGES, TOOLS, Stage
from tasks.run import torchrun

if TYPE_CHECKING:
    from gdpo.config import Config
    from gdpo.train.loop import Stopped

NEEDS_GPU = 3


def build_parser(chosen: str | None = None) -> argparse.ArgumentParser:
    """The parser of all commands. Only the chosen tool's module is imported for its arguments."""
    parser = argparse.ArgumentParser(
        prog="gdpo-sr",
        description="One-step diffusion super-resolution post-trained with GDPO.",
        epilog="example: gdpo-sr upscale photo.jpg -o out.png",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, stage in STAGES.items():
        example = f"example: gdpo-sr {name} --set {stage.example}"
        command = commands.add_parser(name, help=stage.help, description=stage.help, epilog=example)
        _add_stage_arguments(command, stage)
    for name, tool in TOOLS.items():
        command = commands.add_parser(name, help=tool.help, description=tool.help)
        if name == chosen:
            module = importlib.import_module(tool.module)
            command.epilog = f"example: {module.EXAMPLE}"
            module.add_arguments(command)
    return parser


def _add_stage_arguments(parser: argparse.ArgumentParser, stage: Stage) -> None:
    parser.add_argument(
        "--params", type=Path, default="params.yaml", metavar="FILE", help="default: params.yaml"
    )
    parser.add_argument(
        "--profile", metavar="NAME", help="lay profiles/NAME.yaml over the parameters"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="lay one value over the parameters, as YAML",
    )
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
    # The base model is a local folder; no library may look for a newer version online.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # peft imports bitsandbytes, which warns that it cannot download an optional 4-bit kernel.
    # Nothing here uses that kernel.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    stop = StopFlag()
    args = build_parser(argv[0] if argv else None).parse_args(argv)
    if args.command in TOOLS:
        return _in_one_line(
            lambda: int(importlib.import_module(TOOLS[args.command].module).main(args))
        )
    with stop:
        return _in_one_line(lambda: _run_stage(args, stop, argv))


def _in_one_line(run: Callable[[], int]) -> int:
    """Call `run` and return its exit code; report a ValueError or OSError in one line."""
    try:
        return run()
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
    return torchrun.ended(2 if isinstance(error, BadParams) else 1, " ".join(text.split()))


def _run_stage(args: argparse.Namespace, stop: "StopFlag", argv: Sequence[str]) -> int:
    """Load the parameters, then run the stage in this process or in torchrun's processes."""
    from tasks import params

    config = params.load(args.params, args.profile, args.set)
    stage = STAGES[args.command]
    wanted: int = getattr(config, args.command).gpus if stage.trains else 1
    if stage.needs_gpu and not config.allow_cpu and (found := _gpus()) < wanted:
        return _fail_without_gpu(args, wanted, found)
    if torchrun.is_rank():
        with torchrun.rank(stop) as should_stop:
            return _run_here(args, config, should_stop)
    return torchrun.start(argv, wanted, stop) if wanted > 1 else _run_here(args, config, stop)


def _run_here(args: argparse.Namespace, config: "Config", should_stop: Callable[[], bool]) -> int:
    """Run the stage in this process; `Stopped` becomes exit code 143."""
    from gdpo.train.loop import Hooks, Stopped
    from gdpo.train.world import current
    from tasks.run.recorder import Recorder

    stage = STAGES[args.command]
    run: Callable[..., None] = importlib.import_module(stage.module).run
    chosen = getattr(args, stage.choice.option) if stage.choice else None
    against = getattr(args, "against", None)
    names = [chosen] if chosen else []
    root = Path.cwd()
    work = root.joinpath("work", args.command, *names)
    progress: dict[str, Any] = {}
    if stage.trains:
        section: Any = getattr(config, args.command)
        progress = {"total": section.steps, "samples": section.batch, "track": config.track}
    if against:
        from tasks.report.against import check, place

        place(config, root, chosen, against)  # report a missing file before the stage runs
    try:
        with Recorder(work, " ".join([args.command, *names]), **progress) as recorder:
            if current().any_rank(should_stop()):
                raise Stopped(0)
            options = {"keep": True} if against else {}
            own = Hooks(log=recorder.log, should_stop=recorder.timed(should_stop))
            hooks = own if current().is_main else Hooks(should_stop=should_stop)
            run(config, root, hooks, *names, **options)
    except Stopped as stopped:
        return torchrun.ended(torchrun.STOPPED, _stopped_line(stopped, root, work))
    return check(config, root, chosen, against) if against else 0


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _fail_without_gpu(args: argparse.Namespace, wanted: int, found: int) -> int:
    """Print where the stage can run and how to fetch its outputs; returns exit code 3."""
    stage = os.environ.get("DVC_STAGE", args.command)
    needed = f"{wanted} GPUs ({args.command}.gpus)" if wanted > 1 else "a GPU"
    sys.stderr.write(
        f"gdpo-sr: {stage} needs {needed} and there {'is' if found < 2 else 'are'} "
        f"{found or 'none'} here "
        f"(allow_cpu: true lets it run on the CPU); run it on a worker, "
        f"then fetch what it made:\n  prefect deployment run gdpo-stage/a100 -p stage={stage} "
        "--watch\n"
        f"  dvc repro --pull {stage}\n"
    )
    return NEEDS_GPU


def _stopped_line(stopped: "Stopped", root: Path, work: Path) -> str:
    for kept in work.glob("**/fingerprint"):  # evaluate, image by image
        return (
            f"stopped after image {stopped.step}, kept in {kept.parent.relative_to(root)}; the "
            "same command resumes"
        )
    checkpoints = sorted(work.glob("**/checkpoint.pt"), key=lambda path: path.stat().st_mtime)
    if not checkpoints:
        return "stopped, nothing half-written is left; the same command starts again"
    checkpoint = checkpoints[-1].relative_to(root)
    return f"stopped at step {stopped.step}, checkpoint in {checkpoint}; the same command resumes"


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
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
