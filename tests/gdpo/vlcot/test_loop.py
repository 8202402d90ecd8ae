"""GRPO on the small system: it raises the reward, resumes exactly, and counts what is broken."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gdpo.config.vlcot import Coldstart, Grpo
from gdpo.hooks import Hooks, Stopped
from gdpo.vlcot.coldstart import coldstart
from gdpo.vlcot.examples import Example, padded, pictures
from gdpo.vlcot.grammar import FORCED
from gdpo.vlcot.loop import _Run, grpo, judge
from gdpo.vlcot.parse import parse
from gdpo.vlcot.sampler import Sampling, sample
from gdpo.vlcot.trunk import Trunk
from tests.gdpo.vlcot.system import system

SETTINGS = Grpo(
    steps=3,
    batch=1,
    group=3,
    micro_batch=None,
    limit=150,
    metrics=["psnr_y"],
    lr=1e-3,
    schedule="constant",
    aggregation="normalize_then_sum",
    credit="causal",
    checkpoint_every=2,
)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Trunk:
    """A trunk that writes chains most of the time."""
    s, trunk = system(), system().trunk()
    settings = Coldstart(steps=60, batch=4, lr=6e-3, schedule="cosine", warmup=5)
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


def swapped() -> list[Example]:
    """The examples with the truth of their neighbours."""
    found = system().examples
    return [replace(one, truth=found[i - 1].truth) for i, one in enumerate(found)]


def train(
    start: Trunk, folder: Path, *, control: bool = False, hooks: Hooks | None = None, **changes: Any
) -> Any:
    s, trunk = system(), copy_of(start)
    history = grpo(
        trunk,
        s.tokenizer,
        swapped(),
        s.vocabulary,
        SETTINGS.model_copy(update=changes),
        seed=0,
        control=control,
        folder=folder,
        fingerprint="x",
        hooks=hooks or Hooks(),
    )
    return trunk, history


def test_the_cold_start_writes_chains(started: Trunk) -> None:
    s = system()
    prompts = torch.from_numpy(np.stack([one.prompt for one in s.examples])).long()
    found = sample(
        started, s.vocabulary, prompts, [(1, i) for i in range(4)], Sampling(150, temperature=0)
    )
    values = judge(
        [parse(c.tokens, s.vocabulary) for c in found],
        s.examples,
        s.tokenizer,
        s.vocabulary,
        ["psnr_y"],
    )
    assert sum(value is not None for value in values) >= 2


def test_an_update_moves_probability_toward_the_better_completion() -> None:
    s = system()
    run = _Run(s.trunk(), s.tokenizer, s.examples, s.vocabulary, SETTINGS, 0, False)
    prompts = torch.from_numpy(np.stack([one.prompt for one in s.examples[:2]])).long()
    views = pictures(s.examples[:2])
    found = sample(run.trunk, s.vocabulary, prompts, [(0,), (1,)], Sampling(40))
    tokens, kinds = (
        padded([np.array(row) for row in rows], fill)
        for rows, fill in (([c.tokens for c in found], 0), ([c.kinds for c in found], FORCED))
    )
    with torch.no_grad():
        before = run._log_probs(run.trunk, prompts, views, tokens, kinds).sum(1)
    advantages = torch.tensor([[1.0], [-1.0]]).expand(-1, tokens.shape[1])
    values = run._learn(0, prompts, views, found, advantages)
    with torch.no_grad():
        after = run._log_probs(run.trunk, prompts, views, tokens, kinds).sum(1)
    assert after[0] > before[0] and after[1] < before[1]
    assert values["loss"] == pytest.approx(0, abs=1e-6) and values["grad_norm"] > 0


def test_stopped_and_resumed_equals_uninterrupted(started: Trunk, tmp_path: Path) -> None:
    control = True  # the shuffling draws random numbers too
    once, expected = train(started, tmp_path / "once", control=control)
    seen: list[int] = []
    stopping = Hooks(log=lambda step, _: seen.append(step), should_stop=lambda: len(seen) == 1)
    with pytest.raises(Stopped):
        train(started, tmp_path / "twice", control=control, hooks=stopping)
    again, history = train(started, tmp_path / "twice", control=control)
    assert history == expected and [row["step"] for row in history] == [0, 1, 2]
    for a, b in zip(again.parameters(), once.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_control_sees_the_same_first_step_and_then_departs(
    started: Trunk, tmp_path: Path
) -> None:
    learnt, policy = train(started, tmp_path / "policy", steps=2)
    other, control = train(started, tmp_path / "control", steps=2, control=True)
    for term in ("format", "degradation", "understanding", "generation"):
        assert policy[0][term] == control[0][term]
    assert not torch.equal(learnt.lm_head.weight, other.lm_head.weight)
    assert {"generation_std", "broken", "unfinished", "tokens", "grad_norm"} <= policy[0].keys()


def test_parts_of_a_step_sum_up_and_kl_starts_at_zero(started: Trunk, tmp_path: Path) -> None:
    whole, a = train(started, tmp_path / "a", steps=1, beta=0.5)
    parts, b = train(started, tmp_path / "b", steps=1, beta=0.5, micro_batch=2)
    assert a[0]["kl"] == pytest.approx(0, abs=1e-6) and a[0]["loss"] == pytest.approx(
        b[0]["loss"], abs=1e-5
    )
    for x, y in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(x, y, atol=1e-3, rtol=0)


def test_what_is_learnt_from_has_the_probability_it_was_sampled_with(started: Trunk) -> None:
    """Log-probabilities of the learning pass against those of one completion, token by token."""
    s = system()
    run = _Run(copy_of(started), s.tokenizer, s.examples, s.vocabulary, SETTINGS, 0, False)
    prompt = torch.from_numpy(s.examples[0].prompt).long()[None]
    (found,) = sample(run.trunk, s.vocabulary, prompt, [(3,)], run.sampling)
    tokens, kinds = torch.tensor([found.tokens]), torch.tensor([found.kinds])
    with torch.no_grad():
        log_probs = run._log_probs(run.trunk, prompt, pictures(s.examples[:1]), tokens, kinds)[0]
    place = next(i for i, kind in enumerate(found.kinds) if kind == 2 and i > 20)
    so_far = torch.cat([prompt, tokens[:, :place]], 1)
    with torch.no_grad():
        scores = run.trunk(so_far)[0, -1] / SETTINGS.temperature
    codes = torch.from_numpy(s.vocabulary.codes)
    expected = scores[found.tokens[place]] - scores[codes].logsumexp(0)
    assert float(log_probs[place]) == pytest.approx(float(expected), abs=1e-4)
    assert float(log_probs.max()) <= 0 and (log_probs[tokens[0] == s.vocabulary.newline] == 0).all()


def test_a_trunk_that_writes_nothing_useful_is_counted_not_raised(tmp_path: Path) -> None:
    _, history = train(system().trunk(seed=3), tmp_path, steps=2, limit=40)
    assert history[0]["broken"] > 0 and history[0]["format"] == 0
    assert all(np.isfinite(list(row.values())).all() for row in history)


def test_an_image_of_another_stage_or_a_broken_one_has_no_metrics() -> None:
    s = system()
    whole = s.examples[0].answer.tolist()
    cut = whole[: len(whole) - 4]
    small = s.vocabulary.segment(np.zeros((2, 2), np.int64))
    parsed = [parse(ids, s.vocabulary) for ids in (whole, cut, small, [])]
    values = judge(parsed, [s.examples[0]] * 4, s.tokenizer, s.vocabulary, ["psnr_y"])
    assert values[0] is not None and values[0]["psnr_y"] > 5
    assert values[1:] == [None, None, None]
    assert (
        judge(parsed[1:], [s.examples[0]] * 3, s.tokenizer, s.vocabulary, ["psnr_y"]) == [None] * 3
    )
