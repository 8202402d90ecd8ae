"""The pretraining loop on tiny inputs: what it trains, what it draws, and where it refuses to
start.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from gdpo.config import Config, Lora
from gdpo.data.shards import Shards, write_shards
from gdpo.hooks import Hooks, Stopped
from gdpo.model.checkpoints import Adapters
from gdpo.model.naosd import NAOSD
from gdpo.model.schedule import alphas_cumprod
from gdpo.pretrain import loop
from gdpo.pretrain.loop import History, _Run, load_into, pretrain
from gdpo.train.loop import Diverged
from tests import tiny


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    folder = tmp_path_factory.mktemp("shards") / "train"
    write_shards(folder, (tiny.pair(i) for i in range(5)), 1.0)
    return Shards(folder)


def train(
    pairs: Shards,
    folder: Path,
    *,
    init: Adapters | None = None,
    hooks: Hooks | None = None,
    **settings: Any,
) -> Any:
    config = tiny.settings(pretrain=settings)
    return pretrain(
        tiny.model(),
        pairs,
        config,
        init=init,
        folder=folder,
        fingerprint="test",
        hooks=hooks or Hooks(),
    )


def same(a: tuple[Adapters, History], b: tuple[Adapters, History]) -> bool:
    equal = all(torch.equal(a[0].tensors[name], b[0].tensors[name]) for name in a[0].tensors)
    return a[0].tensors.keys() == b[0].tensors.keys() and equal and a[1] == b[1]


def started(pairs: Shards, **settings: Any) -> tuple[NAOSD, _Run]:
    model = tiny.model()
    return model, _Run(model, pairs, tiny.settings(pretrain=settings), None)


def test_t_add_is_drawn_per_sample_from_its_range(pairs: Shards, monkeypatch: Any) -> None:
    """The draws do not depend on the batch, and every sample is noised at its own timestep."""
    _, run = started(pairs, batch=3, t_add_range=[50, 400])
    drawn: list[Any] = []
    inject = loop.steps.inject

    def spy(model: NAOSD, z: torch.Tensor, noise: torch.Tensor, t_add: Any = None) -> torch.Tensor:
        drawn.append(t_add)
        return inject(model, z, noise, t_add)

    monkeypatch.setattr(loop.steps, "inject", spy)
    for step in range(20):
        run.step(step)
    timesteps = torch.stack(drawn)
    assert timesteps.shape == (20, 3) and len(timesteps.unique()) > 40
    assert int(timesteps.min()) >= 50 and int(timesteps.max()) < 400
    keys: list[Any] = [(run.config.seed, "pretrain", 7, i) for i in (2, 0)]
    assert torch.equal(run._t_add(keys), timesteps[7, [2, 0]])


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


@pytest.mark.parametrize(("key", "value"), [("t_add", 150), ("t_add", None), ("t_diff", 200)])
def test_the_timesteps_are_those_of_the_configuration(
    pairs: Shards, monkeypatch: Any, key: str, value: int | None
) -> None:
    """And not the model's own, which a base model does not have."""
    config = tiny.settings(pretrain={"batch": 1}, model={key: value})
    run, plain = (
        _Run(tiny.model(), pairs, each, None)
        for each in (config, tiny.settings(pretrain={"batch": 1}))
    )
    asked: list[int] = []
    true = run.model.predict_noise

    def spy(z: torch.Tensor, prompt: torch.Tensor, t: Any = None) -> torch.Tensor:
        asked.extend([run.model.t_diff] if t is None else [])
        return true(z, prompt, t)

    monkeypatch.setattr(run.model, "predict_noise", spy)
    assert run.step(0)["pixel"] != plain.step(0)["pixel"]
    assert asked == [config.model.t_diff]
    assert (run.model.t_add, run.model.t_diff) == (config.model.t_add, config.model.t_diff)


def test_everything_that_should_train_does_and_nothing_else(pairs: Shards) -> None:
    model, run = started(pairs)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    values = [
        run.step(step) for step in range(2)
    ]  # B is zero at first, so A moves only in the second step
    trained = {id(p) for p in (*run.policy.values(), *run.fake.values())}
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == (id(p) not in trained), name
    names = set(run.policy)
    assert {
        "unet.conv_in.weight",
        "unet.conv_in.bias",
        "unet.conv_in.lora_A",
        "vae.quant_conv.lora_B",
    } <= names
    assert not [name for name in names if "decoder" in name or "post_quant" in name]
    assert {name for name in names if name.startswith("unet.")} - set(run.fake) == {
        "unet.conv_in.weight",
        "unet.conv_in.bias",
    }
    assert all(np.isfinite(list(row.values())).all() for row in values)


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


