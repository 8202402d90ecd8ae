"""Image tokenizers: the tiny one's codebook and decoder, LlamaGen's names and arithmetic."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from skimage import data
from transformers import JanusVQVAE, JanusVQVAEConfig

from gdpo.train.loop import Loop
from gdpo.vlcot.llamagen import VQ8, load_llamagen
from gdpo.vlcot.tokenizer import TinyTokenizer, patches
from gdpo.vlcot.tokenizer_training import decoder_steps, fit_codebook, joint_steps
from tests import tiny

SMALL: dict[str, Any] = {
    "embed_dim": 4,
    "num_embeddings": 64,
    "base_channels": 32,
    "latent_channels": 32,
    "channel_multiplier": (1, 1, 1, 1),
    "num_res_blocks": 1,
}


def images(count: int, side: int = 32) -> torch.Tensor:
    photo = torch.from_numpy(data.astronaut()).permute(2, 0, 1).float() / 255
    return torch.stack([photo[:, 40 * i : 40 * i + side, 100 : 100 + side] for i in range(count)])


@pytest.fixture(scope="module")
def tokenizer() -> TinyTokenizer:
    vae = tiny.vae().eval()
    with torch.no_grad():
        vectors = patches(vae, images(8) * 2 - 1, 2).flatten(0, 2)
    return TinyTokenizer(vae, fit_codebook(vectors, 24, seed=0))


def test_codes_have_the_shape_of_the_image(tokenizer: TinyTokenizer) -> None:
    assert (tokenizer.factor, tokenizer.codes) == (8, 24)
    codes = tokenizer.encode(images(2)[:, :, :16])
    assert codes.shape == (2, 2, 4) and 0 <= int(codes.min()) <= int(codes.max()) < 24
    image = tokenizer.decode(codes)
    assert image.shape == (2, 3, 16, 32) and 0 <= float(image.min()) <= float(image.max()) <= 1


def test_a_code_is_the_nearest_of_its_patch(tokenizer: TinyTokenizer) -> None:
    image = images(1)
    z = tokenizer.vae.encode(image * 2 - 1).latent_dist.mean[0].detach()
    codes = tokenizer.encode(image)[0]
    for row, column in ((0, 0), (3, 1)):
        patch = z[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        distances = (tokenizer.codebook.reshape(24, *patch.shape) - patch).square().sum((1, 2, 3))
        assert int(codes[row, column]) == int(distances.argmin())
    latent = tokenizer.latents(codes[None])[0]
    assert torch.equal(latent[:, :2, :2].flatten(), tokenizer.codebook[codes[0, 0]])


def test_k_means_finds_clusters_and_orders_them_by_size() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    parts = [
        centre + 0.1 * torch.randn(count, 2, generator=generator)
        for centre, count in zip(centres, (20, 200, 60), strict=True)
    ]
    vectors = torch.cat(parts)
    found = fit_codebook(vectors, 3, seed=3)
    torch.testing.assert_close(found, centres[[1, 2, 0]], atol=0.1, rtol=0)
    assert torch.equal(found, fit_codebook(vectors, 3, seed=3))
    with pytest.raises(ValueError, match="2 codes need as many different patches, got 1"):
        fit_codebook(torch.ones(50, 2), 2, seed=0)


def test_tuning_the_decoder_lowers_the_error_and_changes_no_code(tmp_path: Path) -> None:
    photos = [data.astronaut()[:128, :128]]
    results = []
    for folder in ("a", "b"):
        vae: AutoencoderKL = tiny.vae()
        with torch.no_grad():
            vectors = patches(vae, images(8) * 2 - 1, 2).flatten(0, 2)
        mine = TinyTokenizer(vae, fit_codebook(vectors, 24, seed=0))
        before = mine.encode(images(2)).clone()
        step_fn, state = decoder_steps(
            mine, photos, sizes=(16, 16), batch=2, steps=12, seed=0, lr=3e-3, adversarial=0.1
        )
        history = Loop(tmp_path / folder, 12, state, "x", 100).run(step_fn)
        rebuilt = [row["rebuilt"] for row in history]
        assert np.mean(rebuilt[-4:]) < 0.9 * np.mean(rebuilt[:4])
        assert torch.equal(mine.encode(images(2)), before)
        results.append(mine.decode(before))
    assert torch.equal(*results)


def test_wrong_images_codes_and_codebooks_are_named(tokenizer: TinyTokenizer) -> None:
    with pytest.raises(ValueError, match=r"multiples of 8, got \(12, 32\)"):
        tokenizer.encode(images(1)[:, :, :12])
    with pytest.raises(ValueError, match=r"codes 0\.\.23"):
        tokenizer.decode(torch.full((1, 2, 2), 24))
    with pytest.raises(ValueError, match=r"codebook must be \(K, p\^2 4\), got \(5, 3\)"):
        TinyTokenizer(tokenizer.vae, torch.zeros(5, 3))


def llamagen_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state of a JanusVQVAE under the names of LlamaGen's file."""
    found = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[1] in ("down", "up"):
            parts[1] = "conv_blocks"
            parts[3] = "res" if parts[3] == "block" else parts[3]
        if parts[1] == "mid":
            parts[2] = {"block_1": "0", "attn_1": "1", "block_2": "2"}[parts[2]]
        found[".".join(parts)] = tensor.clone()
    return {**found, "quantize.codebook_used": torch.zeros(65_536)}


