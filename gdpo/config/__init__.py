"""The pipeline's configuration: one frozen, strict model per section of `params.yaml`.

An unknown key, a wrong type or a value out of range raises one error that names the key. A profile
(profiles/*.yaml) overrides values of params.yaml; no code depends on which profile is active.
docs/fidelity.md gives the source of each value.

    fields.py       types with a range or format, and the base class of all sections
    data.py         index, degrade, select
    model.py        the base model, LoRA, the optimizer, pretrain
    preference.py   reward, rollout, finetune
    evaluation.py   evaluate, ablate
    vlcot.py        vlcot, coldstart, grpo
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from gdpo.config.data import (
    Degradation,
    DegradationOrder,
    Degrade,
    Photographs,
    SecondOrder,
    Select,
)
from gdpo.config.evaluation import Ablate, BenchmarkFolders, Evaluate
from gdpo.config.fields import Section
from gdpo.config.model import Fetch, Lora, Model, Optimizer, Pretrain, SharedSteps
from gdpo.config.preference import Finetune, Reward, Rollout, Validation
from gdpo.config.vlcot import Coldstart, Grpo, Vlcot

__all__ = [
    "Ablate",
    "BenchmarkFolders",
    "Coldstart",
    "Config",
    "Degradation",
    "DegradationOrder",
    "Degrade",
    "Evaluate",
    "Fetch",
    "Finetune",
    "Grpo",
    "Lora",
    "Model",
    "Optimizer",
    "Photographs",
    "Pretrain",
    "Reward",
    "Rollout",
    "SecondOrder",
    "Section",
    "Select",
    "SharedSteps",
    "Validation",
    "Vlcot",
]


class Config(Section):
    """All of params.yaml."""

    seed: Annotated[int, Field(ge=0)] = 0
    allow_cpu: bool = Field(False, description="let the stages that need a GPU run without one")
    track: Literal["none", "tensorboard", "wandb", "mlflow", "trackio"] = Field(
        "none",
        description="where the values of every training step go, besides "
        "work/<stage>/metrics.jsonl",
    )
    fetch: Fetch = Fetch()
    model: Model
    degrade: Degrade
    pretrain: Pretrain
    select: Select
    reward: Reward
    rollout: Rollout
    finetune: Finetune
    evaluate: Evaluate
    vlcot: Vlcot = Vlcot()
    coldstart: Coldstart = Coldstart()
    grpo: Grpo = Grpo()
    ablate: Ablate = Ablate()

    @model_validator(mode="after")
    def _check_tagger(self) -> "Config":
        if self.degrade.tags != "none" and self.model.tagger is None:
            raise ValueError(
                f"degrade.tags is {self.degrade.tags}, which needs the folder of a tagger in "
                "model.tagger"
            )
        return self

    @model_validator(mode="after")
    def _check_benchmark_sample(self) -> "Config":
        if not self.degrade.evaluation and "sample" in self.evaluate.benchmarks:
            raise ValueError(
                "evaluate.benchmarks has sample, the photographs of degrade.evaluation, which is "
                "empty; name some, or other benchmarks"
            )
        return self

    @model_validator(mode="after")
    def _check_batches(self) -> "Config":
        for name, section in self:
            if not isinstance(section, SharedSteps):
                continue
            if section.gpus * section.nodes > section.batch:
                each = f" on each of {section.nodes} hosts ({name}.nodes)"
                raise ValueError(
                    f"{name}.gpus is {section.gpus}{each if section.nodes > 1 else ''}, but "
                    f"{name}.batch has work for {section.batch} only; lower one"
                )
        return self

    @model_validator(mode="after")
    def _check_pretrain_init(self) -> "Config":
        init = self.pretrain.init
        if self.pretrain.steps == 0 and init in (None, self.model.base):
            raise ValueError(
                "pretrain.steps is 0, which takes the adapters of pretrain.init as they are; name "
                "a model folder there"
            )
        if init is not None and init.rstrip("/") == "models/naosd":
            raise ValueError(
                "pretrain.init is models/naosd, which the stage itself writes; move that folder"
            )
        return self

    @model_validator(mode="after")
    def _check_vlcot_init(self) -> "Config":
        init = self.vlcot.init
        if init is not None and init.startswith("models/vlcot/"):
            raise ValueError(
                f"vlcot.init is {init}, below models/vlcot, which the stages themselves write; "
                "move that folder"
            )
        return self

    @model_validator(mode="after")
    def _check_preferences(self) -> "Config":
        for name in (*self.reward.fidelity, *self.reward.perception):
            if name not in self.rollout.metrics:
                raise ValueError(
                    f"reward uses {name}, which the rollouts do not hold; add it to rollout.metrics"
                )
        if (self.finetune.objective == "dance_grpo") != (self.rollout.candidates == "action"):
            raise ValueError(
                f"finetune.objective {self.finetune.objective} does not go with "
                f"rollout.candidates {self.rollout.candidates}: "
                f"dance_grpo needs action, and only it"
            )
        if 2 * self.finetune.pairs > self.rollout.group:
            raise ValueError(
                f"finetune.pairs is {self.finetune.pairs}, more than half of rollout.group "
                f"{self.rollout.group}"
            )
        return self

    @model_validator(mode="after")
    def _check_sizes(self) -> "Config":
        sides = {
            "degrade.crop": self.degrade.crop,
            "degrade.evaluation_crop": self.degrade.evaluation_crop,
            "finetune.validation.crop": self.finetune.validation.crop,
        }
        multiple = 8 * self.degrade.degradation.scale
        for key, side in sides.items():
            if side % multiple:
                raise ValueError(f"{key} must be a multiple of {multiple}, got {side}")
        return self
