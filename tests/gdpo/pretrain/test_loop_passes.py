"""The forward passes of a step: roles, prompts, timesteps, noise, and what gets a gradient."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from gdpo.data.shards import Shards
from gdpo.model.naosd import NAOSD
from gdpo.model.schedule import alphas_cumprod
from gdpo.pretrain import loop
from gdpo.pretrain.loop import _Run
from tests import tiny
from tests.gdpo.pretrain.training import started


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
    timesteps: list[int] = []
    true = run.model.predict_noise

    def spy(z: torch.Tensor, prompt: torch.Tensor, t: Any = None) -> torch.Tensor:
        timesteps.extend([run.model.t_diff] if t is None else [])
        return true(z, prompt, t)

    monkeypatch.setattr(run.model, "predict_noise", spy)
    assert run.step(0)["pixel"] != plain.step(0)["pixel"]
    assert timesteps == [config.model.t_diff]
    assert (run.model.t_add, run.model.t_diff) == (config.model.t_add, config.model.t_diff)


def test_everything_that_should_train_does_and_nothing_else(pairs: Shards) -> None:
    model, run = started(pairs)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    # B is zero at first, so A moves only in the second step.
    values = [run.step(step) for step in range(2)]
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
