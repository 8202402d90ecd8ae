"""A working folder for `fetch`."""

import shutil
from pathlib import Path

import pytest


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
