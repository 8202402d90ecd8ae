"""Licences and sizes of what an installation brings: the distributions of this environment, by the
extras of pyproject.toml that ask for them.

    python benchmarks/environments.py             a line for each set: distributions, MB, licences
    python benchmarks/environments.py --all       and a line for each distribution

A distribution counts for the first set that needs it: the core, then [metrics], [fleet], ...; its
size is that of its installed files. Licences are what its metadata state.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from importlib import metadata

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CORE = "gdpo-sr"


def requirements(name: str, extras: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """(distribution, extras) that an installed distribution with these extras asks for."""
    for text in metadata.requires(name) or ():
        requirement = Requirement(text)
        markers = [{**default_environment(), "extra": extra} for extra in (*extras, "")]
        if requirement.marker is None or any(map(requirement.marker.evaluate, markers)):
            yield canonicalize_name(requirement.name), frozenset(requirement.extras)


def closure(extras: frozenset[str]) -> set[str]:
    """The installed distributions that the package with these extras needs."""
    waiting, seen = [(CORE, extras)], set[tuple[str, frozenset[str]]]()
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        try:
            waiting += requirements(*one)
        except metadata.PackageNotFoundError:
            continue
        seen.add(one)
    return {name for name, _ in seen} - {CORE}


def size(name: str) -> int:
    """Bytes of the installed files."""
    files = metadata.files(name) or ()
    paths = [file.locate() for file in files]
    return sum(path.stat().st_size for path in paths if path.is_file())


def licence(name: str) -> str:
    """The licence that the metadata state: an expression, a classifier, or the first line."""
    about = metadata.metadata(name)
    classifiers = about.get_all("Classifier") or ()
    named = [text.rpartition(" :: ")[2] for text in classifiers if text.startswith("License ::")]
    text = about.get("License-Expression") or ", ".join(named) or about.get("License") or "unknown"
    return text.splitlines()[0][:60]


def main() -> None:
    """Print the sets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="a line for each distribution too")
    every = parser.parse_args().all
    counted: set[str] = set()
    extras = [e for e in metadata.metadata(CORE).get_all("Provides-Extra") or () if e != "dev"]
    for extra in ("", *extras, "dev"):
        names = closure(frozenset({extra} - {""})) - counted
        counted |= names
        bytes_of = {name: size(name) for name in sorted(names)}
        licences = Counter(licence(name) for name in names)
        title = f"[{extra}]" if extra else "core"
        print(f"{title}: {len(names)} distributions, {sum(bytes_of.values()) / 1e6:,.0f} MB")
        print("    " + "; ".join(f"{text} {count}" for text, count in licences.most_common()))
        if every:
            for name, number in bytes_of.items():
                version = metadata.version(name)
                print(f"    {name} {version}: {number / 1e6:.1f} MB, {licence(name)}")


if __name__ == "__main__":
    main()
