"""RealSR-R1, the second system: its tokens, its model, the cold start and GRPO.

Defaults: the released values, and our choice where the release has none.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from gdpo.config.fields import Count, Noises, Positive, Section
from gdpo.config.model import Lora


def _stages(sides: list[int]) -> list[int]:
    if not 0 < sides[0] < sides[1] < sides[2] or sides[1] % sides[0] or sides[2] % sides[0]:
        raise ValueError(f"must be three growing sides, multiples of the first, got {sides}")
    return sides


Stages = Annotated[list[int], Field(min_length=3, max_length=3), AfterValidator(_stages)]


class Tokenizer(Section):
    """Stage `vlcot-tokenizer`: a codebook on the latent of model.base, and a decoder tuned on it.

    The released system has LlamaGen's tokenizer instead, which is not trained again.
    """

    codes: Count = 512
    # A range of integers: Literal[1, 2] would accept `true` as 1.
    patch: Annotated[int, Field(ge=1, le=2)] = Field(
        2, description="latent positions a side of one code"
    )
    images: Count = Field(400, description="training patches that it is trained on")
    joint_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="of encoder, codebook and decoder together"
    )
    steps: Annotated[int, Field(ge=0)] = Field(200, description="of the decoder's tuning after it")
    batch: Count = 16
    lr: Positive = 5e-4
    adversarial: Annotated[float, Field(ge=0)] = Field(
        0.3, description="norm of the adversarial gradient / that of the reconstruction's"
    )
    checkpoint_every: Count = 50


class Decoding(Section):
    """How a trained model draws its tokens when it is used."""

    temperature: Annotated[float, Field(ge=0)] = Field(0.9, description="0: the likeliest token")
    guidance: Annotated[float, Field(ge=0)] = Field(0.8, description="of codes; 1: none")
    text_top_k: Count | None = Field(1, description="null: all")
    image_top_k: Literal["entropy"] | None = Field("entropy", description="null: all")


class Vlcot(Section):
    """What the stages of RealSR-R1 share."""

    init: str | None = Field(
        None,
        description="model folder to go on from: its tokenizer as it is, its trunk at the cold "
        "start; the folder of model.base, or null: both from new weights (in params.yaml the "
        "folder: DVC depends on it)",
    )
    stages: Stages = Field(
        [128, 256, 512], description="sides of the three images; the last: degrade.crop"
    )
    prompt_side: Count | None = Field(
        None,
        description="of the LR image in the prompt, one of stages; null: the last",
    )
    evidence: bool = Field(
        False,
        description="the trunk sees continuous features of the LR image beside its codes "
        "(gdpo/vlcot/evidence.py)",
    )
    ranges: Literal["released", "real_esrgan"] = Field(
        "real_esrgan",
        description="edges of light, medium and heavy: those of the degradation's ranges "
        "(docs/vlcot.md)",
    )
    width: Count = Field(4096, description="of the trunk")
    layers: Count = 32
    heads: Count = 32
    positions: Count = Field(11776, description="most tokens of a prompt and its completion")
    tokenizer: Tokenizer = Tokenizer()
    decoding: Decoding = Decoding()
    noises: Noises = Field(2, description="samples per image in the stage `vlcot-evaluate`")


class Coldstart(Section):
    """Stage `vlcot-coldstart`: supervised training on chains of thought."""

    steps: Count = 10000
    batch: Count = 16
    micro_batch: Count | None = Field(
        None, description="chains per backward pass; null: the whole batch"
    )
    lr: Positive = 2e-5
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: Annotated[int, Field(ge=0)] = Field(50, description="steps of linear warm-up")
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    clip: Positive = Field(4.0, description="gradient-norm clip")
    z_loss: Annotated[float, Field(ge=0)] = Field(
        1e-5, description="weight of the mean squared log-partition"
    )
    corrupt: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share of an answer's codes that are replaced at random in the input"
    )
    corrupt_from: Annotated[int, Field(ge=0)] = Field(0, description="the first step that does so")
    average: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="decay of the moving average of the weights that becomes the model; 0: the "
        "last weights",
    )
    precision: Literal["fp32", "bf16"] = "bf16"
    checkpoint_every: Count = 100


class Weights(Section):
    """Weight of each reward."""

    format: Annotated[float, Field(ge=0)] = 1.0
    degradation: Annotated[float, Field(ge=0)] = 1.0
    understanding: Annotated[float, Field(ge=0)] = 1.0
    generation: Annotated[float, Field(ge=0)] = 1.0


class Grpo(Section):
    """Stage `vlcot-grpo`: reinforcement learning with four rewards."""

    steps: Count = 170
    batch: Count = Field(6, description="prompts per step")
    group: Annotated[int, Field(ge=2)] = Field(5, description="G, completions per prompt")
    micro_batch: Count | None = Field(
        1, description="completions per backward pass; null: all of the step"
    )
    limit: Count = Field(7000, description="most tokens of a completion")
    temperature: Positive = 0.9
    grammar: Literal["free", "strict"] = Field(
        "free", description="strict: the format reward is constant"
    )
    format: Literal["released", "strict"] = Field("strict", description="form of the format reward")
    tags: Literal["released", "words"] = Field(
        "words", description="form of the understanding reward: substrings, or whole words"
    )
    metrics: Annotated[list[str], Field(min_length=1)] = Field(
        ["topiq_nr", "musiq", "maniqa_pipal", "clipiqa"],
        description="of the generation reward (gdpo/vlcot/rewards.py has their scales)",
    )
    weights: Weights = Weights()
    aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"
    credit: Literal["sequence", "causal"] = "sequence"
    beta: Annotated[float, Field(ge=0)] = Field(0.0, description="weight of the KL term (k3)")
    lr: Positive = 2e-6
    schedule: Literal["constant", "cosine", "linear"] = "linear"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip: Positive = 1.0
    lora: Lora | None = Field(None, description="train adapters alone; null: all weights")
    recompute: bool = Field(
        True, description="activations of a layer again in the backward pass: less memory"
    )
    checkpoint_every: Count = 10
