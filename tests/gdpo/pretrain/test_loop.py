"""The pretraining loop on tiny inputs: what it trains, what it draws, and where it refuses to
start.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from gdpo.config import Config, Lora
from gdpo.data.shards import Shards, write_shards
from gdpo.hooks import Hooks, Stopped
from gdpo.model.checkpoints import Adapters
from gdpo.pretrain import loop
from gdpo.pretrain.loop import History, _Run, load_into, pretrain
from gdpo.train.loop import Diverged
from tests import tiny
from tests.gdpo.pretrain.training import started, train


def same(a: tuple[Adapters, History], b: tuple[Adapters, History]) -> bool:
    equal = all(torch.equal(a[0].tensors[name], b[0].tensors[name]) for name in a[0].tensors)
    return a[0].tensors.keys() == b[0].tensors.keys() and equal and a[1] == b[1]


def test_two_runs_in_one_process_are_identical_and_a_third_seed_is_not(
    pairs: Shards, tmp_path: Path
) -> None:
    first, second = (train(pairs, tmp_path / name, steps=3) for name in "ab")
    assert same(first, second)
    other = tiny.settings(pretrain={"steps": 3}).model_copy(update={"seed": 1})
    third = pretrain(
        tiny.model(), pairs, other, init=None, folder=tmp_path / "c", fingerprint="", hooks=Hooks()
    )
    assert third[1][0]["loss"] != first[1][0]["loss"]


def test_the_loss_is_the_weighted_sum_and_its_gradient_norm_that_before_clipping(
    pairs: Shards,
) -> None:
    weights = {"lambda_pixel": 0.5, "lambda_perceptual": 3.0, "lambda_vsd": 0.25}
    _, run = started(pairs, **weights, optimizer={"lr": 1e-3, "clip": 1e-3})
    row = run.step(0)
    assert row["loss"] == pytest.approx(
        0.5 * row["pixel"] + 3 * row["perceptual"] + 0.25 * row["vsd"], rel=1e-5
    )
    assert row["grad_norm"] > 1e-2  # not the clipped 1e-3


def test_batches_visit_every_pair_once_per_epoch(pairs: Shards) -> None:
    _, run = started(pairs)
    order = [run._index(position) for position in range(10)]
    assert sorted(order[:5]) == sorted(order[5:]) == list(range(5))
    assert [run._index(position) for position in (7, 2, 9)] == [order[7], order[2], order[9]]


def test_lr_and_hr_are_flipped_together(pairs: Shards) -> None:
    _, run = started(pairs, batch=5)
    flipped = set()
    for step in range(4):
        hr, lr, prompts = run._batch(step, range(5))
        assert hr.shape == lr.shape == (5, 3, 32, 32) and prompts == ["sharp"] * 5
        assert hr.min() >= -1 and hr.max() <= 1
        for i in range(5):
            pair = pairs[run._index(step * 5 + i)]
            plain = torch.from_numpy(pair.hr).permute(2, 0, 1).float() / 127.5 - 1
            is_flipped = torch.allclose(hr[i], plain.flip(-1), atol=1e-5)
            flipped.add(is_flipped)
            assert is_flipped or torch.allclose(hr[i], plain, atol=1e-5)
            near = torch.nn.functional.avg_pool2d(hr[i : i + 1] - lr[i : i + 1], 8)
            assert near.abs().mean() < 0.15  # the LR shows the same side
    assert flipped == {True, False}


def test_training_tags_come_before_the_prompt(tmp_path: Path) -> None:
    tagged = tiny.pair(0)
    write_shards(tmp_path / "train", [type(tagged)(**{**vars(tagged), "tags": "cat, grass"})], 1.0)
    _, run = started(Shards(tmp_path / "train"), batch=1)
    assert run._batch(0, [0])[2] == ["cat, grass, sharp"]
    released = tiny.settings(
        pretrain={"batch": 1}, model={"prompt": "crisp", "training_prompt": ""}
    )
    alone = _Run(tiny.model(), Shards(tmp_path / "train"), released, None)
    assert alone._batch(0, [0])[2] == ["cat, grass, "]


def test_cosine_schedule_ends_low(pairs: Shards) -> None:
    _, run = started(pairs, steps=10, optimizer={"lr": 1e-3, "schedule": "cosine"})
    rates = []
    for step in (0, 5, 9):
        run._schedule(step)
        rates.append(
            [
                group["lr"]
                for adam in (run.optimizer, run.optimizer_fake)
                for group in adam.param_groups
            ]
        )
    assert rates == [
        pytest.approx([value] * 2, rel=1e-4) for value in (1e-3, 5e-4, 1e-3 * 0.0244717)
    ]


@pytest.mark.parametrize("stop_after", [1, 4])
def test_stopped_and_resumed_gives_the_same_adapters(
    pairs: Shards, tmp_path: Path, stop_after: int
) -> None:
    straight = train(pairs, tmp_path / "straight", steps=4)
    seen: list[int] = []
    hooks = Hooks(
        log=lambda step, _: seen.append(step), should_stop=lambda: len(seen) == stop_after
    )
    with pytest.raises(Stopped):
        train(pairs, tmp_path / "cut", steps=4, hooks=hooks)
    assert same(train(pairs, tmp_path / "cut", steps=4), straight)


def test_a_start_from_adapters_begins_where_they_are(pairs: Shards, tmp_path: Path) -> None:
    adapters, history = train(pairs, tmp_path / "a", steps=2)
    again, more = train(
        pairs, tmp_path / "b", steps=1, init=adapters, optimizer={"lr": 1e-12, "weight_decay": 0.0}
    )
    assert all(
        torch.allclose(again.tensors[name], adapters.tensors[name], atol=1e-9)
        for name in adapters.tensors
    )
    assert more[0]["pixel"] != history[0]["pixel"]


def test_adapters_that_do_not_fit_are_refused_by_name(pairs: Shards, tmp_path: Path) -> None:
    adapters, _ = train(pairs, tmp_path, steps=1)
    wanted = started(pairs)[1].policy
    cut = {
        name: tensor for name, tensor in adapters.tensors.items() if name != "vae.quant_conv.lora_A"
    }
    with pytest.raises(
        ValueError,
        match=r"pretrain.init: .* do not cover the same layers .*\(vae.quant_conv.lora_A\)",
    ):
        load_into(wanted, Adapters("naosd", cut, Lora(rank=2, alpha=4)))
    other = {**adapters.tensors, "unet.conv_in.lora_A": torch.zeros(3, 4, 3, 3)}
    with pytest.raises(
        ValueError,
        match=r"unet.conv_in.lora_A has shape \(3, 4, 3, 3\), pretrain.lora asks for \(2, 4, 3, "
        r"3\)",
    ):
        load_into(wanted, Adapters("naosd", other, Lora(rank=3, alpha=4)))


def test_missing_weights_of_the_perceptual_loss_stop_it_before_the_first_step(
    pairs: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nothing"))
    logged: list[int] = []
    with pytest.raises(
        ValueError, match=r"LPIPS_v0.1_vgg-a78928a0.pth is missing; put it into .*nothing/hub/pyiqa"
    ):
        train(
            pairs,
            tmp_path,
            perceptual="lpips-vgg",
            hooks=Hooks(log=lambda step, _: logged.append(step)),
        )
    assert not logged and not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["pixel_loss", "vsd_loss"])
def test_divergence_names_the_step_and_keeps_the_checkpoint(
    pairs: Shards, tmp_path: Path, monkeypatch: Any, where: str
) -> None:
    calls = []
    true = getattr(loop, where)

    def sometimes_nan(z: torch.Tensor, *rest: Any) -> torch.Tensor:
        calls.append(0)
        return true(z * torch.nan if len(calls) == 4 else z, *rest)

    monkeypatch.setattr(loop, where, sometimes_nan)
    with pytest.raises(Diverged, match=r"step 3: .* the last good checkpoint is .*checkpoint.pt"):
        train(pairs, tmp_path)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["step"] == 2
    assert all(bool(torch.isfinite(p).all()) for p in saved["state"]["policy"].values())


def test_half_precision_trains_too(pairs: Shards, tmp_path: Path) -> None:
    _, half = train(pairs, tmp_path / "half", steps=2, precision="bf16")
    _, full = train(pairs, tmp_path / "full", steps=2)
    assert half[0]["loss"] == pytest.approx(full[0]["loss"], rel=0.05)
    assert half[0]["loss"] != full[0]["loss"]


def test_the_configuration_names_every_value_the_history_has(pairs: Shards, tmp_path: Path) -> None:
    _, history = train(pairs, tmp_path, steps=1)
    assert set(history[0]) == {
        "step",
        "loss",
        "pixel",
        "perceptual",
        "vsd",
        "fake_loss",
        "grad_norm",
        "fake_grad_norm",
    }
    assert isinstance(tiny.settings(), Config)


def test_weight_decay_shrinks_every_weight(pairs: Shards) -> None:
    """AdamW: by lr times decay of the weight before the step, whatever the gradient."""
    plain, decayed = (
        started(pairs, optimizer={"lr": 1e-2, "weight_decay": decay})[1] for decay in (0.0, 0.5)
    )
    before = {
        name: p.detach().clone()
        for name, p in prefixed_of(plain).items()
        if name.endswith("lora_A")
    }
    for run in (plain, decayed):
        run.step(0)
    first, second = prefixed_of(plain), prefixed_of(decayed)
    for name, weight in before.items():
        shrunk = first[name] - second[name]
        torch.testing.assert_close(shrunk, 0.5e-2 * weight, rtol=1e-3, atol=1e-6)


def prefixed_of(run: _Run) -> dict[str, torch.Tensor]:
    return {
        f"{role}.{name}": p
        for role, parameters in (("policy", run.policy), ("fake", run.fake))
        for name, p in parameters.items()
    }
