"""VLCoT-GRPO by TRL and by the project's own loop: one step gives the same gradient."""

from pathlib import Path
from typing import Any

import pytest
import torch

from gdpo.config.vlcot import Coldstart, Grpo
from gdpo.hooks import Hooks
from gdpo.vlcot.coldstart import coldstart
from gdpo.vlcot.loop import _Run
from gdpo.vlcot.trl_loop import make_trainer
from gdpo.vlcot.trunk import Trunk
from tests.gdpo.vlcot.system import system

SETTINGS = Grpo(
    steps=1,
    batch=1,
    group=4,
    micro_batch=None,
    limit=150,
    grammar="strict",  # so that every chain has an image and the rewards differ
    metrics=["psnr_y"],
    lr=1e-3,
    recompute=False,
)
# Deprecations inside TRL and what it imports are no faults of this project.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Trunk:
    pytest.importorskip("trl")
    s, trunk = system(), system().trunk()
    settings = Coldstart(steps=30, batch=4, lr=6e-3, schedule="cosine", warmup=5)
    folder = tmp_path_factory.mktemp("start")
    coldstart(
        trunk,
        s.examples,
        s.vocabulary,
        settings,
        seed=0,
        folder=folder,
        fingerprint="x",
        hooks=Hooks(),
    )
    return trunk


def copy_of(trunk: Trunk) -> Trunk:
    fresh = system().trunk()
    fresh.load_state_dict(trunk.state_dict())
    return fresh


def by_own_loop(start: Trunk, settings: Grpo, seed: int) -> dict[str, torch.Tensor]:
    """The clipped gradient of the first step."""
    s, trunk = system(), copy_of(start)
    run = _Run(trunk, s.tokenizer, s.examples[:1], s.vocabulary, settings, seed, control=False)
    run.step(0)
    return {name: p.grad for name, p in run.parameters.items() if p.grad is not None}


def by_trl(start: Trunk, settings: Grpo, seed: int, folder: Path) -> dict[str, torch.Tensor]:
    from transformers import TrainerCallback

    s, trunk, found = system(), copy_of(start), dict[str, torch.Tensor]()

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            for name, parameter in trunk.named_parameters():
                if parameter.grad is not None:
                    found[name] = parameter.grad.clone()

    trainer = make_trainer(
        trunk, s.tokenizer, s.examples[:1], s.vocabulary, settings, seed=seed, folder=folder
    )
    trainer.add_callback(Keep())
    trainer.train()
    return found


def far(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The distance of two gradients, relative to the first."""
    assert a.keys() == b.keys()
    both = [torch.cat([x[name].flatten() for name in a]) for x in (a, b)]
    assert both[0].norm() > 1e-3
    return float((both[0] - both[1]).norm() / both[0].norm())


@pytest.mark.parametrize(
    "changes",
    [{}, {"micro_batch": 2}, {"temperature": 0.7}, {"grammar": "free"}],
    ids=["whole", "micro", "temperature", "free"],
)
def test_one_step_has_the_gradient_of_the_own_loop(
    started: Trunk, tmp_path: Path, changes: dict[str, Any]
) -> None:
    settings = SETTINGS.model_copy(update=changes)
    own = by_own_loop(started, settings, 0)
    assert far(own, by_trl(started, settings, 0, tmp_path)) < 1e-4
    assert far(own, by_own_loop(started, settings, 1)) > 0.1  # other completions differ


@pytest.mark.parametrize(
    "changes",
    [{"aggregation": "normalize_then_sum"}, {"credit": "causal"}, {"beta": 0.1}],
    ids=lambda changes: next(iter(changes)),
)
def test_what_trl_does_otherwise_is_refused(
    started: Trunk, tmp_path: Path, changes: dict[str, Any]
) -> None:
    name = next(iter(changes))
    with pytest.raises(ValueError, match=rf"grpo.{name} must be .* with TRL"):
        by_trl(started, SETTINGS.model_copy(update=changes), 0, tmp_path)


def test_a_trunk_with_evidence_is_refused(started: Trunk, tmp_path: Path) -> None:
    s = system()
    with pytest.raises(ValueError, match=r"vlcot.evidence: TRL"):
        make_trainer(
            s.trunk(evidence=True),
            s.tokenizer,
            s.examples,
            s.vocabulary,
            SETTINGS,
            seed=0,
            folder=tmp_path,
        )


def test_completions_that_processes_cannot_share_are_named(started: Trunk, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"grpo.batch x grpo.group is 4 completions"):
        by_trl(started, SETTINGS.model_copy(update={"micro_batch": 3}), 0, tmp_path)
