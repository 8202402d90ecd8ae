"""Applies each mutation of benchmarks/mutations.txt to a copy of the code; its test must fail.

    python benchmarks/mutations.py             # all of them: three minutes on one core
    python benchmarks/mutations.py VSD DAPE    # those whose name or test has one of these words
    python benchmarks/mutations.py --write     # and marks them in benchmarks/results/mutations.md

In the list, `== TEST` (below tests/) is followed by its mutations: `@ FILE: NAME`, the old text,
which occurs once in the file, and the new. Each test is also run on the code as it is, and has to
pass. Every run is a fork of that process, which has the libraries imported. Exits 1 if a mutation
survives or cannot be applied.
"""

import argparse
import compileall
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from py_compile import PycInvalidationMode

import pytest

REPO = Path(__file__).resolve().parents[1]
# Our modules come from the copy only.
sys.path[:] = [p for p in sys.path if Path(p).resolve() not in (REPO, REPO / "benchmarks")]
OPTIONS = ["-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider"]
OURS = ("gdpo", "tasks", "tests", "benchmarks")
LIST, TABLE = REPO / "benchmarks/mutations.txt", REPO / "benchmarks/results/mutations.md"
ROW = re.compile(r"== (?P<test>.+)|@ (?P<file>\S+): (?P<name>.+)\n- (?P<old>.+)\n\+ (?P<new>.+)")
HEADER = """# Mutations and the tests that fail

Rows with "yes" were applied to the code by `benchmarks/mutations.py`, and the named test was seen
to fail: {yes} of {all}, last at commit {commit}.
The others were checked by reading only.

| mutation | test that fails | run |
|---|---|---|
"""


@dataclass(frozen=True)
class Mutation:
    """`old` becomes `new` in `file`, and `test` has to fail."""

    name: str
    file: str
    old: str
    new: str
    test: str


def listed(text: str) -> list[Mutation]:
    """The mutations of a list. ValueError for a line that belongs to none."""
    rows, test = [], ""
    if rest := ROW.sub("", text).strip():
        raise ValueError(f"not a mutation: {rest.splitlines()[0]}")
    for row in ROW.finditer(text):
        test = row["test"] or test
        if row["file"]:
            rows.append(Mutation(row["name"], row["file"], row["old"], row["new"], test))
    return rows


def copied(folder: Path) -> None:
    """Copy the tracked files, as they are now, into the folder."""
    names = subprocess.check_output(["git", "ls-files", "-z"], cwd=REPO, text=True)
    for name in filter(None, names.split("\0")):
        if (REPO / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPO / name, folder / name, follow_symlinks=False)
    # Bytecode is told apart by the text it is of: a mutation may have the size and the second of
    # what it replaces.
    for name in OURS:
        compileall.compile_dir(
            folder / name, quiet=1, invalidation_mode=PycInvalidationMode.CHECKED_HASH
        )


def passes(tests: Iterable[str]) -> bool:
    """Whether the tests pass as things are. All libraries are imported after it, none of ours."""
    from tasks.run.imports import without_bitsandbytes

    without_bitsandbytes()
    status = pytest.main([*OPTIONS, *(f"tests/{test}" for test in tests)])
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]
    return status == 0


def run(test: str, log: Path) -> tuple[int, str]:
    """(exit status of pytest, what the test said first), in a fork of this process."""
    child = os.fork()
    if not child:
        status = 70
        try:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            status = int(pytest.main([*OPTIONS, f"tests/{test}"]))
            sys.stdout.flush()
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said = re.findall(r"^E +(.+)", log.read_text(errors="replace"), re.MULTILINE)
    return status, (said or [""])[0][:100]


def outcome(mutation: Mutation, log: Path) -> str:
    """Whether the mutation was killed, or survives, or what is wrong with its row."""
    path = Path(mutation.file)
    text = path.read_text()
    if (count := text.count(mutation.old)) != 1:
        return f"ERROR: its old text occurs {count} times in {path}"
    path.write_text(text.replace(mutation.old, mutation.new))
    try:
        status, said = run(mutation.test, log)
    finally:
        path.write_text(text)
    match status:
        case 0:
            return "SURVIVES"
        case 1:
            return f"killed: {said}"
    return f"ERROR: pytest ended with {status}: {said}"


def table(rows: Sequence[Mutation], killed: dict[str, bool], present: str, commit: str) -> str:
    """The table: the listed rows, then the other present ones; those not run keep their mark."""
    before = {
        name: (test, ran)
        for name, test, ran in re.findall(r"^\| (.+?) \| (\S+) \| ?(.*?) ?\|$", present, re.M)
        if test.count("::")
    }
    marks = {row.name: (row.test, before.get(row.name, ("", ""))[1]) for row in rows}
    for row in rows:
        if row.name in killed:
            marks[row.name] = (row.test, "yes" if killed[row.name] else "survives")
    marks |= {name: mark for name, mark in before.items() if name not in marks}
    yes = sum(ran == "yes" for _, ran in marks.values())
    lines = [f"| {name} | {test} | {ran} |\n" for name, (test, ran) in marks.items()]
    return HEADER.format(yes=yes, all=len(marks), commit=commit) + "".join(lines)


def main() -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", help="only mutations with one of these words")
    parser.add_argument("--write", action="store_true", help="mark those killed in the results")
    args = parser.parse_args()
    rows = listed(LIST.read_text())
    chosen = [
        row
        for row in rows
        if not args.words or any(word in f"{row.name} {row.test}" for word in args.words)
    ]
    if not chosen:
        parser.error(f"no mutation or test in {LIST.name} has one of: {' '.join(args.words)}")
    outcomes: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        place, log = Path(folder) / "repository", Path(folder) / "log"
        copied(place)
        os.chdir(place)
        sys.path.insert(0, str(place))
        os.environ |= {"PYTHONPATH": str(place), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        if not passes(dict.fromkeys(row.test for row in chosen)):
            raise SystemExit("a test fails without any mutation")
        for row in chosen:
            outcomes[row.name] = outcome(row, log)
            print(f"{row.name}: {outcomes[row.name]}", flush=True)
        os.chdir(REPO)
    killed = {name: what.startswith("killed") for name, what in outcomes.items()}
    print(f"{sum(killed.values())} of {len(killed)} killed")
    if args.write:
        sys.path.insert(0, str(REPO))
        from benchmarks.record import commit

        TABLE.write_text(table(rows, killed, TABLE.read_text(), commit()))
    return int(not all(killed.values()))


if __name__ == "__main__":
    sys.exit(main())
