"""Released files that the tests of this folder share."""

from pathlib import Path

import pytest

from gdpo.released.convert import import_released
from gdpo.released.export import export_merged
from tests.gdpo.released.released_files import (
    fabricate,
    write_base,
)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, naosd.pkl and osediff.pkl over it; ours naosd/, merged to merged/; gdpo.pkl over that;
    ours gdpo/.
    """
    root = tmp_path_factory.mktemp("released")
    write_base(root / "base")
    for kind in ("naosd", "osediff"):
        fabricate(root / f"{kind}.pkl", root / "base", kind)
    import_released(root / "naosd.pkl", root / "naosd", root / "base")
    export_merged(root / "naosd", root / "merged")
    fabricate(root / "gdpo.pkl", root / "merged", "gdpo", seed=2)
    import_released(root / "gdpo.pkl", root / "gdpo", root / "naosd")
    return root
