"""LoRA on the trunk: zero at the start, only adapters are trained, and they merge into layers."""

from pathlib import Path

import torch

from gdpo.config.model import Lora
from gdpo.config.vlcot import Grpo
from gdpo.hooks import Hooks
from gdpo.vlcot.loop import grpo
from gdpo.vlcot.lora import LAYERS, merge, trainable
from tests.gdpo.vlcot.system import system

IDS = torch.arange(12)[None]


def test_adapters_change_nothing_until_trained_and_merge_to_the_same_logits() -> None:
    trunk = system().trunk().eval()
    names, before = list(trunk.state_dict()), trunk(IDS).detach()
    parameters = trainable(trunk, Lora(rank=2, alpha=4), seed=0)
    assert len(parameters) == 2 * len(LAYERS) * trunk.config.num_hidden_layers
    assert {name for name, p in trunk.named_parameters() if p.requires_grad} == parameters.keys()
    torch.testing.assert_close(trunk(IDS), before)
    base = {n: p.clone() for n, p in trunk.named_parameters() if n not in parameters}
    adam = torch.optim.AdamW(parameters.values(), lr=0.05)
    for _ in range(2):  # B is 0, so A has no gradient in the first step
        adam.zero_grad()
        trunk(IDS).logsumexp(2).sum().backward()
        adam.step()
    trained = trunk(IDS).detach()
    assert not torch.allclose(trained, before, atol=1e-3)
    assert all(torch.equal(p, base[n]) for n, p in trunk.named_parameters() if n in base)
    merge(trunk)
    assert list(trunk.state_dict()) == names
    torch.testing.assert_close(trunk(IDS).detach(), trained, atol=1e-4, rtol=1e-4)
    assert all(p.requires_grad for p in trunk.parameters())


def test_grpo_trains_adapters_with_recomputed_layers(tmp_path: Path) -> None:
    """The table of embeddings is frozen, the layers are not, and a run has the same bytes again."""
    s, found = system(), []
    settings = Grpo(
        steps=2,
        batch=1,
        group=3,
        micro_batch=2,
        limit=120,
        metrics=["psnr_y"],
        lr=0.05,
        grammar="strict",
        recompute=True,
        lora=Lora(rank=2, alpha=4),
        checkpoint_every=1,
    )
    for folder in ("a", "b"):
        trunk = s.trunk()
        start = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
        history = grpo(
            trunk,
            s.tokenizer,
            s.examples,
            s.vocabulary,
            settings,
            seed=0,
            control=False,
            folder=tmp_path / folder,
            fingerprint="x",
            hooks=Hooks(),
        )
        assert len(history) == 2 and history[0]["grad_norm"] > 0
        moved = {n for n, t in trunk.state_dict().items() if not torch.equal(t, start[n])}
        assert moved and all(n.split(".")[-2] in LAYERS for n in moved)
        found.append(trunk.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
