"""benchmarks/rl_step.py: the released step, written plainly, does the work of ours; and what the benchmark measures."""


import pytest
import torch

from benchmarks.released_step import Released
from gdpo.data.shards import enlarge
from gdpo.images import to_tensor
from gdpo.preference.group import Group
from gdpo.preference.loop import _Run
from gdpo.preference.rollout import rollout
from gdpo.rewards.complexity import detail_share
from gdpo.training import draws
from tests import tiny

CONFIG = tiny.settings(
    rollout={"noises": 1}, finetune={"batch": 1, "rollouts": "online", "omega": 5000.0, "optimizer": {"lr": 1e-4}}
)
PAIR = tiny.pair(3)


def away(policy: dict[str, torch.nn.Parameter]) -> None:
    """Put the policy where it differs from the reference, so that the loss is not ln 2 whatever the errors are."""
    with torch.no_grad():
        for i, parameter in enumerate(policy.values()):
            parameter.add_(3e-3 * (-1) ** i)


def ours() -> tuple[_Run, float]:
    run = _Run(tiny.model(), [PAIR], CONFIG, False)
    away(run.policy)
    return run, run.step(0)["loss"]


def as_released(group: Group) -> tuple[Released, float, dict[str, torch.Tensor]]:
    """The step on the same pair, from the noises of our group; its gradients before they are cleared."""
    released = Released(tiny.model(), CONFIG.reward, CONFIG.finetune, group=3)
    away(released.policy)
    shape = tuple(group.latents.mean.shape[1:])
    noise, posterior = draws(group.seeds, shape, 3)[:2]
    again, added = draws(group.noise_seeds[0], shape, 2)
    order = iter([posterior[:1], noise, again, added])
    gradients: dict[str, torch.Tensor] = {}
    released.optimizer.register_step_pre_hook(
        lambda *_: gradients.update({n: p.grad.clone() for n, p in released.policy.items() if p.grad is not None})
    )
    lr, hr = (to_tensor(x)[None] for x in (enlarge(PAIR.lr, PAIR.hr.shape[:2], PAIR.degradation["enlarge"]), PAIR.hr))
    share = float(detail_share(hr, "released")[0])
    loss = released.step(lr * 2 - 1, hr * 2 - 1, share, group.prompt, "blurry", lambda count: next(order))
    return released, loss, gradients


def test_the_released_step_has_our_loss_gradient_and_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "half", lambda x: x)
    (group,) = rollout(tiny.model(), [PAIR], CONFIG)
    assert isinstance(group, Group)
    run, loss = ours()
    released, other, gradients = as_released(group)
    print(loss, other)
    for name, p in run.policy.items():
        print(name, (p.grad - gradients[name]).norm() / p.grad.norm(), (p - released.policy[name]).abs().max())
    assert 0
