"""A released tagger, the folder converted from it, and a picture."""

from pathlib import Path

import pytest

from gdpo.released.tagger import import_tagger
from tests.gdpo.tagger.released_tagger import write


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four released files, very small; the checkpoint's path."""
    return write(tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="session")
def slim(released: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("made") / "tagger"
    assert import_tagger(released, target, dape=released.with_name("DAPE.pth")) == ()
    return target
