"""VLCoT-GRPO: the policy writes groups of chains, four rewards judge them, one update per batch.

    for every step:
        G completions of each prompt, sampled from the policy under the grammar
        parse -> decode the last image -> metrics -> four rewards          (gdpo/vlcot/rewards.py)
        advantages by term -> of every token                               (gdpo/vlcot/credit.py)
        loss on the tokens that the model chose                            (gdpo/vlcot/objective.py)
        one AdamW step

What is sampled is what is optimised: no guidance and no top-k, the same temperature and the same
sets of ids in both. The control shuffles the advantages inside each group.
"""

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from gdpo.config.vlcot import Grpo
from gdpo.hooks import Hooks
from gdpo.images import to_tensor
from gdpo.metrics.score import score_computed
from gdpo.seeds import torch_generator
from gdpo.train.loop import Loop, Stateful, Tensors, cosine, grad_norm
from gdpo.vlcot.coldstart import ROWS, batch
from gdpo.vlcot.credit import shuffled, term_advantages, token_advantages
from gdpo.vlcot.evidence import places
from gdpo.vlcot.examples import Example, padded, pictures
from gdpo.vlcot.grammar import FORCED, table
from gdpo.vlcot.lora import merge, trainable
from gdpo.vlcot.objective import grpo_loss, k3, log_probabilities
from gdpo.vlcot.parse import Parsed, parse
from gdpo.vlcot.rewards import TERMS, rewards, settled
from gdpo.vlcot.sampler import Completion, Sampling, sample
from gdpo.vlcot.tokenizer import ImageTokenizer
from gdpo.vlcot.trunk import Trunk, chunked
from gdpo.vlcot.vocabulary import Vocabulary


def grpo(
    trunk: Trunk,
    tokenizer: ImageTokenizer,
    examples: Sequence[Example],
    vocabulary: Vocabulary,
    settings: Grpo,
    *,
    seed: int,
    control: bool,
    folder: Path,
    fingerprint: str,
    hooks: Hooks,
) -> list[dict[str, float]]:
    """Train the trunk in place; returns the values of every step.

    Errors: `Stopped` after a checkpoint in `folder` when asked to stop; `Diverged`; ValueError for
    a metric without its files.
    """
    run = _Run(trunk, tokenizer, examples, vocabulary, settings, seed, control)
    state: dict[str, Stateful] = {"trunk": Tensors(run.parameters), "adam": run.optimizer}
    loop = Loop(folder, settings.steps, state, fingerprint, settings.checkpoint_every, hooks)
    history = loop.run(run.step)
    trunk.recompute = False
    if settings.lora is not None:
        merge(trunk)
    return history


