"""Whether two checkouts make the same outputs: a hash of every output, provenance aside.

    git clone . before && git -C before checkout COMMIT && (cd before && python -m tasks index ...)
    python -m benchmarks.same_outputs before after       # writes benchmarks/results/same_outputs.md

Aside: the metadata of Parquet files, `work/`, Data Docs (they have the time of the run), columns
that only one side has, and the commit. Those columns are named in the table.
"""

import argparse
import hashlib
import json
import subprocess
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.record import RESULTS

FOLDERS = ("data", "reports")


def main() -> None:
    """Compare two roots and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("roots", type=Path, nargs=2, metavar="ROOT")
    roots = parser.parse_args().roots
    files = [outputs(root) for root in roots]
    commits = [commit(root) for root in roots]
    lines = [f"| output | {commits[0]} | {commits[1]} | same |", "|---|---|---|---|"]
    for name in sorted(files[0].keys() | files[1].keys()):
        hashes = [digest(root, name, roots) for root in roots]
        note = new_columns(roots, name)
        same = "yes" if hashes[0] == hashes[1] else "**no**"
        lines.append(f"| `{name}`{note} | {hashes[0][:16]} | {hashes[1][:16]} | {same} |")
    (RESULTS / "same_outputs.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def commit(root: Path) -> str:
    """The commit that is checked out at `root`, 12 digits."""
    command = ["git", "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(
        command, cwd=root, capture_output=True, text=True, check=True
    ).stdout.strip()


def outputs(root: Path) -> dict[str, Path]:
    """The files below data/ and reports/, without Data Docs, by relative path."""
    paths = [path for folder in FOLDERS for path in (root / folder).rglob("*") if path.is_file()]
    names = {path.relative_to(root).as_posix(): path for path in paths}
    return {name: path for name, path in names.items() if "data-docs" not in name}


def digest(root: Path, name: str, roots: list[Path]) -> str:
    """SHA-256 of a file's content; of a Parquet file, of the columns that both sides have."""
    path = root / name
    if not path.is_file():
        return "absent"
    if path.suffix != ".parquet":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    shared = [one for one in columns(roots[0] / name) if one in columns(roots[1] / name)]
    rows = pq.read_table(path, columns=shared).to_pylist()
    return hashlib.sha256(json.dumps(rows, sort_keys=True, default=bytes.hex).encode()).hexdigest()


def columns(path: Path) -> list[str]:
    """The columns of a Parquet file; [] if it is not there."""
    return list(pq.read_schema(path).names) if path.is_file() else []


def new_columns(roots: list[Path], name: str) -> str:
    """A note on the columns that only one side has."""
    if not name.endswith(".parquet"):
        return ""
    odd = set(columns(roots[0] / name)) ^ set(columns(roots[1] / name))
    return f" (without {', '.join(sorted(odd))})" if odd else ""


if __name__ == "__main__":
    main()
