"""Scan of the photographs: reads each once, and lists the unusable ones with the reason.

examine(photo, min_side) -> Finding     size and content hash, or the reason; independent for
                                        each photograph
scan(findings, ...)      -> Scan        duplicates, share of failures, overlap with the held-out
                                        photographs

unreadable, not RGB, too small,     failures; the stage stops above a configured share of them
LR image
duplicate                           the pixels equal those of an earlier photograph
same name                           the file differs from an earlier one only in its suffix

A photograph for training must not be a held-out one, nor a near-duplicate of one: the same picture
at another size, brightness or compression. Mirrored or cropped copies are not recognised.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from gdpo.data.selection import perceptual_hash
from gdpo.data.sources import Photo, resized
from gdpo.images import NotRgb, read_photo

# Of 256 bits. Measured on the 81 photographs of assets/photos: copies that were recompressed,
# resized or brightened differ in at most 16 bits, without 4 pixels of each edge in 30, others in 94
# or more.
NEAR = 32


@dataclass(frozen=True)
class Finding:
    """The size and hashes of one usable photograph, or the reason why it is unusable.

    height, width: in pixels; sha256: content hash after `Photo.resize`; original: content hash
    before it; look: perceptual hash of 256 bits; lr_sha256: content hash of the ready-made LR
    image, if it has one; reason: empty if usable; detail: one line about the reason.
    """

    photo: Photo
    height: int = 0
    width: int = 0
    sha256: str = ""
    original: str = ""
    look: int = 0
    lr_sha256: str | None = None
    reason: str = ""
    detail: str = ""

    def is_near_duplicate(self, other: "Finding") -> bool:
        """Whether both usable photographs show the same picture."""
        return (self.look ^ other.look).bit_count() < NEAR


@dataclass
class Scan:
    """The photographs to use, and the skipped ones with their reasons."""

    used: list[Finding] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """The number of used photographs, and of skipped ones by reason."""
        reasons = Counter(photo["reason"] for photo in self.skipped)
        return {"used": len(self.used), **dict(sorted(reasons.items()))}


def examine(photo: Photo, min_side: int, scale: int = 1) -> Finding:
    """Read one photograph and check that it is usable: readable, RGB, sides >= `min_side` pixels.

    A ready-made LR image (`Photo.lr`) must be smaller by `scale`.
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
    before = sha256 if pixels is original else content_hash(original)
    lr_sha256 = None
    if photo.lr is not None:
        try:
            lr = read_photo(photo.lr)
        except ValueError as error:
            return Finding(photo, height, width, reason="LR image", detail=str(error))
        if (lr.shape[0] * scale, lr.shape[1] * scale) != (height, width):
            detail = (
                f"{photo.lr}: {lr.shape[1]}x{lr.shape[0]} pixels, of an HR image of "
                f"{width}x{height}; a {scale}th of each side is needed"
            )
            return Finding(photo, height, width, reason="LR image", detail=detail)
        lr_sha256 = content_hash(lr)
    return Finding(photo, height, width, sha256, before, perceptual_hash(pixels, 16), lr_sha256)


def scan(
    findings: Iterable[Finding],
    total: int,
    max_failures: float,
    held_out: Sequence[Finding] = (),
) -> Scan:
    """Divide `total` findings, in the given order, into used and skipped photographs.

    ValueError naming the first failure if the share of failures exceeds `max_failures`. ValueError
    naming both photographs if one is among `held_out`, before or after resizing, or is a
    near-duplicate of one: held-out photographs must not be trained on.
    """
    result, names, hashes = Scan(), dict[str, Photo](), dict[str, str]()
    first, failures = "", 0
    for finding in findings:
        reason, detail = finding.reason, finding.detail
        if reason:
            failures += 1
            first = first or detail
            # At once and not at the end: a wrong folder shows after a few photographs and not after
            # 80,000.
            if failures > max_failures * total:
                raise ValueError(
                    f"{first}; {failures} of {total} photographs cannot be used, "
                    f"degrade.max_failures allows {max_failures:g} of them"
                )
        else:
            _check_not_held_out(finding, held_out)
            reason, detail = _repeats(finding, names, hashes)
        if reason:
            result.skipped.append({"name": finding.photo.name, "reason": reason, "detail": detail})
            continue
        names[finding.photo.name] = finding.photo
        hashes[finding.sha256] = finding.photo.name
        result.used.append(finding)
    return result


def _check_not_held_out(finding: Finding, held_out: Sequence[Finding]) -> None:
    # Both: a training set may be a resized copy of the photographs that were held out.
    hashes = {finding.sha256, finding.original}
    for other in held_out:
        same = not hashes.isdisjoint((other.sha256, other.original))
        if same or finding.is_near_duplicate(other):
            relation = "is" if same else "shows the same picture as"
            raise ValueError(
                f"{finding.photo.path}: {relation} the evaluation photograph {other.photo.path}; "
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
    # With the shape: the same bytes could be an image of 2 x 8 or of 4 x 4 pixels.
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()