class _Run:
    def __init__(
        self,
        trunk: Trunk,
        tokenizer: ImageTokenizer,
        examples: Sequence[Example],
        vocabulary: Vocabulary,
        settings: Grpo,
        seed: int,
        control: bool,
    ) -> None:
        self.trunk, self.tokenizer, self.examples = trunk, tokenizer, examples
        self.vocabulary, self.settings = vocabulary, settings
        self.seed, self.control = seed, control
        self.reference = None
        if settings.beta:
            # A second copy of the trunk, and only with beta: at beta 0, the released value, nothing
            # reads it.
            self.reference = copy.deepcopy(trunk).requires_grad_(False)
        self.device = trunk.lm_head.weight.device
        self.table = table(vocabulary).to(self.device)
        self.sampling = Sampling(
            settings.limit, mode=settings.grammar, temperature=settings.temperature
        )
        self.parameters = trainable(trunk, settings.lora, seed)
        trunk.recompute = settings.recompute
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=settings.lr, weight_decay=settings.weight_decay
        )

    def step(self, step: int) -> dict[str, float]:
        """Sample, judge, learn; returns the values to log."""
        group = self.settings.group
        indices = batch(self.seed, "grpo", step, self.settings.batch, len(self.examples))
        # The completions of a group stand side by side, which `reshape(-1, group, terms)` below
        # relies on.
        chosen = [self.examples[i] for i in indices for _ in range(group)]
        prompts = padded([one.prompt for one in chosen], 0).to(self.device)
        views = pictures(chosen).to(self.device)
        keys = [(self.seed, step, i) for i in range(len(chosen))]
        completions = sample(self.trunk, self.vocabulary, prompts, keys, self.sampling, views)
        parsed, values, rewards_NK = judged(
            completions, chosen, self.tokenizer, self.vocabulary, self.settings
        )
        advantages = self._advantages(step, rewards_NK, parsed, completions)
        learned = self._learn(step, prompts, views, completions, advantages)
        lengths = [float(len(completion.tokens)) for completion in completions]
        return {
            **_described(rewards_NK.reshape(-1, group, len(TERMS))),
            "broken": 1 - sum(value is not None for value in values) / len(values),
            "tokens": float(np.mean(lengths)),
            "unfinished": 1 - sum(one.ended for one in parsed) / len(parsed),
            **learned,
        }

    def _advantages(
        self,
        step: int,
        found_NK: torch.Tensor,
        parsed: list[Parsed],
        completions: list[Completion],
    ) -> torch.Tensor:
        """The advantage of every token (N, T), T the longest completion."""
        settings, group = self.settings, self.settings.group
        weights = [getattr(settings.weights, term) for term in TERMS]
        terms = term_advantages(
            found_NK.reshape(-1, group, len(TERMS)), weights, settings.aggregation
        )
        if self.control:
            # Shuffled inside each group and per step: the control sees the same rewards, lengths
            # and spread.
            terms = torch.stack(
                [
                    shuffled(one, torch_generator(self.seed, "control", step, i))
                    for i, one in enumerate(terms)
                ]
            )
        lengths = [len(completion.tokens) for completion in completions]
        ends = torch.tensor([settled(p, n) for p, n in zip(parsed, lengths, strict=True)])
        return token_advantages(terms.flatten(0, 1), ends, max(lengths), settings.credit)

    def _learn(
        self,
        step: int,
        prompts: torch.Tensor,
        views: torch.Tensor,
        completions: list[Completion],
        advantages: torch.Tensor,
    ) -> dict[str, float]:
        """One update; the loss, the KL to the reference and the mean log-probability."""
        settings = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr * _factor(settings.schedule, step, settings.steps)
        tokens = padded([np.array(c.tokens) for c in completions], 0).to(self.device)
        kinds = padded([np.array(c.kinds) for c in completions], FORCED).to(self.device)
        mask, advantages = kinds != FORCED, advantages.to(self.device)
        self.optimizer.zero_grad(set_to_none=True)
        micro, count = settings.micro_batch or len(completions), len(completions)
        values = {"loss": 0.0, "log_prob": 0.0, "kl": 0.0}
        for first in range(0, count, micro):
            part = slice(first, first + micro)
            inputs = (prompts[part], views[part], tokens[part], kinds[part])
            log_probs = self._log_probs(self.trunk, *inputs)
            reference = None
            if self.reference is not None:
                with torch.no_grad():
                    reference = self._log_probs(self.reference, *inputs)
                divergence = k3(log_probs.detach(), reference)[mask[part]].sum()
                # Logged per chosen token of the whole batch, whatever the micro-batches.
                values["kl"] += float(divergence / mask.sum())
            loss = grpo_loss(
                log_probs,
                advantages[part],
                mask[part],
                beta=settings.beta,
                reference_NT=reference,
            )
            # The mean over completions is taken over the whole batch, whatever the micro-batches;
            # unlike a mean over tokens, a long completion counts as much as a short one.
            (loss * len(log_probs) / count).backward()
            values["loss"] += float(loss.detach()) * len(log_probs) / count
            values["log_prob"] += float(log_probs.detach()[mask[part]].sum() / mask.sum())
        values["grad_norm"] = grad_norm(list(self.parameters.values()), settings.clip)
        self.optimizer.step()
        return values

    def _log_probs(
        self,
        trunk: Trunk,
        prompts: torch.Tensor,
        views: torch.Tensor,
        tokens: torch.Tensor,
        kinds: torch.Tensor,
    ) -> torch.Tensor:
        return token_log_probs(
            trunk, self.vocabulary, self.table, prompts, tokens, kinds, views, self.sampling
        )


