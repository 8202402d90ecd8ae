"""The commands in README.md exist: make targets, modules, subcommands and their options."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Programs the reader has, or that .venv brings.
OTHERS = {"git", "cd", "dvc", "prefect", "."}


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


def test_every_command_of_the_readme_exists() -> None:
    found = commands((ROOT / "README.md").read_text())
    assert "make demo" in found
    assert "make test" in found
    for command in found:
        check(command)


@pytest.mark.parametrize(
    "command",
    [
        "make nothing",
        "python -m flows.nothing",
        "python nothing.py",
        "gdpo-sr nothing",
        "gdpo-sr finetune --run nothing",
        "curl x",
    ],
)
def test_a_wrong_command_is_noticed(command: str) -> None:
    with pytest.raises((AssertionError, ModuleNotFoundError)):
        check(command)


def test_the_command_line_runs_from_the_makefile() -> None:
    assert {"demo", "test", "lint", "lock", "flow", "profile"} <= targets()
