"""Sampling of completions in batches, under the grammar, with one uniform number per token.

    per step    kind of every row (grammar) -> logits of the rows that choose -> token -> trunk
    scores      guidance -> grammar -> top-k -> temperature                  (order as released)
    guidance    g (cond - uncond) + uncond, for codes only; uncond sees this image from START on
    top-k       codes: K = round(1 + 1999 sigmoid(H - 5)), H = entropy of the scores in nats, 0..10
    token       inverse distribution function at u(seed, step, sample, token)

A completion depends on its key, not on its batch (up to the rounding of matrix products of another
size, which can only matter where u falls on an edge). Finished rows leave the batch: a few long
rows do not cost the whole batch's time. Prompts of a batch have one length, as they always do: a
constant text and one image of a constant size.

Released values: temperature 0.9, guidance 0.8, top-k of text 1, entropy top-k of codes; the
unconditional pass is one more forward per row and token, here it is in the same batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from gdpo.seeds import Key, numpy_generator
from gdpo.vlcot.evidence import at, place, places
from gdpo.vlcot.grammar import CODE, FORCED, Mode, State, initial_state, table
from gdpo.vlcot.trunk import Cache, Trunk
from gdpo.vlcot.vocabulary import Vocabulary

EVICT = 0.25  # share of finished rows at which they leave the batch


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. limit: most tokens of a completion. temperature 0: the likeliest token.

    text_top_k: of text and size tokens; None: all. image_top_k: "entropy" as released; None: all.
    """

    limit: int
    mode: Mode = "free"
    temperature: float = 0.9
    guidance: float = 1.0
    text_top_k: int | None = None
    image_top_k: Literal["entropy"] | None = None


@dataclass
class Completion:
    """The tokens after a prompt, and the kind that each was drawn from (gdpo/vlcot/grammar.py).

    Without END_OF_TURN at its end, it reached the limit.
    """

    tokens: list[int] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)


@torch.no_grad()
def sample(
    trunk: Trunk,
    vocabulary: Vocabulary,
    prompts_BP: torch.Tensor,
    keys: Sequence[Key],
    sampling: Sampling,
    pictures_BCHW: torch.Tensor | None = None,
) -> list[Completion]:
    """One completion per prompt. keys: what seeds each, e.g. (seed, step, sample). pictures_BCHW:
    the enlarged LR images, for a trunk with evidence; guided rows have none.

    Errors: ValueError if prompt and limit do not fit into the trunk's positions.
    """
    batch, prompt = prompts_BP.shape
    positions = prompt + sampling.limit
    if positions > trunk.config.max_position_embeddings:
        raise ValueError(
            f"a prompt of {prompt} tokens and {sampling.limit} more need {positions} positions, "
            f"the trunk has {trunk.config.max_position_embeddings}"
        )
    evidence = None if trunk.evidence is None else trunk.evidence(pictures_BCHW)
    run = _Run(trunk, vocabulary, keys, sampling, prompt, evidence)
    cache = Cache(trunk, batch, positions)
    rows = torch.from_numpy(np.stack([places(vocabulary, p) for p in prompts_BP.cpu().numpy()]))
    seen = None if evidence is None else at(evidence, rows.to(evidence.device))
    # The prompt goes through the trunk once; every later step adds one position to the cache.
    hidden = trunk.hidden(prompts_BP, cache, seen_BLD=seen)[:, -1]
    if sampling.guidance != 1:  # rows of the unconditional context follow; they see no prompt
        # Both rows of a completion start from the same cache. The unconditional one is made blind
        # to the prompt by its mask, which is cheaper than a prompt of its own.
        cache.keep(torch.arange(batch).repeat(2))
        hidden = hidden.repeat(2, 1)
    while True:
        tokens = run.choose(hidden)
        if all(state.done for state in run.rows):
            return run.completions
        kept = run.evict()
        if kept is not None:
            cache.keep(kept)
            tokens = tokens[kept]
        mask = run.mask(cache.length + 1)
        hidden = trunk.hidden(tokens[:, None], cache, mask, run.seen())[:, 0]


