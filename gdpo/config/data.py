"""Training data: stages `index`, `degrade` and `select`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from gdpo.config.fields import (
    AroundOne,
    Count,
    OddSizes,
    Part,
    Parts,
    Positive,
    PositiveRange,
    Probabilities3,
    Probabilities6,
    Quality,
    Section,
    Share,
)


class DegradationOrder(Section):
    """The first order of the degradation (Real-ESRGAN).

    Defaults: the values shipped with the GDPO release.
    """

    blur_prob: Share = 1.0
    sinc_prob: Share = 0.1
    blur_sigma: PositiveRange = Field(
        [0.2, 3.0], description="standard deviations of blur kernels, in pixels"
    )
    resize_prob: Probabilities3 = Field(
        [0.2, 0.7, 0.1], description="probabilities of up, down, keep"
    )
    resize_range: AroundOne = Field([0.3, 1.5], description="scale factors of the resize")
    gaussian_noise_prob: Share = Field(0.5, description="otherwise Poisson noise")
    noise_range: PositiveRange = Field([1.0, 15.0], description="sigma of Gaussian noise, in 1/255")
    poisson_scale_range: PositiveRange = Field([0.05, 2.0], description="factor on Poisson noise")
    gray_noise_prob: Share = 0.4
    jpeg_range: Quality = Field(
        [60.0, 95.0], description="JPEG quality, rounded to a whole number when drawn"
    )


class SecondOrder(DegradationOrder):
    """The second order of the degradation.

    It has its own defaults, so that setting one key leaves the others as released.
    """

    blur_prob: Share = 0.5
    blur_sigma: PositiveRange = Field(
        [0.2, 1.5], description="standard deviations of blur kernels, in pixels"
    )
    resize_prob: Probabilities3 = Field(
        [0.3, 0.4, 0.3], description="probabilities of up, down, keep"
    )
    resize_range: AroundOne = Field([0.6, 1.2], description="scale factors of the resize")
    noise_range: PositiveRange = Field([1.0, 12.0], description="sigma of Gaussian noise, in 1/255")
    poisson_scale_range: PositiveRange = Field([0.05, 1.0], description="factor on Poisson noise")
    jpeg_range: Quality = Field([60.0, 100.0], description="quality of the last JPEG")


class Degradation(Section):
    """Second-order degradation.

    Defaults: the values shipped with the GDPO release, milder than Real-ESRGAN's.
    """

    scale: Count = 4
    kernel_sizes: OddSizes = Field(
        [7, 9, 11, 13, 15, 17, 19, 21], description="sides of blur and sinc kernels, in pixels"
    )
    kernel_prob: Probabilities6 = Field(
        [0.45, 0.25, 0.12, 0.03, 0.12, 0.03],
        description="iso, aniso, generalized iso/aniso, plateau iso/aniso",
    )
    betag_range: AroundOne = Field([0.5, 4.0], description="beta of generalized Gaussian kernels")
    betap_range: AroundOne = Field([1.0, 2.0], description="beta of plateau kernels")
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
    lr: str | None = Field(
        None,
        description="folder of ready-made LR images, named as in the folder `path` and smaller by "
        "degrade.degradation.scale; null: LR images are made",
    )

    @model_validator(mode="after")
    def _check_lr(self) -> "Photographs":
        if self.lr is not None and (
            self.resize or self.path == "scikit-image" or self.path.startswith("s3://")
        ):
            raise ValueError("lr goes with a folder of HR images in path, and without resize")
        return self


class Degrade(Section):
    """Stages `index` and `degrade`: photographs -> LR-HR pairs in Parquet shards."""

    train: Annotated[list[Photographs], Field(min_length=1)] = Field(
        description="where the photographs come from; names of all but the first start with the "
        "folder's"
    )
    evaluation: list[Photographs] = Field(
        description="the same for held-out photographs; []: there is no benchmark `sample`"
    )
    parts: Parts = Field(
        ["00"], description="one run of `degrade` each; their number changes no pair"
    )
    crop: Count = Field(512, description="side of a training HR patch in pixels, a multiple of 32")
    stride: Count = Field(64, description="step of the sliding window")
    pairs: Count | None = Field(
        None,
        description="training pairs, of all windows those whose ids (hashes) are lowest; null: all",
    )
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

    @model_validator(mode="after")
    def _check_stride(self) -> "Degrade":
        scale = self.degradation.scale
        if self.stride % scale and any(source.lr is not None for source in self.train):
            raise ValueError(
                f"stride is {self.stride}; with LR images (train.lr) it must be a multiple of the "
                f"scale, {scale}"
            )
        return self


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
