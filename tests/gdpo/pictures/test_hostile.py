"""Mutated picture files: each is read or refused in one line that names it, in bounded memory."""

import io
import resource
import struct
import zlib
from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from PIL import Image

from gdpo.data.scan import Finding, examine
from gdpo.data.sources import Photo

PER_KIND = 60
MEMORY_MB = 600  # more than any of these files may need: their pictures have 48 x 40 pixels


def originals() -> dict[str, bytes]:
    """One small picture in every kind of file that is read, with EXIF where there can be one."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112], exif[271] = 6, "maker"
    files = {}
    for kind in ("PNG", "JPEG", "WEBP", "TIFF"):
        stream = io.BytesIO()
        picture.save(stream, kind, exif=exif)
        files[kind.lower()] = stream.getvalue()
    deep = pixels.astype(np.uint16) * 257
    files["deep.png"] = cv2.imencode(".png", deep)[1].tobytes()
    files["deep.tiff"] = cv2.imencode(".tiff", deep)[1].tobytes()
    return files


def mutations(data: bytes, seed: int) -> Iterator[bytes]:
    """Bits flipped, bytes overwritten (the header more often), cut out, doubled, and cut off."""
    rng = np.random.default_rng(seed)
    for number in range(PER_KIND):
        changed = bytearray(data)
        reach = len(data) if number % 2 else min(len(data), 120)
        start = int(rng.integers(0, reach))
        length = int(rng.integers(1, 9))
        way = number % 6
        if way == 0:
            changed[start] ^= 1 << int(rng.integers(0, 8))
        elif way == 1:
            changed[start : start + length] = rng.bytes(length)
        elif way == 2:
            changed[start : start + length] = b"\xff" * length
        elif way == 3:
            del changed[start : start + length]
        elif way == 4:
            changed[start:start] = changed[start : start + 10 * length]
        else:
            del changed[start:]
        yield bytes(changed)


def claims(width: int, height: int, depth: int) -> bytes:
    """A PNG whose header is right and promises more pixels than the file has."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    content = zlib.compress(bytes(1000))
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def claims_tiff(original: bytes, side: int) -> bytes:
    """A little-endian TIFF whose tags of width and height say `side`."""
    data = bytearray(original)
    (place,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, place)
    for entry in range(place + 2, place + 2 + 12 * count, 12):
        if struct.unpack_from("<H", data, entry)[0] in (256, 257):
            struct.pack_into("<HII", data, entry + 2, 4, 1, side)
    return bytes(data)


def found(data: bytes, name: str) -> Finding:
    return examine(Photo(name, name, read=lambda: data), 32)


@pytest.mark.filterwarnings("ignore:::PIL")
def test_every_mutated_file_is_used_or_named_with_a_reason() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    files = [
        (f"{kind}-{number}", data)
        for seed, (kind, original) in enumerate(originals().items())
        for number, data in enumerate(mutations(original, seed))
    ]
    files += [
        (f"claims-{side}-{depth}", claims(side, side, depth))
        for side in (2**16 - 1, 2**20, 2**31 - 1)
        for depth in (8, 16)
    ]
    long = bytearray(originals()["deep.png"])
    long[33:37] = b"\xff\xff\xff\x20"  # the length of the first chunk after the header
    files.append(("claims-length", bytes(long)))
    for kind in ("tiff", "deep.tiff"):
        original = originals()[kind]
        assert original[:2] == b"II" and not found(claims_tiff(original, 40), kind).reason
        files += [(f"claims-{side}-{kind}", claims_tiff(original, side)) for side in (20000, 32000)]
    findings = [found(data, name) for name, data in files]
    assert len(findings) >= 200
    reasons = {"", "unreadable", "not RGB", "too small"}
    assert {finding.reason for finding in findings} <= reasons
    for (name, _), finding in zip(files, findings, strict=True):
        if finding.reason:
            assert finding.detail.startswith(name) and "\n" not in finding.detail, finding.detail
    refused = [finding.photo.name for finding in findings if finding.reason]
    assert {name for name, _ in files if name.startswith("claims")} <= set(refused)
    assert len(refused) > 60 and len(findings) - len(refused) > 30
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (after - before) / 1024 < MEMORY_MB