def token_log_probs(
    trunk: Trunk,
    vocabulary: Vocabulary,
    sets: torch.Tensor,
    prompts_NP: torch.Tensor,
    tokens_NT: torch.Tensor,
    kinds_NT: torch.Tensor,
    pictures_NCHW: torch.Tensor | None,
    sampling: Sampling,
) -> torch.Tensor:
    """log pi of every token of the completions, NT; 0 where it is forced.

    sets: `gdpo.vlcot.grammar.table`. pictures_NCHW: as `Trunk.seen`.
    """
    chosen = kinds_NT != FORCED
    ids = torch.cat([prompts_NP, tokens_NT], dim=1)[:, :-1]
    rows = np.stack([places(vocabulary, line) for line in ids.cpu().numpy()])
    seen = trunk.seen(pictures_NCHW, torch.from_numpy(rows).to(ids.device))
    hidden = trunk.hidden(ids, seen_BLD=seen)
    # The state before a token predicts it, so the first token of the completion is predicted by
    # the last one of the prompt. Only chosen tokens reach the output layer.
    hidden = hidden[:, prompts_NP.shape[1] - 1 :][chosen]
    picked, kind = tokens_NT[chosen], kinds_NT[chosen]

    def of(logits: torch.Tensor, first: int) -> torch.Tensor:
        part = slice(first, first + len(logits))
        return log_probabilities(
            logits[None], picked[None, part], kind[None, part], sets, sampling.temperature
        )[0]

    # masked_scatter keeps the gradient and puts the values back into the places from which
    # `chosen` took them.
    log_probs_NT = torch.zeros(kinds_NT.shape, device=hidden.device)
    return log_probs_NT.masked_scatter(chosen, chunked(trunk, hidden, of, ROWS))


def judged(
    completions: Sequence[Completion],
    examples: Sequence[Example],
    tokenizer: ImageTokenizer,
    vocabulary: Vocabulary,
    settings: Grpo,
) -> tuple[list[Parsed], list[dict[str, float] | None], torch.Tensor]:
    """The completions as parsed, the metrics of their last images (`judge`), and their rewards NK.

    examples: of each completion.
    """
    parsed = [parse(completion.tokens, vocabulary) for completion in completions]
    values = judge(parsed, examples, tokenizer, vocabulary, settings.metrics)
    rewards_NK = torch.tensor(
        [
            rewards(one, of.truth, value, format_form=settings.format, tag_form=settings.tags)
            for one, of, value in zip(parsed, examples, values, strict=True)
        ]
    )
    return parsed, values, rewards_NK


def judge(
    parsed: Sequence[Parsed],
    examples: Sequence[Example],
    tokenizer: ImageTokenizer,
    vocabulary: Vocabulary,
    metrics: list[str],
) -> list[dict[str, float] | None]:
    """The metrics of the last image of each completion against its HR image.

    None where there is no last image, it is broken, or it has not the size of the last stage.
    """
    side = vocabulary.stages[-1] // vocabulary.factor
    good = [
        i
        for i, one in enumerate(parsed)
        if one.result is not None and one.result.shape == (side,) * 2
    ]
    scores: list[dict[str, float] | None] = [None] * len(parsed)
    if not good:
        return scores
    # One call for all images: the metrics and the decoder cost far less in a batch.
    codes = np.stack([result for i in good if (result := parsed[i].result) is not None])
    images = tokenizer.decode(torch.from_numpy(codes).to(tokenizer.codebook.device))
    references = torch.stack([to_tensor(examples[i].hr) for i in good]).to(images)
    values = score_computed(metrics, images, references)
    for place, i in enumerate(good):
        scores[i] = {name: float(value[place]) for name, value in values.items()}
    return scores


def _factor(schedule: str, step: int, steps: int) -> float:
    if schedule == "cosine":
        return cosine(step, steps)
    # To 0 at `steps`, not at the last step: the last step still learns (transformers' linear
    # schedule).
    return 1 - step / steps if schedule == "linear" else 1.0


def _described(rewards_BGK: torch.Tensor) -> dict[str, float]:
    """Mean of each reward and its spread inside groups; excluded terms left out of both."""
    logged = {}
    for i, term in enumerate(TERMS):
        values = rewards_BGK[..., i]
        kept = values[~values.isnan().any(1)]
        logged[term] = float(kept.mean()) if len(kept) else 0.0
        logged[f"{term}_std"] = float(kept.std(1).mean()) if len(kept) else 0.0
    return logged
