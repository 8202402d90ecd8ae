"""The commands in README.md and docs/ exist: make targets, modules, subcommands, their options."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
# Programs the reader has, or that .venv brings.
OTHERS = {"git", "cd", "dvc", "prefect", ".", "docker", "sbatch"}
OTHERS |= {"cp", "ln", "tail", "tensorboard", "uv"}


def commands(text: str) -> list[str]:
    """The lines of the fenced `sh` blocks, continued lines joined, without comments, prompts and
    blank lines.
    """
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+#.*", "", line) for line in lines if shlex.split(line, comments=True)]


def targets() -> set[str]:
    return set(re.findall(r"^([a-z.-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def check(command: str) -> None:
    """Raise unless the first program of `command` is one of ours that takes these arguments, or one
    of OTHERS.
    """
    words = shlex.split(command, comments=True)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    program, arguments = words[0].removeprefix(".venv/bin/"), words[1:]
    if program == "make":
        unknown = {word for word in arguments if "=" not in word} - targets()
        assert not unknown, f"no make target {unknown}"
    elif program == "gdpo-sr":
        parses(arguments)
    elif program == "python" and arguments[:2] == ["-m", "tasks"]:
        parses(arguments[2:])
    elif program == "python" and arguments[0] == "-m":
        assert importlib.util.find_spec(arguments[1]), f"no module {arguments[1]}"
    elif program == "python":
        assert (ROOT / arguments[0]).is_file(), f"no file {arguments[0]}"
    else:
        assert program in OTHERS, f"unknown program {program}"


def parses(arguments: list[str]) -> None:
    from tasks.__main__ import build_parser

    try:
        build_parser(arguments[0] if arguments else None).parse_args(arguments)
    except SystemExit as exit_:
        assert exit_.code == 0, f"gdpo-sr {shlex.join(arguments)}: wrong arguments"


# docs/operations.md administers hosts; tests/test_operations.py runs its blocks. tests/test_docs.py
# runs the script of how-to/slurm.md.
APART = ("operations.md", "slurm.md")
DOCS = sorted(path for path in (ROOT / "docs").rglob("*.md") if path.name not in APART)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_page_exists(page: Path) -> None:
    for command in commands(page.read_text()):
        check(command)


def test_the_picture_of_realsr_r1_has_a_column_for_every_step(root: Path) -> None:
    from benchmarks import vlcot_picture

    path = root / "docs/vlcot.webp"
    assert path.stat().st_size <= 150_000
    rows, side, gap = len(vlcot_picture.SHOWN), vlcot_picture.SIDE, vlcot_picture.GAP
    with Image.open(path) as picture:
        # LR, three images, HR; the words have a width of their own.
        assert picture.size == (
            5 * side + vlcot_picture.TEXT + 5 * gap,
            vlcot_picture.HEAD + rows * (side + gap) - gap,
        )
