"""Keeps bitsandbytes from being imported."""

import sys
from typing import Any


def without_bitsandbytes() -> None:
    """Let imports of bitsandbytes fail; call it before diffusers is imported.

    Nothing here uses its kernels. Where pyiqa brought it, diffusers would import it, and with it
    torch's compiler: seconds of every command.
    """
    modules: dict[str, Any] = sys.modules  # None marks a module as absent
    modules.setdefault("bitsandbytes", None)
