"""Examples as tokens, and the supervised loss: by hand, in parts, stopped and resumed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gdpo.config.vlcot import Coldstart
from gdpo.hooks import Hooks, Stopped
from gdpo.vlcot.coldstart import IGNORED, _Run, batch, coldstart, collate, token_losses
from gdpo.vlcot.describe import describe
from gdpo.vlcot.evidence import places
from gdpo.vlcot.examples import example, pictures
from gdpo.vlcot.parse import parse
from gdpo.vlcot.rewards import format_reward, rewards
from gdpo.vlcot.trunk import Trunk
from tests import tiny
from tests.gdpo.vlcot.system import STAGES, system

SETTINGS = Coldstart(
    steps=4, batch=3, lr=3e-3, warmup=1, z_loss=1e-3, precision="fp32", checkpoint_every=2
)


def train(
    folder: Path, settings: Coldstart = SETTINGS, hooks: Hooks | None = None
) -> tuple[Trunk, list[dict[str, float]]]:
    s, trunk = system(), system().trunk()
    history = coldstart(
        trunk,
        s.examples,
        s.vocabulary,
        settings,
        seed=0,
        folder=folder,
        fingerprint="x",
        hooks=hooks or Hooks(),
    )
    return trunk, history


def test_the_answer_is_a_whole_chain_with_full_marks() -> None:
    s = system()
    for one in s.examples:
        found = parse(one.answer.tolist(), s.vocabulary)
        assert found.ended and format_reward(found.text, "strict") == 1
        assert rewards(found, one.truth, {"psnr_y": 27.0}) == [1, 1, 1, 1]
        shapes = [codes.shape for codes in found.images if codes is not None]
        assert shapes == [(1, 1), (2, 2), (4, 4)]
        assert len(one.prompt) == 1 + s.vocabulary.tokens(32) + 1


def test_the_prompts_image_is_the_enlarged_lr_and_the_last_the_hr() -> None:
    s, pair = system(), tiny.pair(0)
    hr = torch.from_numpy(pair.hr).permute(2, 0, 1)[None].float() / 255
    expected = s.tokenizer.encode(hr)[0].numpy()
    found = parse(s.examples[0].answer.tolist(), s.vocabulary)
    np.testing.assert_array_equal(found.result, expected)
    (lr,) = parse(s.examples[0].prompt.tolist()[1:], s.vocabulary).images
    assert lr is not None and lr.shape == (4, 4) and not np.array_equal(lr, expected)


def test_a_pair_that_cannot_be_written_is_named() -> None:
    s, pair = system(), tiny.pair(0)
    with pytest.raises(ValueError, match=r"pair pair0: degradation must be a complete draw"):
        example(pair, describe(pair.hr), s.vocabulary, s.tokenizer, "released")
    small = replace(pair, hr=pair.hr[:16])
    with pytest.raises(ValueError, match=r"pair0: its HR image is \(16, 32\)"):
        example(small, describe(pair.hr), s.vocabulary, s.tokenizer, "released")
    assert STAGES[-1] == 32


def test_labels_are_the_answers_alone() -> None:
    s = system()
    ids, labels = collate(s.examples)
    for row, label, one in zip(ids, labels, s.examples, strict=True):
        assert label[label != IGNORED].tolist() == one.answer.tolist()
        assert (label[: len(one.prompt)] == IGNORED).all()
        assert row[: len(one.prompt)].tolist() == one.prompt.tolist()


def test_the_loss_of_each_token_by_hand() -> None:
    s, trunk = system(), system().trunk()
    ids, labels = collate(s.examples[:2])
    found = token_losses(trunk, ids, labels)
    rows = []
    for row, label in zip(ids, labels, strict=True):
        logits = trunk(row[None])[0]
        for place in range(1, len(row)):
            if label[place] != IGNORED:
                log_z = logits[place - 1].logsumexp(0)
                rows.append(torch.stack([log_z - logits[place - 1, row[place]], log_z**2]))
    torch.testing.assert_close(found, torch.stack(rows), atol=1e-4, rtol=1e-4)


def test_it_learns_and_the_parts_of_a_batch_sum_up(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"steps": 20})
    whole, history = train(tmp_path / "a", settings)
    assert history[-1]["text_ce"] < 0.7 * history[0]["text_ce"]
    parts, _ = train(tmp_path / "b", SETTINGS.model_copy(update={"micro_batch": 1}))
    once, _ = train(tmp_path / "c")
    for a, b in zip(parts.parameters(), once.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=0)
    assert whole.config.vocab_size == system().vocabulary.size


def test_stopped_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    once, expected = train(tmp_path / "once")
    seen: list[int] = []
    stopping = Hooks(log=lambda step, _: seen.append(step), should_stop=lambda: len(seen) == 3)
    with pytest.raises(Stopped):
        train(tmp_path / "twice", hooks=stopping)
    again, history = train(tmp_path / "twice")
    assert history == expected
    for a, b in zip(again.parameters(), once.parameters(), strict=True):
        assert torch.equal(a, b)


def test_every_example_comes_once_in_a_pass() -> None:
    seen = [i for step in range(5) for i in batch(0, "x", step, 4, 10)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]


def test_the_average_of_the_weights_becomes_the_model(tmp_path: Path) -> None:
    """Decays of (1 + step) / (10 + step) below the cap: by hand from the weights of each step."""
    settings = SETTINGS.model_copy(update={"average": 0.15})
    states = []
    for steps in (1, 2):
        trunk, _ = train(tmp_path / f"{steps}", SETTINGS.model_copy(update={"steps": steps}))
        states.append(trunk.lm_head.weight.detach().clone())
    mean = system().trunk().lm_head.weight.detach().clone()
    for state, decay in zip(states, (0.1, 0.15), strict=True):
        mean = decay * mean + (1 - decay) * state
    trunk, _ = train(tmp_path / "average", settings.model_copy(update={"steps": 2}))
    torch.testing.assert_close(trunk.lm_head.weight.detach(), mean)


def test_evidence_enters_the_loss_and_learns(tmp_path: Path) -> None:
    s = system()
    trunk = s.trunk(evidence=True)
    history = coldstart(
        trunk,
        s.examples,
        s.vocabulary,
        SETTINGS.model_copy(update={"steps": 20}),
        seed=0,
        folder=tmp_path,
        fingerprint="x",
        hooks=Hooks(),
    )
    assert history[-1]["code_ce"] < history[0]["code_ce"]
    assert trunk.evidence is not None and trunk.evidence.places.abs().sum() > 0
    dark = [replace(one, seen=one.seen // 2) for one in s.examples[:1]]
    ids, labels = collate(dark)
    rows = torch.from_numpy(np.stack([places(s.vocabulary, row) for row in ids.numpy()]))
    losses = [
        token_losses(trunk, ids, labels, trunk.seen(pictures(shown), rows))
        for shown in (dark, s.examples[:1])
    ]
    assert not torch.allclose(*losses)


def test_corruption_replaces_codes_of_answers_alone() -> None:
    s = system()
    settings = SETTINGS.model_copy(update={"corrupt": 0.5, "corrupt_from": 1})
    run = _Run(s.trunk(), s.examples, s.vocabulary, settings, 0)
    ids, labels = collate(s.examples)
    found = run._corrupted(ids, labels, (1,))
    changed = found != ids
    assert (s.vocabulary.code_of[found[changed].numpy()] >= 0).all()
    assert (s.vocabulary.code_of[ids[changed].numpy()] >= 0).all()
    assert (labels[changed] != IGNORED).all()
    codes = int(((torch.from_numpy(s.vocabulary.code_of) >= 0)[ids] & (labels != IGNORED)).sum())
    assert 0.3 < int(changed.sum()) / codes < 0.6  # a random code may be the true one
    assert torch.equal(found, run._corrupted(ids, labels, (1,)))
    assert not torch.equal(found, run._corrupted(ids, labels, (2,)))
