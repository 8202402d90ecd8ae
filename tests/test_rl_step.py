"""benchmarks/rl_step.py: the released step, written plainly, does the work of ours; and what the
benchmark counts.
"""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import rl_step, rl_variants
from benchmarks.released_step import Released
from benchmarks.rl_variants import Size, Variant
from gdpo.data.shards import enlarge
from gdpo.images import to_tensor
from gdpo.preference.group import Group
from gdpo.preference.loop import _Run
from gdpo.preference.rollout import rollout
from gdpo.seeds import seeded_noise
from tests import tiny

CONFIG = tiny.settings(
    rollout={"noises": 1},
    finetune={"batch": 1, "rollouts": "online", "omega": 5000.0, "optimizer": {"lr": 1e-4}},
)
PAIR = tiny.pair(3)


def away(policy: dict[str, nn.Parameter]) -> None:
    """Put the policy where it differs from the reference: there the loss is not ln 2 whatever the
    advantages are.
    """
    with torch.no_grad():
        for i, parameter in enumerate(policy.values()):
            parameter.add_(3e-4 * (-1) ** i)


def as_released(group: Group) -> tuple[Released, float, dict[str, torch.Tensor]]:
    """The step on our pair from the noises of our group; its gradients before they are cleared."""
    released = Released(tiny.model(), CONFIG.reward, CONFIG.finetune, group=3)
    away(released.policy)
    shape = tuple(group.latents.mean.shape[1:])
    noise, posterior = seeded_noise(group.seeds, shape, 3)[:2]
    again, added = seeded_noise(group.noise_seeds[0], shape, 2)
    order = iter([posterior[:1], noise, again, added])
    gradients: dict[str, torch.Tensor] = {}
    released.optimizer.register_step_pre_hook(
        lambda *_: gradients.update(
            {n: p.grad.clone() for n, p in released.policy.items() if p.grad is not None}
        )
    )
    enlarged = enlarge(PAIR.lr, PAIR.hr.shape[:2], PAIR.degradation["enlarge"])
    lr, hr = (to_tensor(x)[None] for x in (enlarged, PAIR.hr))
    loss = released.step(
        lr * 2 - 1, hr * 2 - 1, PAIR.detail_share, group.prompt, "blurry", lambda count: next(order)
    )
    return released, loss, gradients


def test_the_released_step_has_our_loss_gradient_and_update(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Online and with the latents not rounded, for the release stores none."""
    monkeypatch.setattr(torch.Tensor, "half", lambda x: x)
    (group,) = rollout(tiny.model(), [PAIR], CONFIG)
    assert isinstance(group, Group)
    run = _Run(tiny.model(), [PAIR], CONFIG, False)
    away(run.policy)
    loss = run.step(0)["loss"]
    released, other, gradients = as_released(group)
    assert abs(loss - math.log(2)) > 0.1
    assert other == pytest.approx(loss, rel=2e-3)  # the release subtracts two sums of fp32
    whole, same = (
        torch.cat([g[name].flatten() for name in run.policy])
        for g in ({n: p.grad for n, p in run.policy.items()}, gradients)
    )
    assert float((whole - same).norm() / whole.norm()) < 1e-3
    for name, parameter in run.policy.items():
        assert torch.allclose(parameter, released.policy[name], atol=2e-5), name


def test_the_released_step_keeps_two_unets_and_its_unused_images() -> None:
    (group,) = rollout(tiny.model(), [PAIR], CONFIG)
    assert isinstance(group, Group)
    released, _, _ = as_released(group)
    sizes = [
        sum(p.numel() for n, p in unet.named_parameters() if "lora" not in n)
        for unet in (released.model.unet, released.reference)
    ]
    assert sizes[0] == sizes[1] and not {id(p) for p in released.model.parameters()} & {
        id(p) for p in released.reference.parameters()
    }
    assert [len(image) for image in released.unused] == [3, 3]
    assert [image.requires_grad for image in released.unused] == [True, False]


@pytest.mark.parametrize(
    ("device", "base"),
    [
        ("cpu", torch.float32),
        pytest.param(
            "cuda",
            torch.bfloat16,
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
        ),
    ],
)
def test_the_variants_run(
    device: str, base: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = Size(32, 64, ["niqe"], "fp32" if device == "cpu" else "bf16", base, device)
    two = rl_variants.pairs(size.side)[:2]
    monkeypatch.setattr(rl_variants, "pairs", lambda side: two)
    file = tmp_path / "rollouts.parquet"
    rl_variants.write_rollouts(size, file)
    variants = {name: rl_variants.prepare(name, size, file, 1) for name in rl_variants.VARIANTS}
    spent = rl_step.seconds(variants, 1)
    assert all(
        value > 0 for times in spent.values() for values in times.values() for value in values
    )
    static = {name: variant.static() for name, variant in variants.items()}
    assert static["cached"] == static["online"] < static["released"]
    assert rl_step.counted(variants["cached"])["waits"] <= 2


def test_a_wait_is_a_value_read_that_follows_from_the_weights() -> None:
    layer = nn.Linear(3, 3)

    def step(reads: int) -> None:
        out = layer(torch.ones(3)).sum()
        # CPU tensors, whatever the device.
        assert all(float(torch.ones(1).sum()) == 1 for _ in range(5))
        assert [out.item() for _ in range(reads)]
        assert len(list(layer.named_modules())) == 1

    for reads in (1, 4):
        variant = Variant(
            lambda i, reads=reads: step(reads), [layer], torch.optim.AdamW(layer.parameters())
        )
        found = rl_step.counted(variant)
        assert found["waits"] == reads and found["walked"] > 0


def test_the_static_memory_is_what_was_derived_from_the_code_and_a_third() -> None:
    found = rl_step.static_sd21()
    assert found["released"] == pytest.approx(10.3e9, rel=0.01)
    assert found["cached"] < found["online"] < found["released"] / 3
