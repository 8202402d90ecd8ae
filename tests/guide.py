"""The commands of docs/operations.md, run as they stand below a temporary root, with stand-ins for
what changes a machine.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.tasks.published import NOW, finished, publish  # noqa: F401 - finished is a fixture

# apt-get, useradd and systemctl only note that they were called; `make -C CLONE .venv` leaves an
# environment; runuser stays who it is, and install cannot give files away, but wants the user made
# before.
STAND_INS = {
    "apt-get": "",
    "useradd": "",
    "systemctl": "",
    "runuser": 'shift 2; exec bash -e "$@"',
    "install": """grep -q ^useradd $LOG || exit 1
[ "$1 $3" = "-o -g" ] && shift 4
[ "$2 $4" = "-o -g" ] && { first=$1; shift 5; set -- $first "$@"; }
exec /usr/bin/install "$@\"""",
    "make": """[ "$1" = -C ] && cd "$2"
mkdir -p .venv/bin; ln -sf $STAND_INS/python $STAND_INS/dvc .venv/bin""",
    "python": f'exec {sys.executable} "$@"',
    "dvc": f'exec {sys.executable} -m dvc "$@"',
}


def guide(root: Path, heading: str) -> list[str]:
    """The blocks of commands below a heading of docs/operations.md."""
    text = (root / "docs/operations.md").read_text()
    section = re.split(r"^#+ ", text.split(f"# {heading}\n", 1)[1], flags=re.MULTILINE)[0]
    return [
        re.sub(r"(?m)^ +", "", block)
        for block in re.findall(r"```sh\n(.*?)```", section, flags=re.DOTALL)
    ]


def shell(commands: str, place: Path, **environment: str) -> str:
    """Run commands of the guide with /srv, /etc and the user's files below `place`; returns the
    stand-ins' log.
    """
    programs = place / "programs"
    programs.mkdir(exist_ok=True)
    log = place / "log"
    for name, body in STAND_INS.items():
        (programs / name).write_text(f'#!/bin/bash\necho {name} "$@" >> $LOG\n{body}\n')
        (programs / name).chmod(0o755)
    for folder in ("/srv", "/etc"):
        commands = commands.replace(f"{folder}/", f"{place}{folder}/")
    env = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HOME": str(place),
        "LOG": str(log),
        "STAND_INS": str(programs),
    }
    keep = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", **environment}
    result = subprocess.run(
        ["bash", "-e", "-c", commands], cwd=place, env=env | keep, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return log.read_text() if log.exists() else ""


def git(*args: str, at: Path) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    return subprocess.run(
        ["git", *who, *args], cwd=at, check=True, capture_output=True, text=True
    ).stdout.strip()
