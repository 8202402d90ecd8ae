"""Rollouts, their reward and preference optimisation: stages `rollout` and `finetune`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from gdpo.config.fields import (
    ColorFix,
    Count,
    Noises,
    Parts,
    Positive,
    PositiveRange,
    Precision,
    Section,
    Timesteps,
)
from gdpo.config.model import Lora, Optimizer, SharedSteps


class Reward(Section):
    """The attribute-aware reward of a candidate (paper Eq. 7), from metrics in the rollouts."""

    fidelity: list[str] = Field(["psnr_y"], description="full-reference metrics")
    perception: list[str] = Field(["musiq", "maniqa_koniq"], description="no-reference metrics")
    weighting: Literal["adaptive", "equal"] = Field(
        "adaptive",
        description="adaptive: by the shares of smooth and detailed pixels; equal: half and half "
        "(ARF w/o AW, Table 6)",
    )

    @model_validator(mode="after")
    def _check_metrics(self) -> "Reward":
        if not self.fidelity and not self.perception:
            raise ValueError("fidelity and perception are both empty; name at least one metric")
        return self


class Rollout(Section):
    """Stage `rollout`: G candidates per LR image from the frozen reference, and their metrics."""

    parts: Parts = Field(
        ["00"], description="one run of `rollout` each; their number changes no group"
    )
    group: Annotated[int, Field(ge=2)] = Field(6, description="G, candidates per LR image")
    metrics: Annotated[list[str], Field(min_length=1)] = Field(
        ["psnr_y", "musiq", "maniqa_koniq"],
        description="what is stored of every candidate; the reward's must be among them",
    )
    candidates: Literal["noise", "guidance", "t_add", "action"] = Field(
        "noise",
        description="what differs within a group (Table 11); action: also a Gaussian around z_SR, "
        "for dance_grpo",
    )
    guidance_range: PositiveRange = Field(
        [1.0, 2.0], description="candidates guidance: its scale, in equal steps over the group"
    )
    t_add_range: Timesteps = Field(
        [150, 350], description="candidates t_add: the timestep, in equal steps over the group"
    )
    sigma: Positive = Field(
        0.05, description="candidates action: standard deviation of the action around z_SR"
    )
    color_fix: ColorFix = Field("none", description="colour correction before scoring")
    noises: Count = Field(
        1, description="noise draws per candidate whose reference error is stored"
    )
    input: Literal["reencoded", "lr"] = Field(
        "reencoded",
        description="where errors are compared: at each noised re-encoded candidate (release), or "
        "for the whole group at the noised LR latent (ours)",
    )
    noise: Literal["own", "shared"] = Field(
        "own", description="shared: one noise for all members of a group"
    )
    target: Literal["added", "consistent"] = Field(
        "added",
        description="what eps_hat is compared with: the added noise (release), or the one that "
        "returns x0 at t_diff",
    )
    batch: Count = Field(8, description="candidates per forward pass")
    precision: Precision = Field(
        "bf16", description="of the candidates, and of the noise errors of reference and policy"
    )

    @model_validator(mode="after")
    def _check_input(self) -> "Rollout":
        if self.input == "lr" and self.candidates == "action":
            raise ValueError(
                "input lr does not go with candidates action, which are compared where each was "
                "sampled; set rollout.input: reencoded"
            )
        if self.input == "lr" and (self.noise, self.target) != ("shared", "consistent"):
            raise ValueError(
                "input lr has one noise for a group, and targets that return the candidates; set "
                "rollout.noise: shared and rollout.target: consistent"
            )
        return self


class Validation(Section):
    """Validation of the policy on photographs of neither training nor evaluation.

    It is logged and changes no weight.
    """

    photographs: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="a folder, of each photograph the tile in the middle; null: no validation",
    )
    every: Count = Field(15, description="steps between two validations")
    crop: Count = Field(128, description="side of the HR tile in pixels, a multiple of 32")
    noises: Noises = Field(2, description="super-resolutions of each tile")


class Finetune(SharedSteps):
    """Stage `finetune`: preference optimisation of the policy on the rollouts.

    Objectives: GDPO (paper Eqs. 7-9) and the methods it is compared with.
    """

    objective: Literal["gdpo", "dpo", "dance_grpo", "dgpo", "nft", "awm"] = Field(
        "gdpo",
        description="the loss (gdpo/preference/objectives.py); dance_grpo needs "
        "rollout.candidates: action",
    )
    rollouts: Literal["cached", "online"] = Field(
        "cached", description="online: candidates are made and scored in the loop"
    )
    sampler: Literal["reference", "policy"] = Field(
        "reference",
        description="who makes the candidates online; the release samples from the reference",
    )
    lora: Lora = Lora()
    steps: Count = 1500
    batch: Count = Field(8, description="groups per optimiser step")
    micro_batch: Count | None = Field(
        None,
        description="candidates per backward pass; null: the whole group; fewer: less memory, one "
        "more forward pass",
    )
    optimizer: Optimizer = Optimizer()
    omega: Positive | None = Field(
        5000.0,
        description="gdpo, dpo: the loss multiplies by omega / 2, on the mean squared error; null, "
        "here and below: by reach",
    )
    pairs: Count = Field(
        1,
        description="dpo: k best against k worst of the group (DP2O-SR: more than 1)",
    )
    clip: Positive | None = Field(
        1e-4, description="dance_grpo, dgpo, awm: how far the ratio may leave 1 before it is cut"
    )
    beta: Positive | None = Field(100.0, description="dgpo: strength, divided by G")
    mix: Positive | None = Field(
        1.0, description="nft: share of the policy in the implicit positive policy"
    )
    reach: Positive = Field(
        0.4,
        description="distance from the reference, in its own errors, where the objective gives "
        "way: sets the strengths that are null (gdpo/preference/strength.py)",
    )
    validation: Validation = Validation()
    repeat: Annotated[int, Field(ge=0)] = Field(
        0,
        description="another number: other initial adapters, order and shuffling, on the same "
        "rollouts",
    )
    checkpoint_every: Count = 10

    @model_validator(mode="after")
    def _check_sampler(self) -> "Finetune":
        if self.sampler == "policy" and self.rollouts == "cached":
            raise ValueError(
                "sampler policy makes candidates while it trains; set rollouts: online"
            )
        return self
