"""Benchmarks and ablations: stage `evaluate` and tool `ablate`."""

from typing import Annotated

from pydantic import Field, model_validator

from gdpo.config.fields import ColorFix, Count, Name, Noises, Positive, Precision, Section

BICUBIC = "bicubic"  # the name of the bicubic enlargement among the models
SAMPLE = "sample"  # the benchmark of the held-out shards


class BenchmarkFolders(Section):
    """A benchmark of ready-made LR-HR pairs: two folders, paired by file name."""

    lr: str = Field(
        description="folder of LR images; each is enlarged bicubically to the size of its HR image"
    )
    hr: str = Field(description="folder of HR images")
    noises: Noises | None = Field(
        None, description="noise seeds per image on this benchmark; null: evaluate.noises"
    )
    baselines: dict[Name, str] = Field(
        {}, description="method -> folder of its outputs, named like the HR images"
    )


class Evaluate(Section):
    """Stage `evaluate`: bicubic and every model on each benchmark, with the same noises."""

    benchmarks: Annotated[list[Name], Field(min_length=1)] = Field(
        [SAMPLE],
        description="sample: the held-out shards; others by their name in evaluate.pairs; the "
        "first is the main one",
    )
    pairs: dict[Name, BenchmarkFolders] = Field({}, description="benchmark -> its folders")
    models: Annotated[dict[Name, str], Field(min_length=1)] = Field(
        {"naosd": "models/naosd", "gdpo": "models/gdpo", "control": "models/control"},
        description="name -> model folder; the first is the reference: it gives the reward its "
        "zero and its unit",
    )
    noises: Noises = Field(8, description="noise seeds per image, the same for every model")
    metrics: list[str] = Field(
        ["psnr_y", "ssim_y", "musiq", "maniqa_koniq"], description="scores of every output"
    )
    color_fix: ColorFix = "adain"
    batch: Count = 4
    precision: Precision = "bf16"

    @model_validator(mode="after")
    def _check_names(self) -> "Evaluate":
        unknown = [name for name in self.benchmarks if name != SAMPLE and name not in self.pairs]
        if unknown:
            raise ValueError(
                f"benchmark {unknown[0]} has no folders; give evaluate.pairs.{unknown[0]}: "
                f"{{lr: ..., hr: ...}}"
            )
        if len(set(self.benchmarks)) < len(self.benchmarks) or SAMPLE in self.pairs:
            raise ValueError("a benchmark is named twice (sample is the held-out shards)")
        reserved = {BICUBIC, "lr", "hr", "candidates"}
        baselines = [name for pairs in self.pairs.values() for name in pairs.baselines]
        taken = [name for name in self.models if name in reserved]
        taken += [name for name in baselines if name in {*reserved, *self.models}]
        if taken:
            raise ValueError(f"{taken[0]} is taken; give the model or baseline another name")
        return self


class Ablate(Section):
    """Tool `ablate`: the training budget of each row of the paper's ablations.

    All other settings come from the other sections.
    """

    groups: Count = Field(
        12000, description="patches every row is trained on, spread evenly over the selection"
    )
    steps: Count = 1500
    batch: Annotated[int, Field(ge=2)] = Field(8, description="groups per optimiser step")
    lr: Positive = 5e-5
    repeats: Annotated[int, Field(ge=3)] = Field(
        3, description="trainings of every row and of its control"
    )
    noises: Noises = Field(4, description="noise seeds per image, the same for every run")
    pretrain_steps: Count = Field(
        35000, description="Fig. 7: steps of NAOSD at each setting, from pretrain.init"
    )
    processes: Count = Field(
        2, description="runs at once, of one thread each; with GPUs one run on each GPU"
    )
