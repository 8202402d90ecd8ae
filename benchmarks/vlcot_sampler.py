"""Tokens per CPU second of the batched sampler of RealSR-R1, against one completion at a time.

    python benchmarks/vlcot_sampler.py [--batch 48]

Both write the same strict chains with the tiny trunk (160 wide, 4 layers, 587 ids, images of 16, 32
and 64 pixels). The plain loop has transformers' cache, which grows, and one row. CPU seconds, so
that other processes do not count. Writes benchmarks/results/vlcot_sampler.json.
"""

import argparse
import time
from collections.abc import Callable

import torch
from transformers import DynamicCache

from benchmarks.record import record
from gdpo.vlcot import vocabulary
from gdpo.vlcot.describe import WORDS
from gdpo.vlcot.grammar import FORCED, initial_state, table
from gdpo.vlcot.sampler import Sampling, sample
from gdpo.vlcot.trunk import Trunk, fresh, tiny_config
from gdpo.vlcot.vocabulary import Vocabulary

PROMPT, LIMIT = 78, 400


@torch.no_grad()
def plain(trunk: Trunk, v: Vocabulary, prompt: torch.Tensor) -> int:
    """One completion; returns its number of tokens."""
    sets, grown, cache, ids = table(v), initial_state(v, "strict", LIMIT), DynamicCache(), prompt
    count = 0
    while not grown.done:
        out = trunk.model(input_ids=ids, past_key_values=cache, use_cache=True)
        logits = trunk.lm_head(out.last_hidden_state[:, -1])
        kind = grown.allowed()
        scores = logits.masked_fill(~sets[kind], -torch.inf) / 0.9
        drawn = torch.multinomial(scores.softmax(1), 1)
        token = grown.forced if kind == FORCED else int(drawn)
        grown.push(token)
        ids, count = torch.tensor([[token]]), count + 1
    return count


def rate(run: Callable[[], int]) -> float:
    """Tokens per CPU second."""
    start = time.process_time()
    return run() / (time.process_time() - start)


def main() -> None:
    """Measure both in turn and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=48)
    batch = parser.parse_args().batch
    torch.set_num_threads(1)
    v = vocabulary.tiny(WORDS, 512, (16, 32, 64), factor=8)
    config = tiny_config(v.size, width=160, layers=4, heads=5, positions=PROMPT + LIMIT)
    trunk = fresh(config, seed=0).eval()
    prompts = torch.randint(0, v.size, (batch, PROMPT), generator=torch.Generator().manual_seed(0))
    sampling = Sampling(LIMIT, mode="strict")

    def batched() -> int:
        found = sample(trunk, v, prompts, [(0, i) for i in range(batch)], sampling)
        return sum(len(completion.tokens) for completion in found)

    one, many = rate(lambda: plain(trunk, v, prompts[:1])), rate(batched)
    print(
        f"one at a time {one:.0f}, batch of {batch} {many:.0f} tokens per CPU second: "
        f"{many / one:.1f} x"
    )
    record("vlcot_sampler", {"batch": batch, "plain": one, "ours": many, "ratio": many / one})


if __name__ == "__main__":
    main()