@pytest.fixture(scope="module")
def network() -> JanusVQVAE:
    torch.manual_seed(0)
    return JanusVQVAE(JanusVQVAEConfig(**SMALL)).eval()


def test_llamagens_file_is_read_and_computes_its_arithmetic(tmp_path: Path, network: Any) -> None:
    path = tmp_path / "vq_ds8_c2i.pt"
    torch.save({"model": llamagen_names(network.state_dict())}, path)
    found = load_llamagen(path, **SMALL)
    assert (found.factor, found.codes) == (8, 64)
    image = images(1)[:, :, :16]
    codes = found.encode(image)
    with torch.no_grad():
        # LlamaGen: both sides normalised, the nearest by squared distance.
        z = F.normalize(network.quant_conv(network.encoder(image * 2 - 1)), dim=1)
        book = F.normalize(network.quantize.embedding.weight, dim=1)
        distances = (z.permute(0, 2, 3, 1)[..., None, :] - book).square().sum(-1)
        rebuilt = network.decoder(network.post_quant_conv(book[codes].permute(0, 3, 1, 2)))
    assert torch.equal(codes, distances.argmin(-1)) and codes.shape == (1, 2, 4)
    torch.testing.assert_close(found.decode(codes), (rebuilt / 2 + 0.5).clamp(0, 1))


def test_a_file_with_other_tensors_is_named_in_one_line(tmp_path: Path, network: Any) -> None:
    state, path = llamagen_names(network.state_dict()), tmp_path / "vq.pt"
    moved = state.pop("encoder.mid.1.q.weight")
    torch.save({"model": {**state, "encoder.mid.9.q.weight": moved}}, path)
    with pytest.raises(ValueError) as error:
        load_llamagen(path, **SMALL)
    assert "1 missing (encoder.mid.attn_1.q.weight) and 1 surplus (encoder.mid.9.q.weight)" in str(
        error.value
    )
    torch.save({"model": {**state, "encoder.mid.1.q.weight": moved}}, path)
    with pytest.raises(
        ValueError, match=r"vq\.pt: quantize\.embedding\.weight has shape \(64, 4\)"
    ):
        load_llamagen(path, **{**SMALL, "num_embeddings": 32})
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"vq\.pt: not a file of weights"):
        load_llamagen(path, **SMALL)


def test_the_full_size_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        full = JanusVQVAE(JanusVQVAEConfig(**VQ8))
    assert sum(p.numel() for p in full.parameters()) / 1e6 == pytest.approx(70.1, abs=0.1)


def test_training_together_lowers_the_error_and_uses_the_codes(tmp_path: Path) -> None:
    photos = [data.astronaut()[:128, :128]]
    results = []
    for folder in ("a", "b"):
        vae: AutoencoderKL = tiny.vae()
        with torch.no_grad():
            vectors = patches(vae, images(8) * 2 - 1, 1).flatten(0, 2)
        mine = TinyTokenizer(vae, fit_codebook(vectors, 24, seed=0))
        assert mine.factor == 4
        before = mine.codebook.clone()
        step_fn, state = joint_steps(
            mine, photos, sizes=(16, 32, 64), batch=2, steps=16, seed=0, lr=3e-3
        )
        history = Loop(tmp_path / folder, 16, state, "x", 100).run(step_fn)
        losses = [row["loss"] for row in history]
        assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])
        assert not torch.equal(mine.codebook, before) and mine.codebook.isfinite().all()
        assert max(row["used"] for row in history) > 0.5
        results.append(mine.codebook)
    assert torch.equal(*results)
