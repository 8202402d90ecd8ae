"""The base model, where it is fetched from, and stage `pretrain`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from gdpo.config.fields import (
    BaseSource,
    Count,
    Hash,
    Positive,
    Precision,
    Section,
    Timestep,
    Timesteps,
    WeightSource,
)


class Model(Section):
    """The base model and the one-step forward pass (paper Eqs. 3-4)."""

    base: str = Field(description="folder of the base model in diffusers layout")
    t_add: Timestep | None = Field(
        250, description="timestep at which noise is added to z_LR; null: none is (OSEDiff)"
    )
    t_diff: Timestep = Field(
        100, description="timestep given to the UNet, at which x0 is predicted"
    )
    prompt: str = Field(
        "clean, high-resolution, 8k,", description="appended to the tags at inference"
    )
    training_prompt: str = Field(
        "", description="appended to the tags in training, in pretraining and in rollouts"
    )
    negative_prompt: str = Field(description="the unconditional side of guidance in VSD")
    tagger: str | None = Field(
        None,
        description="folder of the tagger (`gdpo-sr import-weights`); null: prompts without tags",
    )


class Fetch(Section):
    """Tool `fetch`: the sources of the base model and of the metrics' weights.

    No stage reads this section: another source of the same bytes changes no result.
    """

    base: list[BaseSource] = Field(
        [], description="tried in order: a folder, s3://bucket/prefix, hf://owner/name@commit"
    )
    weights: list[WeightSource] = Field(
        [],
        description="sources of the metrics' weights: a folder, s3://bucket/prefix, "
        "hf://owner/name@revision, https://host/path",
    )
    hashes: dict[str, Hash] = Field(
        {}, description="SHA-256 of files of the base model that must be these and no others"
    )


class Lora(Section):
    """LoRA on the base (released: rank 4, alpha 8, hence scaling 2)."""

    rank: Count = 4
    alpha: Count = 8


class Optimizer(Section):
    """AdamW with betas 0.9, 0.999 and epsilon 1e-8 (released code)."""

    lr: Positive = 5e-5
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="cosine: one half cycle down to 0"
    )
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    clip: Positive = Field(1.0, description="gradient-norm clip")


class SharedSteps(Section):
    """A training whose steps the processes of one host, or of several, can share."""

    batch: Count
    gpus: Count = Field(
        1, description="processes of torchrun on a host, a GPU each, that share every batch"
    )
    nodes: Count = Field(
        1,
        description="hosts with `gpus` processes each, on one working folder; MASTER_ADDR names "
        "the first",
    )


class Pretrain(SharedSteps):
    """Stage `pretrain`: NAOSD, that is LoRA on UNet and VAE encoder.

    Loss: pixel + perceptual + VSD (paper Eq. 5).
    """

    init: str | None = Field(
        None,
        description="model folder whose adapters start the run; the folder of model.base, or null: "
        "fresh adapters (in params.yaml the folder: DVC depends on it)",
    )
    lora: Lora = Lora()
    steps: Annotated[int, Field(ge=0)] = Field(
        35000, description="0: the adapters of init as they are"
    )
    batch: Count = 16
    micro_batch: Count | None = Field(
        None,
        description="samples per backward pass on each GPU; null: its whole share of the batch",
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass: less memory, more time"
    )
    optimizer: Optimizer = Optimizer()
    warmup: Annotated[int, Field(ge=0)] = Field(0, description="steps of linear warm-up")
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="decay of a moving average of the weights, which then is the result; null: "
        "the last weights are",
    )
    validate_every: Count | None = Field(
        None,
        description="steps between validations on held-out photographs of degrade.train; the "
        "result is the best; null: no validation",
    )
    validate_pairs: Count = Field(64, description="pairs of a validation, of whole photographs")
    keep_every: Count | None = Field(
        None, description="steps between model folders below work/pretrain/; null: none is kept"
    )
    pixel: Literal["mse", "l1"] = Field(
        "mse", description="the paper prints L1, the release computes MSE"
    )
    lambda_pixel: Annotated[float, Field(ge=0)] = 1.0
    perceptual: Literal["lpips-vgg", "structure"] = Field(
        "lpips-vgg",
        description="`structure` (1 - SSIM over scales, and gradients) needs no downloaded weights",
    )
    lambda_perceptual: Annotated[float, Field(ge=0)] = 2.0
    lambda_vsd: Annotated[float, Field(ge=0)] = 1.0
    guidance: Positive = Field(7.5, description="classifier-free guidance of the real score")
    vsd_t_range: Timesteps = Field(
        [20, 500], description="timesteps of the VSD loss, upper end excluded"
    )
    t_add_range: Timesteps | None = Field(
        None,
        description="timesteps [low, high) of the added noise, drawn per sample, so that t_add can "
        "be chosen at inference; null: always model.t_add (released)",
    )
    precision: Precision = "bf16"
    checkpoint_every: Count = 500

    @model_validator(mode="after")
    def _check_validate_every(self) -> "Pretrain":
        if self.validate_every is not None and self.validate_every > self.steps:
            raise ValueError(
                f"validate_every is {self.validate_every}, more than steps, {self.steps}; lower it"
            )
        return self
