"""Scan of the photographs: reads each once, and lists the unusable ones with the reason.

examine(photo, min_side) -> Finding     size and content hash, or the reason; independent for
                                        each photograph
scan(findings, ...)      -> Scan        duplicates, share of failures, overlap with the held-out
                                        photographs

unreadable, not RGB, too small      failures; the stage stops above a configured share of them
duplicate                           the pixels equal those of an earlier photograph
same name                           the file differs from an earlier one only in its suffix
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from gdpo.data.sources import Photo, resized
from gdpo.images import NotRgb


@dataclass(frozen=True)
class Finding:
    """The size and hashes of one usable photograph, or the reason why it is unusable.

    height, width: in pixels; sha256: content hash after `Photo.resize`; original: content hash
    before it; reason: empty if usable; detail: one line about the reason.
    """

    photo: Photo
    height: int = 0
    width: int = 0
    sha256: str = ""
    original: str = ""
    reason: str = ""
    detail: str = ""


@dataclass
class Scan:
    """The photographs to use, and the skipped ones with their reasons."""

    used: list[Finding] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)

    def hashes(self) -> dict[str, str]:
        """Content hash -> name of the used photographs, for pixels before and after resizing."""
        return {
            sha256: found.photo.name
            for found in self.used
            for sha256 in (found.original, found.sha256)
        }

    def counts(self) -> dict[str, int]:
        """The number of used photographs, and of skipped ones by reason."""
        reasons = Counter(row["reason"] for row in self.skipped)
        return {"used": len(self.used), **dict(sorted(reasons.items()))}


def examine(photo: Photo, min_side: int) -> Finding:
    """Read one photograph and check that it is usable: readable, RGB, sides >= `min_side` pixels.

    OSError if a store fails, which is not a fault of the photograph.
    """
    shown = photo.name.encode(errors="backslashreplace").decode()
    if shown != photo.name:  # the bytes of the file name are not UTF-8
        detail = f"{photo.path}: the name is not UTF-8".encode(errors="backslashreplace").decode()
        return Finding(replace(photo, name=shown), reason="unreadable", detail=detail)
    try:
        original = photo.original()
        pixels = resized(original, photo.resize)
    except NotRgb as error:
        return Finding(photo, reason="not RGB", detail=str(error))
    except ValueError as error:
        return Finding(photo, reason="unreadable", detail=str(error))
    # Check the smaller of the original and resized size: enlarging (`Photo.resize`) adds no detail.
    height, width = min(original.shape[:2], pixels.shape[:2], key=min)
    if min(height, width) < min_side:
        detail = f"{photo.path}: {width}x{height} pixels, a patch needs {min_side}x{min_side}"
        return Finding(photo, height, width, reason="too small", detail=detail)
    height, width = pixels.shape[:2]
    sha256 = content_hash(pixels)
    return Finding(
        photo, height, width, sha256, sha256 if pixels is original else content_hash(original)
    )


def scan(
    findings: Iterable[Finding],
    total: int,
    max_failures: float,
    held_out: Mapping[str, str] | None = None,
) -> Scan:
    """Divide `total` findings, in the given order, into used and skipped photographs.

    ValueError naming the first failure if the share of failures exceeds `max_failures`. ValueError
    naming the photograph if its pixels, before or after resizing, are among `held_out` (content
    hash -> name): held-out photographs must not be trained on.
    """
    found, names, hashes = Scan(), dict[str, Photo](), dict[str, str]()
    first, failures = "", 0
    for finding in findings:
        reason, detail = finding.reason, finding.detail
        if reason:
            failures += 1
            first = first or detail
            if failures > max_failures * total:
                raise ValueError(
                    f"{first}; {failures} of {total} photographs cannot be used, "
                    f"degrade.max_failures allows {max_failures:g} of them"
                )
        else:
            _check_not_held_out(finding, held_out or {})
            reason, detail = _repeats(finding, names, hashes)
        if reason:
            found.skipped.append({"name": finding.photo.name, "reason": reason, "detail": detail})
            continue
        names[finding.photo.name] = finding.photo
        hashes[finding.sha256] = finding.photo.name
        found.used.append(finding)
    return found


def _check_not_held_out(finding: Finding, held_out: Mapping[str, str]) -> None:
    name = held_out.get(finding.sha256) or held_out.get(finding.original)
    if name is not None:
        raise ValueError(
            f"{finding.photo.path}: is the evaluation photograph {name} too; "
            "degrade.train and degrade.evaluation must have no photograph in common"
        )


def _repeats(
    finding: Finding, names: Mapping[str, Photo], hashes: Mapping[str, str]
) -> tuple[str, str]:
    photo = finding.photo
    if finding.sha256 in hashes:
        return "duplicate", f"{photo.path}: the same pixels as {hashes[finding.sha256]}"
    if photo.name in names:
        return "same name", f"{photo.path}: has the name of {names[photo.name].path}"
    return "", ""


def content_hash(pixels: np.ndarray) -> str:
    """SHA-256 of the size and pixels of a uint8 image.

    Equal for the same image in different lossless formats.
    """
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()
