"""The cold start: supervised training of the trunk on chains of thought.

    loss = CE + z_loss * mean(logsumexp(logits)^2)        means over the tokens of the answer

The answer includes END_OF_TURN. CE is that of the next token over the whole vocabulary, image codes
and structure tokens included; the prompt has no loss. The z term keeps the logits from drifting, as
one weight matrix serves text and images. Released code: the mask of its z term is not shifted by
one token; here it is.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from gdpo.config.vlcot import Coldstart
from gdpo.hooks import Hooks
from gdpo.seeds import Key, numpy_generator, torch_generator
from gdpo.train.loop import Loop, Stateful, Tensors, cosine, grad_norm
from gdpo.vlcot.evidence import places
from gdpo.vlcot.examples import Example, padded, pictures
from gdpo.vlcot.trunk import Trunk, chunked
from gdpo.vlcot.vocabulary import Vocabulary

ROWS = 1024  # tokens whose logits exist at a time
IGNORED = -100


def coldstart(
    trunk: Trunk,
    examples: Sequence[Example],
    vocabulary: Vocabulary,
    settings: Coldstart,
    *,
    seed: int,
    folder: Path,
    fingerprint: str,
    hooks: Hooks,
) -> list[dict[str, float]]:
    """Train the trunk in place; returns the values of every step.

    Errors: `Stopped` after a checkpoint in `folder` when asked to stop; `Diverged`.
    """
    run = _Run(trunk, examples, vocabulary, settings, seed)
    state: dict[str, Stateful] = {
        "trunk": Tensors(run.parameters),
        "adam": run.optimizer,
        "average": Tensors(run.average),
    }
    loop = Loop(folder, settings.steps, state, fingerprint, settings.checkpoint_every, hooks)
    history = loop.run(run.step)
    with torch.no_grad():
        for name, mean in run.average.items():
            run.parameters[name].copy_(mean)
    return history


class _Run:
    def __init__(
        self,
        trunk: Trunk,
        examples: Sequence[Example],
        vocabulary: Vocabulary,
        settings: Coldstart,
        seed: int,
    ) -> None:
        self.trunk, self.examples, self.settings, self.seed = trunk, examples, settings, seed
        self.vocabulary = vocabulary
        self.device = trunk.lm_head.weight.device
        self.is_code = torch.from_numpy(vocabulary.code_of >= 0).to(self.device)
        self.parameters = dict(trunk.named_parameters())
        self.average = (
            {name: p.detach().clone() for name, p in self.parameters.items()}
            if settings.average
            else {}
        )
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=settings.lr,
            # The released values; torch's default is (0.9, 0.999).
            betas=(0.9, 0.95),
            weight_decay=settings.weight_decay,
        )

    def step(self, step: int) -> dict[str, float]:
        """One update; CE of codes and of the other tokens, and the mean logsumexp."""
        settings = self.settings
        factor = min(1.0, (step + 1) / max(settings.warmup, 1))
        if settings.schedule == "cosine":
            factor = cosine(step, settings.steps, warmup=settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr * factor
        indices = batch(self.seed, "coldstart", step, settings.batch, len(self.examples))
        chosen = [self.examples[i] for i in indices]
        # The mean is over the tokens of the whole batch: micro-batches of their own means would
        # weigh short answers more.
        total = sum(len(one.answer) for one in chosen)
        self.optimizer.zero_grad(set_to_none=True)
        parts = []
        micro = settings.micro_batch or len(chosen)
        for first in range(0, len(chosen), micro):
            part = chosen[first : first + micro]
            ids, labels = collate(part)
            if settings.corrupt and step >= settings.corrupt_from:
                ids = self._corrupted(ids, labels, (step, *([first] if first else [])))
            ids, labels = ids.to(self.device), labels.to(self.device)
            with torch.autocast(
                self.device.type, dtype=torch.bfloat16, enabled=settings.precision == "bf16"
            ):
                terms = token_losses(self.trunk, ids, labels, self._seen(part, ids))
            loss = (terms[:, 0] + settings.z_loss * terms[:, 1]).sum() / total
            loss.backward()
            kept = labels[:, 1:][labels[:, 1:] != IGNORED]
            parts.append((terms.detach(), self.is_code[kept]))
        norm = grad_norm(list(self.parameters.values()), settings.clip)
        self.optimizer.step()
        self._track(step)
        terms, code = (torch.cat(part) for part in zip(*parts, strict=True))
        return {
            "loss": float((terms[:, 0] + settings.z_loss * terms[:, 1]).mean()),
            "code_ce": float(terms[code, 0].mean()),
            "text_ce": float(terms[~code, 0].mean()),
            "logsumexp": float(terms[:, 1].sqrt().mean()),
            "grad_norm": norm,
        }

    def _corrupted(self, ids_NL: torch.Tensor, labels_NL: torch.Tensor, key: Key) -> torch.Tensor:
        """ids with a share of the answers' codes replaced by random ones.

        A trunk that always sees true codes before a code leans on them, and errs ever more when it
        has to go on from its own (exposure bias); so it learns to look at the LR image as well.
        """
        generator = torch_generator(self.seed, "corrupt", *key)
        codes = torch.from_numpy(self.vocabulary.codes)
        is_code = torch.from_numpy(self.vocabulary.code_of >= 0)[ids_NL]
        drawn = torch.rand(ids_NL.shape, generator=generator) < self.settings.corrupt
        other = codes[torch.randint(len(codes), ids_NL.shape, generator=generator)]
        return torch.where(drawn & is_code & (labels_NL != IGNORED), other, ids_NL)

    @torch.no_grad()
    def _track(self, step: int) -> None:
        """Move the averages; the first steps count less, so that they forget the start."""
        decay = min(self.settings.average, (1 + step) / (10 + step))
        for name, mean in self.average.items():
            mean.lerp_(self.parameters[name], 1 - decay)

    def _seen(self, chosen: list[Example], ids_NL: torch.Tensor) -> torch.Tensor | None:
        if self.trunk.evidence is None:
            return None
        rows = np.stack([places(self.vocabulary, ids) for ids in ids_NL.cpu().numpy()])
        return self.trunk.seen(
            pictures(chosen).to(self.device), torch.from_numpy(rows).to(self.device)
        )


def batch(seed: int, name: str, step: int, size: int, count: int) -> list[int]:
    """Indices of the examples of a step: a shuffle per pass, the passes one after another."""
    indices = []
    for position in range(step * size, (step + 1) * size):
        epoch, place = divmod(position, count)
        indices.append(int(numpy_generator(seed, name, "order", epoch).permutation(count)[place]))
    return indices


def collate(examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """ids and labels (N, L), padded on the right; labels are IGNORED there and in prompts."""
    whole = [np.concatenate([one.prompt, one.answer]) for one in examples]
    silent = [np.full(len(one.prompt), IGNORED) for one in examples]
    labels = [np.concatenate([a, one.answer]) for a, one in zip(silent, examples, strict=True)]
    return padded(whole, 0), padded(labels, IGNORED)


def token_losses(
    trunk: Trunk,
    ids_NL: torch.Tensor,
    labels_NL: torch.Tensor,
    seen_NLD: torch.Tensor | None = None,
) -> torch.Tensor:
    """Per labelled token, in order: cross entropy, and the squared logsumexp of its logits (M, 2).

    labels_NL are not shifted: a label is predicted by the position before it. seen_NLD: of the ids.
    """
    targets = labels_NL[:, 1:]
    kept = targets != IGNORED
    seen = None if seen_NLD is None else seen_NLD[:, :-1]
    # Selected before the output layer, so that prompts and padding have no logits.
    hidden = trunk.hidden(ids_NL[:, :-1], seen_BLD=seen)[kept]
    wanted = targets[kept]

    def losses(logits: torch.Tensor, first: int) -> torch.Tensor:
        logits = logits.float()
        entropy = F.cross_entropy(logits, wanted[first : first + len(logits)], reduction="none")
        return torch.stack([entropy, logits.logsumexp(1).square()], dim=1)

    return chunked(trunk, hidden, losses, ROWS)
