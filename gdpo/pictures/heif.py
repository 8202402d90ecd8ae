"""HEIC, the format of phones, by the plugin pillow-heif, an extra: `gdpo-sr[heic]`."""

import importlib
import importlib.util
from functools import cache

MISSING = "is HEIC, which needs pillow-heif: `pip install 'gdpo-sr[heic]'`"
_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


@cache
def can_heif() -> bool:
    """Let Pillow read and write HEIC if the plugin is installed; whether it is."""
    if importlib.util.find_spec("pillow_heif") is None:
        return False
    importlib.import_module("pillow_heif").register_heif_opener()
    return True


def is_heif(data: bytes) -> bool:
    """Whether a file's bytes begin as HEIC's do."""
    return data[4:8] == b"ftyp" and data[8:12] in _BRANDS
