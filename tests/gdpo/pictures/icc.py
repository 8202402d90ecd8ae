"""A colour profile of three primaries and a power law, as cameras and phones embed it."""

import io
import struct

import numpy as np
from PIL import Image, ImageCms

# Of Display P3, as XYZ under D50.
P3 = ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))


def profile(primaries: tuple[tuple[float, ...], ...] = P3, gamma: float = 2.2) -> bytes:
    """An ICC profile, version 2."""
    text = b"a profile of a test\0"
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78),
        b"cprt": b"text" + bytes(4) + text,
        b"wtpt": _xyz(0.9642, 1.0, 0.8249),
    }
    for name, primary in zip("rgb", primaries, strict=True):
        tags[f"{name}XYZ".encode()] = _xyz(*primary)
        curve = struct.pack(">IH", 1, round(gamma * 256))
        tags[f"{name}TRC".encode()] = b"curv" + bytes(4) + curve
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"", 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + _numbers(0.9642, 1.0, 0.8249) + bytes(48)
    return head + table + body


def _xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + _numbers(*values)


def _numbers(*values: float) -> bytes:
    return struct.pack(">3i", *(round(value * 65536) for value in values))


def managed(picture: np.ndarray, icc: bytes) -> np.ndarray:
    """The colours that a viewer with colour management shows."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    shown = ImageCms.profileToProfile(
        Image.fromarray(picture), source, ImageCms.createProfile("sRGB")
    )
    return np.array(shown).astype(float)
