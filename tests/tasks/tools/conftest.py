"""Working folders for `fetch` and `upscale`."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gdpo.model.card import IDENTITIES, Card
from gdpo.upscale import resolver
from tests.gdpo.upscale.fake_model import FakeModel


@pytest.fixture
def fetching_root(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_base: Path
) -> Path:
    """A working folder with the sample's parameters, and the tiny base in mirror/ beside what
    nobody needs.
    """
    text = (
        (root / "tests/params.yaml")
        .read_text()
        .replace("base: assets/tiny-sd", "base: models/base")
    )
    (tmp_path / "params.yaml").write_text(text)
    shutil.copytree(tiny_base, tmp_path / "mirror")
    for name in (
        "README.md",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.bin",
    ):
        (tmp_path / "mirror" / name).write_bytes(b"not needed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GDPO_DEBUG", raising=False)
    return tmp_path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a photograph and a model folder whose model is a fake."""
    photo = np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.jpg")
    (tmp_path / "models/gdpo").mkdir(parents=True)
    identity = IDENTITIES["gdpo"].model_dump()
    settings: dict[str, Any] = {"t_add": 250, "t_diff": 100, "prompt": "sharp", "adapters": []}
    card = Card(**identity, format=1, base="..", base_sha256={}, **settings)
    card.write(tmp_path / "models/gdpo")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        resolver, "load_models", lambda folders, *_: dict.fromkeys(folders, lambda: FakeModel())
    )
    return tmp_path
