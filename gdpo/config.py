"""The pipeline's configuration: one frozen, strict model per section of `params.yaml`.

An unknown key, a wrong type or a value out of range raises one error that names the key. A profile
(profiles/*.yaml) overrides values of params.yaml; no code depends on which profile is active.
docs/fidelity.md gives the source of each value.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gdpo.fields import (
    AroundOne,
    BaseSource,
    ColorFix,
    Count,
    Hash,
    Name,
    Noises,
    OddSizes,
    Part,
    Parts,
    Positive,
    PositiveRange,
    Precision,
    Probabilities3,
    Probabilities6,
    Quality,
    Share,
    Timestep,
    Timesteps,
)


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, no silent type conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


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
    """Tool `fetch`: the sources of the base model.

    No stage reads this section: another source of the same bytes changes no result.
    """

    base: list[BaseSource] = Field(
        [], description="tried in order: a folder, s3://bucket/prefix, hf://owner/name@commit"
    )
    hashes: dict[str, Hash] = Field(
        {}, description="SHA-256 of files of the base model that must be these and no others"
    )


class DegradationOrder(Section):
    """The first order of the degradation (Real-ESRGAN).

    Defaults: the values shipped with the GDPO release.
    """

    blur_prob: Share = 1.0
    sinc_prob: Share = 0.1
    blur_sigma: PositiveRange = [0.2, 3.0]
    resize_prob: Probabilities3 = Field(
        [0.2, 0.7, 0.1], description="probabilities of up, down, keep"
    )
    resize_range: AroundOne = [0.3, 1.5]
    gaussian_noise_prob: Share = Field(0.5, description="otherwise Poisson noise")
    noise_range: PositiveRange = Field([1.0, 15.0], description="sigma of Gaussian noise, in 1/255")
    poisson_scale_range: PositiveRange = [0.05, 2.0]
    gray_noise_prob: Share = 0.4
    jpeg_range: Quality = Field(
        [60.0, 95.0], description="JPEG quality, rounded to a whole number when drawn"
    )


class SecondOrder(DegradationOrder):
    """The second order of the degradation.

    It has its own defaults, so that setting one key leaves the others as released.
    """

    blur_prob: Share = 0.5
    blur_sigma: PositiveRange = [0.2, 1.5]
    resize_prob: Probabilities3 = [0.3, 0.4, 0.3]
    resize_range: AroundOne = [0.6, 1.2]
    noise_range: PositiveRange = [1.0, 12.0]
    poisson_scale_range: PositiveRange = [0.05, 1.0]
    jpeg_range: Quality = Field([60.0, 100.0], description="quality of the last JPEG")


class Degradation(Section):
    """Second-order degradation.

    Defaults: the values shipped with the GDPO release, milder than Real-ESRGAN's.
    """

    scale: Count = 4
    kernel_sizes: OddSizes = [7, 9, 11, 13, 15, 17, 19, 21]
    kernel_prob: Probabilities6 = Field(
        [0.45, 0.25, 0.12, 0.03, 0.12, 0.03],
        description="iso, aniso, generalized iso/aniso, plateau iso/aniso",
    )
    betag_range: AroundOne = [0.5, 4.0]
    betap_range: AroundOne = [1.0, 2.0]
    final_sinc_prob: Share = 0.8
    second_prob: Share = 1.0
    first: DegradationOrder = DegradationOrder()
    second: SecondOrder = SecondOrder()


class Photographs(Section):
    """One source of photographs."""

    path: str = Field(
        min_length=1,
        description="a folder tree, s3://bucket/prefix, or scikit-image: those it ships with",
    )
    first: Count | None = Field(
        None, description="use only the first N, in the order of their names"
    )
    resize: Count | None = Field(
        None, description="resize to this shorter side in pixels, by antialiased bicubic"
    )


Sources = Annotated[list[Photographs], Field(min_length=1)]


class Degrade(Section):
    """Stages `index` and `degrade`: photographs -> LR-HR pairs in Parquet shards."""

    train: Sources = Field(
        description="where the photographs come from; names of all but the first start with the "
        "folder's"
    )
    evaluation: Sources = Field(description="the same for held-out photographs")
    parts: Parts = Field(
        ["00"], description="one run of `degrade` each; their number changes no pair"
    )
    crop: Count = Field(512, description="side of a training HR patch in pixels, a multiple of 32")
    stride: Count = Field(64, description="step of the sliding window")
    evaluation_crop: Count = Field(
        512, description="side of an evaluation HR image; photographs are cut into tiles"
    )
    max_failures: Share = Field(
        0.02, description="share of unreadable or unusable photographs that stops the stage"
    )
    shard_mb: Positive = Field(192.0, description="upper size of one shard in MB")
    version: Annotated[int, Field(ge=0)] = Field(
        0, description="of the data set: another number, all degradations anew"
    )
    epoch: Annotated[int, Field(ge=0)] = Field(
        0, description="pass over the patches; in each they are degraded anew"
    )
    tags: Literal["none", "hr", "lr"] = Field(
        "none",
        description="training pairs are tagged by the HR patch (RAM, as released) or the enlarged "
        "LR one (with DAPE)",
    )
    degradation: Degradation = Degradation()


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


class Pretrain(Section):
    """Stage `pretrain`: NAOSD, that is LoRA on UNet and VAE encoder.

    Loss: pixel + perceptual + VSD (paper Eq. 5).
    """

    init: str | None = Field(
        None, description="model folder whose adapters start the run; None: fresh LoRA"
    )
    lora: Lora = Lora()
    steps: Count = 35000
    batch: Count = 16
    gpus: Count = Field(
        1, description="processes of torchrun on this host, a GPU each, that share every batch"
    )
    optimizer: Optimizer = Optimizer()
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
    precision: Precision = "bf16"
    checkpoint_every: Count = 500


class Select(Section):
    """Stage `select`: chooses the training patches for the rollouts.

    Every patch gets a score and a reason.
    """

    rule: Literal["quality", "difficulty"] = Field(
        "quality",
        description="quality: the best HR patches first; difficulty: the worst results of NAOSD "
        "first",
    )
    count: Count | None = Field(
        120000, description="patches to select at most; null: as many as pass the rule"
    )
    score: Literal["musiq", "niqe"] = Field(
        "musiq", description="rule quality: no-reference score of the HR patch"
    )
    best: Part = Field(
        1.0, description="rule quality: only the best share of all scores may be selected"
    )
    difficulty: str = Field(
        "psnr_y",
        description="rule difficulty: metric of NAOSD's output, against the HR patch if it needs "
        "a reference",
    )
    worst: Part = Field(
        0.3, description="rule difficulty: only the worst share of all scores may be selected"
    )
    min_detail: Share = Field(0.1, description="least detail share of the HR patch")
    max_per_photo: Count = Field(20, description="quota per photograph")
    min_hash_distance: Annotated[int, Field(ge=0, le=64)] = Field(
        4,
        description="patches whose 64-bit perceptual hashes differ in fewer bits are "
        "near-duplicates",
    )

    @property
    def metric(self) -> str:
        """The name of the score that ranks the patches."""
        return self.score if self.rule == "quality" else self.difficulty


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
    def _has_a_metric(self) -> "Reward":
        if not self.fidelity and not self.perception:
            raise ValueError("fidelity and perception are both empty; name at least one metric")
        return self

    def rho_d(self, detail_share: float) -> float:
        """The weight of the perception metrics; the fidelity metrics have weight 1 - rho_d."""
        return detail_share if self.weighting == "adaptive" else 0.5


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
    grayscale: Literal["bt601", "released"] = Field(
        "released", description="luma weights of the complexity map"
    )
    noises: Count = Field(
        1, description="noise draws per candidate whose reference error is stored"
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


class Finetune(Section):
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
    gpus: Count = Field(
        1, description="processes of torchrun on this host, a GPU each, that share every batch"
    )
    optimizer: Optimizer = Optimizer()
    omega: Positive = Field(
        5000.0, description="gdpo, dpo: the loss multiplies by omega / 2, on the mean squared error"
    )
    pairs: Count = Field(
        1,
        description="dpo: k best against k worst of the group (DP2O-SR: more than 1)",
    )
    clip: Positive = Field(
        1e-4, description="dance_grpo, dgpo, awm: how far the ratio may leave 1 before it is cut"
    )
    beta: Positive = Field(100.0, description="dgpo: strength, divided by G")
    mix: Positive = Field(
        1.0, description="nft: share of the policy in the implicit positive policy"
    )
    repeat: Annotated[int, Field(ge=0)] = Field(
        0,
        description="another number: other initial adapters, order and shuffling, on the same "
        "rollouts",
    )
    checkpoint_every: Count = 10

    @model_validator(mode="after")
    def _fits_together(self) -> "Finetune":
        if self.sampler == "policy" and self.rollouts == "cached":
            raise ValueError(
                "sampler policy makes candidates while it trains; set rollouts: online"
            )
        return self


class Pairs(Section):
    """A benchmark of ready-made LR-HR pairs: two folders, paired by file name."""

    lr: str = Field(
        description="folder of LR images; each is enlarged bicubically to the size of its HR image"
    )
    hr: str = Field(description="folder of HR images")
    noises: Noises | None = Field(
        None, description="noise seeds per image on this benchmark; null: evaluate.noises"
    )
    peers: dict[Name, str] = Field(
        {}, description="method -> folder of its outputs, named like the HR images"
    )


class Evaluate(Section):
    """Stage `evaluate`: bicubic and every model on each benchmark, with the same noises."""

    benchmarks: Annotated[list[Name], Field(min_length=1)] = Field(
        ["sample"],
        description="sample: the held-out shards; others by their name in evaluate.pairs; the "
        "first is the main one",
    )
    pairs: dict[Name, Pairs] = Field({}, description="benchmark -> its folders")
    models: Annotated[dict[Name, str], Field(min_length=1)] = Field(
        {"naosd": "models/naosd", "gdpo": "models/gdpo", "control": "models/control"},
        description="name -> model folder; the first is the reference: it gives the reward its "
        "zero and its unit",
    )
    noises: Noises = Field(8, description="noise seeds per image, the same for every model")
    metrics: list[str] = ["psnr_y", "ssim_y", "musiq", "maniqa_koniq"]
    color_fix: ColorFix = "adain"
    batch: Count = 4
    precision: Precision = "bf16"

    @model_validator(mode="after")
    def _names_fit(self) -> "Evaluate":
        unknown = [name for name in self.benchmarks if name != "sample" and name not in self.pairs]
        if unknown:
            raise ValueError(
                f"benchmark {unknown[0]} has no folders; give evaluate.pairs.{unknown[0]}: "
                f"{{lr: ..., hr: ...}}"
            )
        if len(set(self.benchmarks)) < len(self.benchmarks) or "sample" in self.pairs:
            raise ValueError("a benchmark is named twice (sample is the held-out shards)")
        reserved = {"bicubic", "lr", "hr", "candidates"}
        peers = [name for pairs in self.pairs.values() for name in pairs.peers]
        taken = [name for name in self.models if name in reserved]
        taken += [name for name in peers if name in {*reserved, *self.models}]
        if taken:
            raise ValueError(f"{taken[0]} is taken; give the model or peer another name")
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


class Config(Section):
    """All of params.yaml."""

    seed: Annotated[int, Field(ge=0)] = 0
    allow_cpu: bool = Field(False, description="let the stages that need a GPU run without one")
    track: Literal["none", "tensorboard", "wandb"] = Field(
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
    ablate: Ablate = Ablate()

    @model_validator(mode="after")
    def _tags_have_a_tagger(self) -> "Config":
        if self.degrade.tags != "none" and self.model.tagger is None:
            raise ValueError(
                f"degrade.tags is {self.degrade.tags}, which needs the folder of a tagger in "
                "model.tagger"
            )
        return self

    @model_validator(mode="after")
    def _every_gpu_has_work(self) -> "Config":
        for name, stage in (("pretrain", self.pretrain), ("finetune", self.finetune)):
            if stage.gpus > stage.batch:
                raise ValueError(
                    f"{name}.gpus is {stage.gpus}, but {name}.batch has work for {stage.batch} "
                    "only; lower one"
                )
        return self

    @model_validator(mode="after")
    def _preferences_fit(self) -> "Config":
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
    def _sizes_fit(self) -> "Config":
        for key in ("crop", "evaluation_crop"):
            side = getattr(self.degrade, key)
            if side % (8 * self.degrade.degradation.scale):
                raise ValueError(
                    f"degrade.{key} must be a multiple of {8 * self.degrade.degradation.scale}, "
                    f"got {side}"
                )
        return self
