"""Seeded super-resolution: the noise belongs to the sample, not to the batch; any size goes in and
comes out.
"""

from typing import Any

import pytest
import torch

from gdpo.model.naosd import NAOSD
from gdpo.model.sampling import draw_noise, pad_to_multiple, super_resolve
from gdpo.seeds import Key, torch_generator
from tests import tiny

KEYS: list[Key] = [(0, "image", i) for i in range(3)]


@pytest.fixture(scope="module")
def model() -> NAOSD:
    return tiny.model()


def run(model: NAOSD, lr: torch.Tensor, keys: list[Key], **options: Any) -> torch.Tensor:
    return super_resolve(model, lr, keys, **{"color_fix": "none", "precision": "fp32", **options})


def picture(batch: int = 3, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch_generator("lr"))


def test_noise_is_that_of_its_key() -> None:
    noise, posterior = draw_noise(KEYS, (4, 2, 2))
    assert noise.shape == posterior.shape == (3, 4, 2, 2)
    assert not torch.equal(noise, posterior)
    for i, key in enumerate(KEYS):
        alone = draw_noise([key], (4, 2, 2))
        assert torch.equal(noise[i], alone[0][0]) and torch.equal(posterior[i], alone[1][0])


def test_a_result_does_not_depend_on_its_batch(model: NAOSD) -> None:
    lr = picture()
    whole = run(model, lr, KEYS)
    alone = torch.cat([run(model, lr[i : i + 1], KEYS[i : i + 1]) for i in range(3)])
    assert torch.allclose(whole, alone, atol=1e-5)
    assert whole.dtype == torch.float32 and whole.min() >= 0 and whole.max() <= 1


def test_the_key_is_the_seed(model: NAOSD) -> None:
    lr = picture(1).expand(2, -1, -1, -1)
    same, other = run(model, lr, [KEYS[0]] * 2), run(model, lr, KEYS[:2])
    assert torch.equal(same[0], run(model, lr, [KEYS[0]] * 2)[0])
    assert torch.allclose(same[0], same[1], atol=1e-6)
    assert (other[0] - other[1]).abs().mean() > 1e-2


@pytest.mark.parametrize(("height", "width"), [(33, 47), (32, 41), (39, 32), (3, 5)])
def test_odd_sizes_come_back_exactly(model: NAOSD, height: int, width: int) -> None:
    lr = picture(1, height, width)
    out = run(model, lr, KEYS[:1])
    assert out.shape == lr.shape
    bottom, right = -height % 8, -width % 8
    mode = "reflect" if height > 8 else "replicate"
    padded = torch.nn.functional.pad(lr, (0, right, 0, bottom), mode=mode)
    assert torch.equal(out, run(model, padded, KEYS[:1])[..., :height, :width])


def test_padding_leaves_whole_sizes_alone() -> None:
    lr = picture(1, 32, 48)
    assert pad_to_multiple(lr, 8) is lr


def test_prompts_matter_and_default_to_the_models(model: NAOSD) -> None:
    lr = picture(2)
    default = run(model, lr, KEYS[:2])
    assert torch.allclose(default, run(model, lr, KEYS[:2], prompts=[model.prompt] * 2), atol=1e-6)
    mixed = run(model, lr, KEYS[:2], prompts=[model.prompt, "something else entirely"])
    assert torch.allclose(mixed[0], default[0], atol=1e-6)
    assert not torch.allclose(mixed[1], default[1], atol=1e-4)


def test_colour_correction_takes_the_tones_of_the_input(model: NAOSD) -> None:
    lr = picture(1) * 0.2 + 0.4
    plain, fixed = (run(model, lr, KEYS[:1], color_fix=kind) for kind in ("none", "adain"))
    means = [image.mean(dim=(2, 3)) for image in (plain, fixed, lr)]
    assert (means[1] - means[2]).abs().max() < 1e-2 < (means[0] - means[2]).abs().max()


def test_half_precision_is_near(model: NAOSD) -> None:
    lr = picture(1)
    half = run(model, lr, KEYS[:1], precision="bf16")
    assert half.dtype == torch.float32
    assert 0 < (half - run(model, lr, KEYS[:1])).abs().mean() < 0.02


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"keys": KEYS[:1]}, "keys must have one entry per image, 2, got 1"),
        ({"prompts": ["a"]}, "prompts must have one entry per image, 2, got 1"),
        ({"lr": picture(2) * 255}, r"lr must lie in \[0, 1\]"),
        ({"lr": picture(2)[:, :1]}, "lr must have 3 channels"),
        ({"lr": picture(2) * torch.nan}, "lr has values that are NaN"),
    ],
)
def test_bad_arguments_are_named(model: NAOSD, changes: dict[str, Any], says: str) -> None:
    given = {"lr": picture(2), "keys": KEYS[:2], **changes}
    with pytest.raises(ValueError, match=says):
        run(model, **given)


def test_samples_of_one_image_share_its_latent_and_differ_by_the_injected_noise(
    model: NAOSD,
) -> None:
    """As the release makes a group: the LR image is encoded once, with the posterior noise of the
    first key.
    """
    lr = picture(2)
    keys = [*KEYS[:2], *KEYS[:2]]
    grouped = run(model, lr, keys, per_image=2)
    for image in range(2):
        noise, posterior_noise = draw_noise(KEYS[:2], model.latent_shape(*lr.shape[2:]))
        with torch.no_grad():
            z = model.encode(lr[image : image + 1] * 2 - 1, posterior_noise[:1]).expand(
                2, -1, -1, -1
            )
            wanted = (
                model.decode(model.denoise(model.inject(z, noise), model.embed([model.prompt])))
                * 0.5
                + 0.5
            )
        assert torch.allclose(grouped[2 * image : 2 * image + 2], wanted, atol=1e-5)
        assert not torch.allclose(grouped[2 * image], grouped[2 * image + 1])
    alone = run(model, lr[:1], KEYS[1:2])
    # There each has a posterior sample of its own.
    assert not torch.allclose(grouped[1:2], alone, atol=1e-6)
    with pytest.raises(ValueError, match="keys must have one entry per image, 4, got 2"):
        run(model, lr, KEYS[:2], per_image=2)
