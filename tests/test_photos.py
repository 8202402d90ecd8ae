"""The photographs that ship: three parts with no photograph in common, each named in the card."""

import re
from itertools import combinations
from pathlib import Path

import pytest

from gdpo.data.scan import Finding, examine
from gdpo.data.sources import photographs

PHOTOS = Path(__file__).parents[1] / "assets/photos"
PARTS = {"train": 49, "validation": 8, "kodak": 24}


@pytest.fixture(scope="module")
def findings() -> dict[str, list[Finding]]:
    """The scan's finding of every photograph, by part."""
    return {
        part: [examine(photo, 384) for photo in photographs(str(PHOTOS / part), "train")]
        for part in PARTS
    }


def test_every_photograph_can_be_used_and_none_is_missing(
    findings: dict[str, list[Finding]],
) -> None:
    assert {part: len(found) for part, found in findings.items()} == PARTS
    assert [found.detail for part in findings.values() for found in part if found.reason] == []


def test_no_photograph_is_in_two_parts(findings: dict[str, list[Finding]]) -> None:
    every = [found for part in findings.values() for found in part]
    assert len({found.sha256 for found in every}) == len(every)
    near = [
        (a.photo.name, b.photo.name) for a, b in combinations(every, 2) if a.is_near_duplicate(b)
    ]
    assert near == []


def test_the_pictures_for_testing_have_one_size(findings: dict[str, list[Finding]]) -> None:
    assert {(found.height, found.width) for found in findings["kodak"]} == {(384, 384)}


def test_the_folder_is_small() -> None:
    assert sum(path.stat().st_size for path in PHOTOS.rglob("*.webp")) <= 12 * 2**20


def test_the_card_names_every_file_and_no_other() -> None:
    named = re.findall(r"^\| `([a-z]+/[\w-]+\.webp)` \|", (PHOTOS / "README.md").read_text(), re.M)
    files = [path.relative_to(PHOTOS).as_posix() for path in PHOTOS.rglob("*.webp")]
    assert sorted(named) == sorted(files)
