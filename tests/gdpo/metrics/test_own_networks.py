"""Networks of ours against pyiqa's, with the same random weights; the guide for adding a metric."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from gdpo.metrics import clipiqa, dists, networks
from gdpo.metrics.score import score
from gdpo.metrics.table import METRICS
from tests.gdpo.metrics import weights
from tests.gdpo.metrics.test_networks import noisy, photo

pytestmark = pytest.mark.usefixtures("no_initial_weights")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for folder in ("pyiqa", "clip", "checkpoints"):
        (tmp_path / "hub" / folder).mkdir(parents=True)
    return tmp_path / "hub"


def test_dists_has_pyiqas_values(hub: Path) -> None:
    weights.dists(hub)
    image, reference = noisy(photo(50, 65)), photo(50, 65)
    pair = torch.cat([image, reference]), torch.cat([reference, image.flip(3)])
    expected, found = (module.build("cpu")(*pair) for module in (_Pyiqa("dists"), dists))
    assert float(expected.min()) > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    shares = hub / "pyiqa/DISTS_weights-f5e65c96.pth"
    torch.save({"alpha": torch.zeros(3)}, shares)
    with pytest.raises(ValueError, match=f"{shares}: not the weights of DISTS"):
        dists.build("cpu")


def test_clipiqa_has_pyiqas_values(hub: Path) -> None:
    """Features and scores, with the published scale, which makes much of small differences."""
    weights.clip(hub)
    state = torch.load(hub / "clip/RN50.pt")
    torch.save({**state, "logit_scale": torch.tensor(4.6)}, hub / "clip/RN50.pt")
    images = torch.cat([photo(64, 96), noisy(photo(64, 96))])
    theirs, ours = _Pyiqa("clipiqa").build("cpu"), clipiqa.build("cpu")
    expected, found = theirs(images), ours(images)
    assert float((expected[0] - expected[1]).abs()) > 1e-2
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    clip = theirs.clip_model[0]
    mean, std = (torch.tensor(v)[:, None, None] for v in (clipiqa.MEAN, clipiqa.STD))
    normalised = (images - mean) / std
    pairs = (
        (ours.visual(normalised), clip.encode_image(normalised, False)),
        (ours._texts(), clip.encode_text(theirs.prompt_pairs)),
    )
    for mine, other in pairs:
        mine, other = (torch.nn.functional.normalize(one, dim=1) for one in (mine, other))
        assert float(other.square().mean().sqrt()) > 0.02
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)


class _Pyiqa:
    def __init__(self, name: str) -> None:
        self.name = name

    def build(self, device: str) -> torch.nn.Module:
        return networks.build(self.name, device)


def test_the_prompts_are_pyiqas(monkeypatch: pytest.MonkeyPatch) -> None:
    """As CLIP's own tokenizer writes them."""
    networks._import_clip()
    from pyiqa.archs.clip_imports import clip

    texts = (
        *("Good image", "bad image", "Sharp image", "blurry image", "sharp edges"),
        *("blurry edges", "High resolution image", "low resolution image"),
        *("Noise-free image", "noisy image"),
    )
    for row, prompt in zip(clip.tokenize(list(texts)).tolist(), clipiqa.PROMPTS, strict=True):
        assert [id_ for id_ in row if id_] == [clipiqa.START, *prompt, clipiqa.END]


def test_adding_a_metric_works_as_the_page_says(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (root / "docs/metrics.md").read_text()
    block = re.findall(r"```python\n(.*?)```", page, re.S)[0]
    assert len([line for line in block.splitlines() if line]) <= 10
    monkeypatch.setattr("gdpo.metrics.table.METRICS", METRICS)
    monkeypatch.setitem(METRICS, "contrast", METRICS["entropy"])  # undone at the end
    exec(block, vars(ModuleType("page")))
    assert "contrast" in sys.modules["gdpo.metrics.table"].METRICS
    images = torch.cat([photo(), photo() / 2])
    first, second = score(["contrast"], images)["contrast"].tolist()
    assert first == pytest.approx(2 * second) and first > 0.01
