"""Model folders: round trips, and one line that names the file for everything that is wrong with
one.
"""

import shutil
from pathlib import Path

import pytest
import torch

from gdpo import NAOSD
from gdpo.model.card import IDENTITIES
from gdpo.model.checkpoints import Adapters, read_adapters, save_model
from gdpo.seeds import torch_generator
from tests import tiny
from tests.gdpo.model.folders import LORA, adapters


def image(model: NAOSD) -> torch.Tensor:
    noise = torch.randn(2, 1, 4, 8, 8, generator=torch_generator("noise"))
    x = torch.rand(1, 3, 32, 32, generator=torch_generator("x")) * 2 - 1
    with torch.no_grad():
        return model(x, model.embed(["a"]), noise[0], noise[1])


def test_a_diffusers_folder_loads_as_it_was_written(tiny_base: Path) -> None:
    model = NAOSD.from_pretrained(tiny_base)
    # Weights lie elsewhere in memory than fresh ones, and kernels go by their alignment: not the
    # same bits.
    assert torch.allclose(image(model), image(tiny.model()), atol=1e-5)
    assert not any(p.requires_grad for p in model.parameters())
    assert (model.t_add, model.t_diff) == (250, 100)


def test_a_model_folder_keeps_its_adapters_and_settings(
    base_folder: Path, model_folder: Path
) -> None:
    given = adapters()
    (found,) = read_adapters(model_folder)
    assert (found.name, found.lora) == ("naosd", LORA)
    assert found.tensors.keys() == given.tensors.keys()
    assert all(torch.equal(found.tensors[name], given.tensors[name]) for name in given.tensors)
    model = NAOSD.from_pretrained(model_folder)
    assert (model.t_add, model.t_diff, model.prompt) == (200, 90, "crisp")
    wanted = NAOSD.from_base(base_folder)
    wanted.merge(given)
    wanted.t_add, wanted.t_diff = 200, 90
    assert torch.equal(image(model), image(wanted))
    assert not torch.equal(image(model), image(NAOSD.from_base(base_folder)))


def test_adapters_are_merged_in_their_order(base_folder: Path, tmp_path: Path) -> None:
    """Both replace conv_in: the later one stays."""
    first, second = adapters("naosd"), adapters("gdpo")
    folder = tmp_path / "models/gdpo"
    save_model(
        folder, base_folder, [first, second], IDENTITIES["gdpo"], t_add=250, t_diff=100, prompt=""
    )
    assert [a.name for a in read_adapters(folder)] == ["naosd", "gdpo"]
    wanted = NAOSD.from_base(base_folder)
    wanted.merge(first)
    wanted.merge(second)
    assert torch.equal(image(NAOSD.from_pretrained(folder)), image(wanted))


def test_the_same_adapters_give_the_same_bytes(base_folder: Path, tmp_path: Path) -> None:
    given = adapters()
    backwards = Adapters(given.name, dict(reversed(given.tensors.items())), given.lora)
    for name, each in (("a", given), ("b", backwards)):
        save_model(
            tmp_path / "models" / name,
            base_folder,
            [each],
            IDENTITIES["naosd"],
            t_add=250,
            t_diff=100,
            prompt="",
        )
    a, b = (list(tiny.tree(tmp_path / "models" / name).values()) for name in "ab")
    assert a == b


def test_model_and_base_move_together(
    base_folder: Path, model_folder: Path, tmp_path: Path
) -> None:
    before = image(NAOSD.from_pretrained(model_folder))
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.move(base_folder, moved / "base")
    with pytest.raises(
        ValueError,
        match=r"model.json: its base model .*base does not exist; give its folder by --base",
    ):
        NAOSD.from_pretrained(model_folder)
    assert torch.equal(image(NAOSD.from_pretrained(model_folder, base=moved / "base")), before)
    shutil.move(tmp_path / "models", moved / "models")
    assert torch.equal(image(NAOSD.from_pretrained(moved / "models/naosd")), before)


def test_half_precision_and_merging_in_fp32(model_folder: Path) -> None:
    model = NAOSD.from_pretrained(model_folder, dtype=torch.bfloat16)
    full = NAOSD.from_pretrained(model_folder)
    for half, whole in zip(model.unet.parameters(), full.unet.parameters(), strict=True):
        assert torch.equal(half, whole.bfloat16())
