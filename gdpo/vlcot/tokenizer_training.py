"""Training of the tiny tokenizer: a codebook, then everything together, then a sharper decoder.

    codebook   k-means of the latents of a VAE
    together   L1 + tone + 0.5 (1 - SSIM) + COMMIT ||z - sg(q)||^2 / var(z), q the nearest code
               straight through to the encoder; codes are moving averages of their vectors
    decoder    reconstruction + hinge adversarial term (gdpo/prior/train.py), nothing else moves

A code that is hardly used moves to a vector of the batch, so that none is lost. Images have the
sizes of the stages: crops of the last stage, and the same reduced. Source of the second part:
VQ-VAE with moving averages (van den Oord, Vinyals, Kavukcuoglu 2017, appendix A.1).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from gdpo.pretrain.losses import ssim
from gdpo.prior.train import PatchDiscriminator, Photos, crop_batch, decoder_step
from gdpo.seeds import seed_of, torch_generator
from gdpo.train.loop import Stateful, Tensors, cosine, grad_norm
from gdpo.vlcot.tokenizer import TinyTokenizer, patches

COMMIT = 0.1
DECAY = 0.99  # of the moving averages
RARE = 0.1  # a code that is used less often in a batch (moving average) moves


def fit_codebook(vectors: torch.Tensor, codes: int, seed: int, rounds: int = 20) -> torch.Tensor:
    """K-means of vectors (N, d): float32 (codes, d), the most frequent code first.

    A code that no vector is nearest to moves to the vector that fits its own code worst. Errors:
    ValueError when there are fewer different vectors than codes.
    """
    distinct = len(torch.unique(vectors, dim=0))
    if distinct < codes:
        raise ValueError(
            f"{codes} codes need as many different patches, got {distinct}; give more images"
        )
    centres = _far_apart(vectors, codes, torch_generator(seed, "codebook"))
    for _ in range(rounds):
        distance, label = torch.cdist(vectors, centres).min(1)
        counts = torch.bincount(label, minlength=codes)
        sums = torch.zeros_like(centres).index_add_(0, label, vectors)
        centres = sums / counts.clamp(min=1)[:, None]
        empty = torch.where(counts == 0)[0]
        # A centre that lost all its vectors goes to the one that is described worst; left alone, it
        # would stay a code that no image uses.
        centres[empty] = vectors[distance.argsort(descending=True, stable=True)[: len(empty)]]
    counts = torch.bincount(torch.cdist(vectors, centres).argmin(1), minlength=codes)
    # Numbered by frequency, since the order of the random starts means nothing.
    return centres[counts.argsort(descending=True, stable=True)]


def _far_apart(vectors: torch.Tensor, codes: int, generator: torch.Generator) -> torch.Tensor:
    """K-means++: each start is drawn with probability proportional to its squared distance from
    the starts before it.
    """
    starts = vectors[torch.randint(len(vectors), (1,), generator=generator)]
    distance = torch.full((len(vectors),), torch.inf)
    while len(starts) < codes:
        distance = torch.minimum(distance, (vectors - starts[-1]).square().sum(1))
        place = torch.multinomial(distance.double(), 1, generator=generator)
        starts = torch.cat([starts, vectors[place]])
    return starts


def decoder_steps(
    tokenizer: TinyTokenizer,
    photos: Photos,
    *,
    sizes: tuple[int, ...],
    batch: int,
    steps: int,
    seed: int,
    lr: float,
    adversarial: float,
) -> tuple[Callable[[int], dict[str, float]], dict[str, Stateful]]:
    """The step function that tunes the decoder on quantised latents, and its state.

    The encoder and the codebook stay, so no code of an image changes. The loss is
    `gdpo.prior.train.decoder_step`'s; step i trains on crops of sizes[i % len(sizes)] pixels.
    """
    # Only the decoder learns: codes that changed under the trunk would make its training data void.
    vae = tokenizer.vae
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "tokenizer-judge"))
        # Inside fork_rng: torch's layers draw from the global generator, which would otherwise be
        # moved for whatever comes after.
        judge = PatchDiscriminator()
    decoder = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    adam = torch.optim.Adam(decoder, lr=lr, betas=(0.5, 0.9))
    adam_judge = torch.optim.Adam(judge.parameters(), lr=lr, betas=(0.5, 0.9))

    def quantised(x: torch.Tensor, step: int) -> torch.Tensor:
        del step
        return tokenizer.latents(tokenizer.encode(x / 2 + 0.5))

    step_fns = [
        decoder_step(
            vae,
            judge,
            (adam, adam_judge),
            photos,
            size=size,
            batch=batch,
            steps=steps,
            seed=seed,
            lr=lr,
            adversarial=adversarial,
            latents=quantised,
        )
        for size in sizes
    ]
    state: dict[str, Stateful] = {
        "decoder": Tensors({str(i): parameter for i, parameter in enumerate(decoder)}),
        "judge": judge,
        "adam": adam,
        "adam_judge": adam_judge,
    }
    return lambda step: step_fns[step % len(step_fns)](step), state


def joint_steps(
    tokenizer: TinyTokenizer,
    photos: Photos,
    *,
    sizes: tuple[int, ...],
    batch: int,
    steps: int,
    seed: int,
    lr: float,
) -> tuple[Callable[[int], dict[str, float]], dict[str, Stateful]]:
    """The step function that trains encoder, codebook and decoder together, and its state.

    sizes: sides of the stages; the last is that of the crops, every fourth step has the crops at
    each of the smaller ones.
    """
    vae, codebook = tokenizer.vae, tokenizer.codebook
    parameters = dict(vae.named_parameters())
    adam = torch.optim.AdamW(parameters.values(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-4)
    counts, sums = torch.ones(len(codebook), device=codebook.device), codebook.clone()

    def track(vectors: torch.Tensor, codes: torch.Tensor, step: int) -> None:
        """Move every code towards the mean of its vectors, and rare ones to vectors."""
        used = torch.bincount(codes, minlength=len(codebook)).float()
        counts.mul_(DECAY).add_(used, alpha=1 - DECAY)
        sums.mul_(DECAY).add_(torch.zeros_like(sums).index_add_(0, codes, vectors), alpha=1 - DECAY)
        rare = torch.where(counts < RARE)[0]
        generator = torch_generator(seed, "tokenizer-rare", step)
        chosen = torch.randint(len(vectors), (len(rare),), generator=generator).to(rare.device)
        counts[rare], sums[rare] = 1.0, vectors[chosen]
        codebook.copy_(sums / counts[:, None])

    def step_fn(step: int) -> dict[str, float]:
        x = crop_batch(photos, sizes[-1], batch, seed, "tokenizer", step).to(vae.device)
        smaller = {1: sizes[-2], 3: sizes[0]}.get(step % 8, sizes[-1])
        x = F.interpolate(x, size=(smaller, smaller), mode="area") if smaller != sizes[-1] else x
        for group in adam.param_groups:
            group["lr"] = lr * cosine(step, steps, warmup=50)
        with torch.autocast(vae.device.type, dtype=torch.bfloat16):
            z = patches(vae, x, tokenizer.patch).float()
            codes = tokenizer.nearest(z.detach())
            q = codebook[codes]
            through = (z + (q - z).detach()).permute(0, 3, 1, 2)
            y = vae.decode(F.pixel_shuffle(through, tokenizer.patch)).sample.float()
        commit = (z - q).square().mean() / z.detach().var()
        l1, tone = (y - x).abs().mean(), F.avg_pool2d(y - x, 8).abs().mean()
        similarity = ssim(y * 0.5 + 0.5, x * 0.5 + 0.5)
        loss = l1 + tone + 0.5 * (1 - similarity) + COMMIT * commit
        adam.zero_grad()
        loss.backward()
        norm = grad_norm(list(parameters.values()), 1.0)
        adam.step()
        with torch.no_grad():
            track(z.detach().flatten(0, 2), codes.flatten(), step)
        values = {"loss": loss, "l1": l1, "ssim": similarity, "commit": commit}
        used = len(codes.unique()) / len(codebook)
        return {**{n: v.item() for n, v in values.items()}, "used": used, "grad_norm": norm}

    state: dict[str, Stateful] = {
        "vae": Tensors(parameters),
        "codes": Tensors({"codebook": codebook, "counts": counts, "sums": sums}),
        "adam_joint": adam,
    }
    return step_fn, state