def test_vsd_reaches_the_encoder_and_not_the_fake_score(pairs: Shards) -> None:
    _, run = started(pairs, lambda_pixel=0.0, lambda_perceptual=0.0)
    seen: list[dict[str, bool]] = []
    backward = run._backward

    def spy(loss: torch.Tensor, part: Any) -> None:
        for p in (*run.policy.values(), *run.fake.values()):
            p.grad = None
        backward(loss, part)
        sets = {"policy": run.policy, "fake": run.fake}
        seen.append(
            {
                f"{name}.{key}": p.grad is not None
                for name, some in sets.items()
                for key, p in some.items()
            }
        )

    run._backward = spy
    run.step(0)
    generator, fake = seen
    assert generator["policy.vae.quant_conv.lora_B"] and generator["policy.unet.conv_in.lora_B"]
    assert not any(got for name, got in generator.items() if name.startswith("fake."))
    assert all(got == name.startswith("fake.") for name, got in fake.items())


def test_every_sample_draws_its_own_timestep_and_noise(pairs: Shards) -> None:
    _, run = started(pairs)
    z = torch.zeros(3, 4, 8, 8)
    keys = [(0, "pretrain", 0, i) for i in range(3)]
    z_t, noise, t = run._noisy(z, keys, "vsd", 20, 500)
    assert ((t >= 20) & (t < 500)).all() and len(set(t.tolist())) == 3
    assert not torch.equal(noise[0], noise[1])
    alone = run._noisy(z[1:2], keys[1:2], "vsd", 20, 500)
    assert torch.equal(alone[1][0], noise[1]) and alone[2][0] == t[1]
    assert torch.equal(alone[0][0], z_t[1])
    drawn = torch.stack([run._noisy(z[:1], [(0, s)], "vsd", 20, 22)[2] for s in range(40)])
    assert set(drawn.flatten().tolist()) == {20, 21}  # the upper end is excluded


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


class Call(NamedTuple):
    """One forward pass of the UNet: what it was given under which roles, and what it gave."""

    roles: list[str]
    prompt: torch.Tensor
    t: torch.Tensor
    eps: torch.Tensor


def calls_of_steps(run: _Run, monkeypatch: Any, steps: int) -> tuple[list[list[Call]], list[Any]]:
    """Every forward pass of each step, and the logged values."""
    true, calls, rows = run.model.predict_noise, [], []

    def spy(z: torch.Tensor, prompt: torch.Tensor, t: Any = None) -> torch.Tensor:
        eps = true(z, prompt, t)
        calls[-1].append(
            Call(list(run.model.unet_roles.active), prompt.detach(), t, eps.detach().clone())
        )
        return eps

    monkeypatch.setattr(run.model, "predict_noise", spy)
    for step in range(steps):
        calls.append([])
        rows.append(run.step(step))
    return calls, rows


def test_each_pass_has_its_role_and_prompt(pairs: Shards, monkeypatch: Any) -> None:
    _, run = started(pairs)
    calls, _ = calls_of_steps(run, monkeypatch, 1)
    policy, fake, real, fake_loss = calls[0]
    assert [call.roles for call in calls[0]] == [["policy"], ["fake"], [], ["fake"]]
    positive = run.model.embed(["sharp"]).expand(2, -1, -1)
    negative = run.model.embed(["blurry"]).expand(2, -1, -1)
    assert not torch.equal(positive, negative)
    for call in (policy, fake, fake_loss):
        assert torch.equal(call.prompt, positive)
    assert torch.equal(real.prompt, torch.cat([negative, positive]))


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_vsd_is_of_the_guided_real_score(pairs: Shards, monkeypatch: Any, guidance: float) -> None:
    """The logged loss from the recorded predictions, by the formulas of gdpo/pretrain/vsd.py."""
    _, run = started(pairs, guidance=guidance)
    latents = []
    distill = run._distill
    monkeypatch.setattr(
        run, "_distill", lambda z, *rest: (latents.append(z.detach()), distill(z, *rest))[1]
    )
    calls, rows = calls_of_steps(run, monkeypatch, 2)
    for step in range(2):
        _, fake, real, _ = calls[step]
        negative, positive = real.eps.chunk(2)
        z, abar = latents[step], alphas_cumprod()[fake.t].float().view(-1, 1, 1, 1)
        # x0_fake - x0_real: z_t drops out of the difference.
        guided = negative + guidance * (positive - negative)
        difference = ((1 - abar) / abar).sqrt() * (guided - fake.eps)
        noise = run._noisy(z, [(0, "pretrain", step, i) for i in range(2)], "vsd", 20, 500)[0]
        x0_real = (noise - (1 - abar).sqrt() * guided) / abar.sqrt()
        weight = (z - x0_real).abs().mean((1, 2, 3), keepdim=True)
        expected = (difference / weight).square().mean()
        assert rows[step]["vsd"] == pytest.approx(float(expected), rel=1e-4)


def test_the_timesteps_of_vsd_have_their_range_and_those_of_the_fake_score_the_whole(
    pairs: Shards, monkeypatch: Any
) -> None:
    _, run = started(pairs, vsd_t_range=[700, 703], batch=4)
    calls, _ = calls_of_steps(run, monkeypatch, 3)
    of_vsd = torch.cat([step[1].t for step in calls])
    of_fake = torch.cat([step[3].t for step in calls])
    assert set(of_vsd.tolist()) <= {700, 701, 702} and len(set(of_vsd.tolist())) > 1
    assert all(torch.equal(step[2].t, step[1].t.repeat(2)) for step in calls)
    assert of_fake.min() < 500 < of_fake.max()


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