class _Run:
    """The rows of a batch: their grammar, random numbers and completions."""

    def __init__(
        self,
        trunk: Trunk,
        vocabulary: Vocabulary,
        keys: Sequence[Key],
        sampling: Sampling,
        prompt: int,
        evidence: torch.Tensor | None,
    ) -> None:
        self.trunk, self.vocabulary, self.sampling = trunk, vocabulary, sampling
        self.device = trunk.lm_head.weight.device
        self.forbidden = ~table(vocabulary).to(self.device)
        self.rows: list[State] = [
            initial_state(vocabulary, sampling.mode, sampling.limit) for _ in keys
        ]
        self.completions = [Completion() for _ in keys]
        # Drawn for all tokens beforehand: token t uses number t, however many tokens before it were
        # forced and whichever rows have left the batch.
        self.uniforms = np.stack(
            [numpy_generator(*key, "token").random(sampling.limit) for key in keys]
        )
        self.place = list(range(len(keys)))  # the completion of each row
        self.starts = [prompt] * len(keys)  # position of each row's last START
        self.evidence = evidence  # the table of each row
        self.segments: list[list[int]] = [[] for _ in keys]  # each row's unfinished image
        self.prompt, self.step = prompt, 0

    def choose(self, hidden: torch.Tensor) -> torch.Tensor:
        """The next token of every row, appended to its completion; doubled for guidance."""
        kinds = [FORCED if state.done else state.allowed() for state in self.rows]
        tokens = [state.forced for state in self.rows]
        choosing = [i for i, kind in enumerate(kinds) if kind != FORCED]
        if choosing:
            # Rows whose token is forced need no logits: in an image every row's last token, its
            # head and its end.
            drawn = self._draw(hidden, choosing, [kinds[i] for i in choosing])
            for i, token in zip(choosing, drawn, strict=True):
                tokens[i] = token
        for i, state in enumerate(self.rows):
            if state.done:
                continue
            if tokens[i] == self.vocabulary.start:
                self.starts[i] = self.prompt + self.step
                self.segments[i] = [tokens[i]]
            elif self.segments[i]:
                self.segments[i].append(tokens[i])
            if tokens[i] == self.vocabulary.end:
                self.segments[i] = []
            state.push(tokens[i])
            completion = self.completions[self.place[i]]
            completion.tokens.append(tokens[i])
            completion.kinds.append(kinds[i])
        self.step += 1
        newest = torch.tensor(tokens, device=self.device)
        return newest if self.sampling.guidance == 1 else newest.repeat(2)

    def _draw(self, hidden: torch.Tensor, choosing: list[int], kinds: list[int]) -> list[int]:
        """Tokens of the rows `choosing`, whose kinds are given."""
        is_code = torch.tensor([kind == CODE for kind in kinds], device=self.device)
        # float64: the distribution function is a sum over 73,728 ids, and float32 would lose the
        # rarest of them.
        scores = self.trunk.lm_head(hidden[choosing]).double()
        if self.sampling.guidance != 1 and bool(is_code.any()):
            other = [
                i + len(self.rows) for i, kind in zip(choosing, kinds, strict=True) if kind == CODE
            ]
            uncond = self.trunk.lm_head(hidden[other]).double()
            scores[is_code] = self.sampling.guidance * (scores[is_code] - uncond) + uncond
        # After guidance and before top-k: an id that the grammar forbids must not take a place
        # among the k.
        scores = scores.masked_fill(self.forbidden[kinds], -torch.inf)
        scores = _limited(scores, is_code, self.sampling)
        if self.sampling.temperature == 0:
            return scores.argmax(1).tolist()
        places = [self.place[i] for i in choosing]
        u = torch.from_numpy(self.uniforms[places, self.step]).to(self.device)
        return inverse(torch.softmax(scores / self.sampling.temperature, dim=1), u).tolist()

    def evict(self) -> torch.Tensor | None:
        """Drop the finished rows if they are many; returns the rows of the batch that stay."""
        kept = [i for i, state in enumerate(self.rows) if not state.done]
        # The cache is copied when rows leave, so they leave in groups.
        if len(self.rows) - len(kept) < max(1, EVICT * len(self.rows)):
            return None
        before = len(self.rows)
        self.rows = [self.rows[i] for i in kept]
        self.place = [self.place[i] for i in kept]
        self.starts = [self.starts[i] for i in kept]
        self.segments = [self.segments[i] for i in kept]
        if self.evidence is not None:
            self.evidence = self.evidence[kept]
        both = kept if self.sampling.guidance == 1 else [*kept, *(i + before for i in kept)]
        return torch.tensor(both, device=self.device)

    def seen(self) -> torch.Tensor | None:
        """What `Trunk.hidden` adds to the newest tokens; nothing for unconditional rows."""
        if self.evidence is None:
            return None
        rows = [[place(self.vocabulary, segment)] for segment in self.segments]
        seen = at(self.evidence, torch.tensor(rows, device=self.device))
        return seen if self.sampling.guidance == 1 else torch.cat([seen, torch.zeros_like(seen)])

    def mask(self, positions: int) -> torch.Tensor | None:
        """Bool (2B, positions): the unconditional rows see from their image's START on."""
        if self.sampling.guidance == 1:
            return None
        starts = torch.tensor([0] * len(self.rows) + self.starts, device=self.device)
        # A row whose image has not begun would see nothing, and a softmax over nothing is NaN.
        starts = starts.clamp(max=positions - 1)
        return torch.arange(positions, device=self.device) >= starts[:, None]


def _limited(scores: torch.Tensor, is_code: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Scores with all but the top k of each row at minus infinity."""
    ids = scores.shape[1]
    text = sampling.text_top_k or ids
    counts = torch.full((len(scores),), min(text, ids), device=scores.device)
    if sampling.image_top_k == "entropy":
        counts = torch.where(is_code, entropy_top_k(scores).clamp(max=ids), counts)
    else:
        counts = torch.where(is_code, ids, counts)
    rows = (counts < ids).nonzero()[:, 0]
    if not len(rows):
        return scores
    # Ties with the k-th score stay in: which of them to drop would depend on the sort.
    some = scores[rows]
    least = some.sort(1, descending=True).values.gather(1, counts[rows, None] - 1)
    scores[rows] = some.masked_fill(some < least, -torch.inf)
    return scores


def entropy_top_k(scores: torch.Tensor) -> torch.Tensor:
    """K of each row of scores (N, ids), 14 to 1987 (released code).

    Few candidates where the model is sure: H = 0, 2, 5, 8 nats give 14, 96, 1000, 1905.
    """
    log_p = torch.log_softmax(scores, dim=1)
    # 0 log 0 = 0; computed as it stands it is NaN for every forbidden id.
    entropy = -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0)).sum(1)
    return count_of_entropy(entropy)


def count_of_entropy(entropy: torch.Tensor) -> torch.Tensor:
    """round(1 + 1999 sigmoid(H - 5)) of entropies in nats, clamped to 0..10."""
    return torch.round(1 + 1999 * torch.sigmoid(entropy.clamp(0, 10) - 5)).long()


def inverse(probabilities: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """The id of each row at which the distribution function first exceeds u in [0, 1).

    An id of probability 0 is never returned.
    """
    cumulative = probabilities.cumsum(1)
    # Scaled by the last sum, because rounding leaves it beside 1 and a u above it would have no id.
    return (cumulative <= u[:, None] * cumulative[:, -1:]).sum(1)
