"""Pretraining of NAOSD (paper Sec. 3.1, Eq. 5): LoRA on the UNet and the VAE encoder.

for every batch of LR-HR pairs:                  active role
    z_SR, image = policy(x_LR)                   policy
    L = pixel + 2 perceptual + 1 VSD(z_SR)       real score: none; fake score: fake
    one AdamW step of the policy on L
    L_fake = denoising loss on z_SR.detach()     fake
    one AdamW step of the fake score on L_fake

With `pretrain.micro_batch` both losses are accumulated over parts of the batch; which weights are
the result, the last, their average or the best by validation, is in result.py.

python -m tasks pretrain
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from gdpo.config import Config
from gdpo.data.shards import Pair, Shards, enlarge
from gdpo.hooks import Hooks
from gdpo.images import to_tensor
from gdpo.model import steps
from gdpo.model.adapters import Roles, recompute
from gdpo.model.checkpoints import Adapters
from gdpo.model.naosd import NAOSD
from gdpo.model.prompts import compose
from gdpo.model.sampling import autocast, draw_noise
from gdpo.model.schedule import NUM_TRAIN_TIMESTEPS, add_noise
from gdpo.pretrain.losses import check_perceptual, perceptual_loss, pixel_loss
from gdpo.pretrain.result import AfterStep, Result, Weights, held_out
from gdpo.pretrain.vsd import fake_score_loss, guided_noise, vsd_loss
from gdpo.seeds import Key, numpy_generator, torch_generator
from gdpo.train.loop import Loop, Stateful, Tensors, cosine, grad_norm
from gdpo.train.world import current

History = list[dict[str, float]]


def pretrain(
    model: NAOSD,
    pairs: Shards,
    config: Config,
    *,
    init: Adapters | None,
    folder: Path,
    fingerprint: str,
    hooks: Hooks,
    keep: Callable[[int, Adapters], None] = lambda step, adapters: None,
) -> tuple[Adapters, History]:
    """Train NAOSD's adapters on `pairs`; return them and the loss values of every step.

    model: the base, without roles. init: adapters to start from, of the same rank. folder: holds
    the checkpoint. keep: called every `pretrain.keep_every` steps with the number of steps and the
    adapters.
    Errors: `Stopped` after a checkpoint when asked to stop; `Diverged` when a loss is not finite;
    ValueError when weights of the perceptual loss are missing, before training starts.
    """
    check_perceptual(config.pretrain.perceptual)
    run = _Run(model, pairs, config, init)
    settings = config.pretrain
    result = Result(run.policy, settings)
    state: dict[str, Stateful] = {
        "policy": Tensors(run.policy),
        "fake": Tensors(run.fake),
        "adam": run.optimizer,
        "adam_fake": run.optimizer_fake,
        "result": result,
    }

    def kept(done: int, weights: Weights) -> None:
        keep(done, Adapters("naosd", weights, settings.lora))

    after = AfterStep(result, settings, run.validation_loss, kept, run.world)
    loop = Loop(folder, settings.steps, state, fingerprint, settings.checkpoint_every, hooks)
    history = loop.run(lambda step: {**run.step(step), **after(step + 1)})
    return Adapters("naosd", result.final(), settings.lora), history


def load_into(parameters: dict[str, torch.nn.Parameter], init: Adapters) -> None:
    """Copy adapters into newly added parameters.

    Errors: ValueError when names or shapes differ.
    """
    if init.tensors.keys() != parameters.keys():
        odd = sorted(init.tensors.keys() ^ parameters.keys())[0]
        raise ValueError(
            f"pretrain.init: its adapters do not cover the same layers as this base model ({odd})"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            if init.tensors[name].shape != parameter.shape:
                shape, wanted = tuple(init.tensors[name].shape), tuple(parameter.shape)
                raise ValueError(
                    f"pretrain.init: {name} has shape {shape}, pretrain.lora asks for {wanted}"
                )
            parameter.copy_(init.tensors[name])


def prefixed(roles: dict[str, Roles], role: str) -> dict[str, torch.nn.Parameter]:
    """The parameters of one role in several networks, named `<network>.<module>.<kind>`."""
    return {
        f"{net}.{name}": p for net, r in roles.items() for name, p in r.parameters(role).items()
    }


class _Run:
    """One training run: the model with its roles, the optimisers, and the step function."""

    def __init__(self, model: NAOSD, pairs: Shards, config: Config, init: Adapters | None) -> None:
        self.model, self.pairs, self.config = model, pairs, config
        model.t_add, model.t_diff = config.model.t_add, config.model.t_diff
        settings = config.pretrain
        model.unet_roles.add("policy", settings.lora, seed=config.seed, train_full=True)
        # Both roles start as the base (B = 0), so the first VSD gradient is guidance alone.
        model.unet_roles.add("fake", settings.lora, seed=config.seed)
        model.vae_roles.add("policy", settings.lora, seed=config.seed)
        self.policy = prefixed({"unet": model.unet_roles, "vae": model.vae_roles}, "policy")
        self.fake = prefixed({"unet": model.unet_roles}, "fake")
        if init is not None:
            load_into(self.policy, init)
        self.optimizer, self.optimizer_fake = (
            torch.optim.AdamW(
                p.values(), lr=settings.optimizer.lr, weight_decay=settings.optimizer.weight_decay
            )
            for p in (self.policy, self.fake)
        )
        self.device = next(model.parameters()).device
        self.world = current()
        # Positions of this process's samples in every batch, by backward pass.
        share = self.world.share(settings.batch)
        size = settings.micro_batch or len(share)
        self.parts = [share[start : start + size] for start in range(0, len(share), size)]
        self.held_out, self.validation = held_out(pairs, settings)
        if settings.gradient_checkpointing:
            for roles in (model.unet_roles, model.vae_roles):
                recompute(roles)
        self.negative = model.embed([config.model.negative_prompt])
        self._order: tuple[int, list[int]] = (-1, [])

    def step(self, step: int) -> dict[str, float]:
        """One step of the generator and one of the fake score; return the values to log."""
        self._schedule(step)
        logged: list[tuple[dict[str, torch.Tensor], float]] = []
        outputs: list[tuple[torch.Tensor, torch.Tensor, list[Key]]] = []
        with self.world.collective():
            self.optimizer.zero_grad(set_to_none=True)
            for part in self.parts:
                keys = self._keys(step, part)
                z, prompt, values = self._losses(step, part, keys)
                self._backward(values["loss"], part)
                logged.append(({n: v.detach() for n, v in values.items()}, self._weight(part)))
                outputs.append((z.detach().float(), prompt, keys))
                del z, values  # the graph, which may be large
        norm = self._update(self.policy, self.optimizer)
        with self.world.collective():
            # On the z_SR of before the policy's update, as released; that of after it would need
            # another forward pass.
            self.optimizer_fake.zero_grad(set_to_none=True)
            for part, (z, prompt, keys) in zip(self.parts, outputs, strict=True):
                loss = self._fake_loss(z, prompt, keys)
                self._backward(loss, part)
                logged.append(({"fake_loss": loss.detach()}, self._weight(part)))
        fake_norm = self._update(self.fake, self.optimizer_fake)
        return {**self.world.add(_totals(logged)), "grad_norm": norm, "fake_grad_norm": fake_norm}

    def validation_loss(self) -> float:
        """The pixel and perceptual loss on the held-out pairs, weighted as in training.

        The noise is the same at every call. VSD is left out: it has no minimum to compare by.
        """
        settings = self.config.pretrain
        share = self.world.share(len(self.validation))
        size, total = settings.micro_batch or settings.batch, 0.0
        with self.world.collective(), torch.no_grad():
            for start in range(0, len(share), size):
                part = share[start : start + size]
                pairs = [self.pairs[self.validation[i]] for i in part]
                hr, lr, prompts = self._images(pairs, [False] * len(pairs))
                keys: list[Key] = [(self.config.seed, "validation", i) for i in part]
                with autocast(settings.precision, self.device.type):
                    _, image = self._generate(lr, self.model.embed(prompts), keys)
                loss = settings.lambda_pixel * pixel_loss(image.float(), hr, settings.pixel)
                loss += settings.lambda_perceptual * perceptual_loss(
                    image.float(), hr, settings.perceptual
                )
                total += loss.item() * len(part) / len(self.validation)
        return self.world.add({"loss": total})["loss"]

    def _keys(self, step: int, part: Sequence[int]) -> list[Key]:
        return [(self.config.seed, "pretrain", step, i) for i in part]

    def _weight(self, part: Sequence[int]) -> float:
        """Weight of the mean over a part in the mean over the whole batch."""
        return len(part) / self.config.pretrain.batch

    def _losses(
        self, step: int, part: Sequence[int], keys: list[Key]
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """(z_SR, prompt, losses): the generator's losses by name, averaged over the part."""
        settings = self.config.pretrain
        hr, lr, prompts = self._batch(step, part)
        prompt = self.model.embed(prompts)
        with autocast(settings.precision, self.device.type):
            z, image = self._generate(lr, prompt, keys)
            distillation = self._distill(z, prompt, keys)
        values = {
            "pixel": pixel_loss(image.float(), hr, settings.pixel),
            "perceptual": perceptual_loss(image.float(), hr, settings.perceptual),
            "vsd": distillation,
        }
        weights = (settings.lambda_pixel, settings.lambda_perceptual, settings.lambda_vsd)
        values["loss"] = sum(
            (w * v for w, v in zip(weights, values.values(), strict=True)), start=torch.zeros(())
        )
        return z, prompt, values

    def _schedule(self, step: int) -> None:
        settings = self.config.pretrain
        warmup = settings.warmup
        factor = (
            cosine(step, settings.steps, warmup=warmup)
            if settings.optimizer.schedule == "cosine"
            else min(1.0, (step + 1) / max(warmup, 1))
        )
        for optimizer in (self.optimizer, self.optimizer_fake):
            for group in optimizer.param_groups:
                group["lr"] = settings.optimizer.lr * factor

    def _backward(self, loss: torch.Tensor, part: Sequence[int]) -> None:
        (loss * self._weight(part)).backward()

    def _update(
        self, parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> float:
        self.world.add_gradients(parameters.values())
        norm = grad_norm(list(parameters.values()), self.config.pretrain.optimizer.clip)
        optimizer.step()
        return norm

    def _batch(
        self, step: int, part: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
        """The `_images` of these positions of a batch, randomly flipped."""
        # Each sample has its own generator, whatever the batch's share.
        flips = [
            bool(numpy_generator(self.config.seed, "flip", step, i).random() < 0.5) for i in part
        ]
        first = step * self.config.pretrain.batch
        return self._images([self.pairs[self._index(first + i)] for i in part], flips)

    def _images(
        self, pairs: Sequence[Pair], flips: Sequence[bool]
    ) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
        """(hr_BCHW, enlarged lr_BCHW, prompts): images in [-1, 1], flipped where asked.

        The tags in the prompts come from the HR patch.
        """
        hr: list[torch.Tensor] = []
        lr: list[torch.Tensor] = []
        for pair, flip in zip(pairs, flips, strict=True):
            up = enlarge(pair.lr, pair.hr.shape[:2], pair.degradation["enlarge"])
            for images, image in ((hr, pair.hr), (lr, up)):
                images.append(to_tensor(image[:, ::-1].copy() if flip else image))
        return (
            torch.stack(hr).to(self.device) * 2 - 1,
            torch.stack(lr).to(self.device) * 2 - 1,
            [compose(pair.tags, self.config.model.training_prompt) for pair in pairs],
        )

    def _index(self, position: int) -> int:
        """Index of the pair at a position of the training order, which is shuffled per epoch."""
        epoch, offset = divmod(position, len(self.pairs) - len(self.held_out))
        if self._order[0] != epoch:
            order = self.pairs.order(self.config.seed, epoch)
            self._order = (epoch, [index for index in order if index not in self.held_out])
        return self._order[1][offset]

    def _generate(
        self, lr: torch.Tensor, prompt: torch.Tensor, keys: list[Key]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        noise, posterior_noise = draw_noise(keys, self.model.latent_shape(*lr.shape[-2:]))
        with self.model.unet_roles.use("policy"), self.model.vae_roles.use("policy"):
            z = steps.encode(self.model, lr, posterior_noise.to(self.device))
            z_noisy = steps.inject(self.model, z, noise.to(self.device), self._t_add(keys))
            z = steps.denoise(self.model, z_noisy, prompt)
        return z, steps.decode(self.model, z)

    def _t_add(self, keys: list[Key]) -> torch.Tensor | None:
        """The timestep of each sample's added noise; None: the model's t_add."""
        if self.config.pretrain.t_add_range is None:
            return None
        low, high = self.config.pretrain.t_add_range
        generators = [torch_generator(*key, "t_add") for key in keys]
        return torch.stack([torch.randint(low, high, (), generator=g) for g in generators])

    def _noisy(
        self, z: torch.Tensor, keys: list[Key], name: str, low: int, high: int
    ) -> tuple[torch.Tensor, ...]:
        """(z_t, noise, t), t uniform in [low, high); each sample has its own generator."""
        generators = [torch_generator(*key, name) for key in keys]
        t = torch.stack([torch.randint(low, high, (), generator=g) for g in generators])
        noise = torch.stack([torch.randn(z.shape[1:], generator=g) for g in generators]).to(z)
        return add_noise(z, noise, t), noise, t.to(z.device)

    def _distill(self, z: torch.Tensor, prompt: torch.Tensor, keys: list[Key]) -> torch.Tensor:
        settings = self.config.pretrain
        # z_t is built from detached z: the scores only evaluate it; `vsd_loss` differentiates z.
        z_t, noise, t = self._noisy(z.detach().float(), keys, "vsd", *settings.vsd_t_range)
        with torch.no_grad():
            with self.model.unet_roles.use("fake"):
                eps_fake = self.model.predict_noise(z_t, prompt, t)
            # One forward pass of the real score for both prompts.
            both = torch.cat([self.negative.expand_as(prompt), prompt])
            with self.model.unet_roles.use(None):
                negative, positive = self.model.predict_noise(
                    z_t.repeat(2, 1, 1, 1), both, t.repeat(2)
                ).chunk(2)
        guided = guided_noise(positive.float(), negative.float(), settings.guidance)
        return vsd_loss(z.float(), noise, t, eps_fake.float(), guided)

    def _fake_loss(self, z: torch.Tensor, prompt: torch.Tensor, keys: list[Key]) -> torch.Tensor:
        # All timesteps, other than VSD's: the fake score is used at [20, 500) but trained as any
        # diffusion model (released code).
        z_t, noise, t = self._noisy(z, keys, "fake", 0, NUM_TRAIN_TIMESTEPS)
        with (
            autocast(self.config.pretrain.precision, self.device.type),
            self.model.unet_roles.use("fake"),
        ):
            eps_fake = self.model.predict_noise(z_t, prompt, t)
        return fake_score_loss(eps_fake.float(), noise)


def _totals(logged: list[tuple[dict[str, torch.Tensor], float]]) -> dict[str, float]:
    """The weighted sums of named values.

    They are read here, at the end of the step: reading each loss where it is computed would wait
    for the device.
    """
    totals: dict[str, float] = {}
    for values, weight in logged:
        for name, value in values.items():
            totals[name] = totals.get(name, 0.0) + value.item() * weight
    return totals
