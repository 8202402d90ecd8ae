"""VLCoT-GRPO by TRL's GRPOTrainer, which accelerate runs on several GPUs (the extra `trl`).

    trainer = make_trainer(trunk, tokenizer, examples, vocabulary, settings, seed=0, folder=work)
    trainer.train()

    completions   our sampler under our grammar (rollout_func): neither TRL's generation nor vLLM
                  lets Chameleon write an image
    log pi        of the distribution that was sampled: the trunk's forward returns it, in the place
                  of TRL's, which takes all ids as allowed
    forced tokens env_mask
    rewards       one function per term

The paper's form only. TRL has one advantage per completion, so no causal credit; its
normalize_then_sum normalises the sum of the terms once more, over the batch; and it loads the
reference model of a KL term by name, which a trunk does not have. One step gives the gradient of
gdpo/vlcot/loop.py (tests/gdpo/vlcot/test_trl.py). A checkpoint does not resume to the same bytes.

Shapes: N completions, P prompt tokens, T tokens, L = P + T.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast
from transformers.utils import ModelOutput

from gdpo.config.vlcot import Grpo
from gdpo.vlcot.examples import Example, padded
from gdpo.vlcot.grammar import FORCED, replay, table
from gdpo.vlcot.loop import judged, token_log_probs
from gdpo.vlcot.lora import trainable
from gdpo.vlcot.rewards import TERMS
from gdpo.vlcot.sampler import Sampling, sample
from gdpo.vlcot.tokenizer import ImageTokenizer
from gdpo.vlcot.trunk import Trunk
from gdpo.vlcot.vocabulary import Vocabulary

if TYPE_CHECKING:
    from trl import GRPOTrainer

IGNORED = -100  # TRL's label of what is no token of a completion


@dataclass
class Scores(ModelOutput):
    """What TRL asks a model for, both (N, L - 1); it logs the entropy."""

    log_probs: torch.Tensor | None = None
    entropy: torch.Tensor | None = None


def make_trainer(
    trunk: Trunk,
    tokenizer: ImageTokenizer,
    examples: Sequence[Example],
    vocabulary: Vocabulary,
    settings: Grpo,
    *,
    seed: int,
    folder: Path,
) -> "GRPOTrainer":
    """A trainer whose `train` does `settings.steps` steps on the trunk, in place.

    Under `accelerate launch` each process has a share of the prompts; settings.micro_batch is that
    of a process. Errors: ValueError naming a key of the section `grpo`, or what of the trunk, has
    no counterpart in TRL.
    """
    from datasets import Dataset
    from trl import GRPOTrainer

    _check(trunk, settings)
    trainable(trunk, settings.lora, seed)
    trunk.recompute = settings.recompute
    sampling = Sampling(settings.limit, mode=settings.grammar, temperature=settings.temperature)
    trainer = GRPOTrainer(
        trunk,
        reward_funcs=[_reward(k, term) for k, term in enumerate(TERMS)],
        args=_arguments(trunk, settings, seed, folder),
        # A prompt is the number of its example: TRL hands prompts, and no other column, to a
        # rollout function.
        train_dataset=Dataset.from_dict({"prompt": [str(i) for i in range(len(examples))]}),
        processing_class=_numbers(vocabulary),
        rollout_func=_rollout(tokenizer, examples, vocabulary, settings, sampling, seed),
    )
    # The trainer has given the trunk, not its class, a forward, which knows no grammar.
    trunk.__dict__["forward"] = _forward(trunk, vocabulary, sampling)
    return trainer


def _check(trunk: Trunk, settings: Grpo) -> None:
    wanted = {"aggregation": "sum_then_normalize", "credit": "sequence", "beta": 0.0}
    for name, value in wanted.items():
        if getattr(settings, name) != value:
            raise ValueError(f"grpo.{name} must be {value} with TRL, got {getattr(settings, name)}")
    if trunk.evidence is not None:
        raise ValueError("vlcot.evidence: TRL hands tokens alone to a trunk; train it without TRL")


def _arguments(trunk: Trunk, settings: Grpo, seed: int, folder: Path) -> Any:
    from accelerate import PartialState
    from trl import GRPOConfig

    processes = PartialState().num_processes
    completions = settings.batch * settings.group
    micro = settings.micro_batch or completions // processes
    if completions % (micro * processes):
        raise ValueError(
            f"grpo.batch x grpo.group is {completions} completions, which {processes} processes "
            f"with a micro-batch of {micro} cannot share evenly"
        )
    return GRPOConfig(
        output_dir=str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=completions // (micro * processes),
        num_generations=settings.group,
        max_completion_length=settings.limit,
        temperature=settings.temperature,
        loss_type="grpo",
        reward_weights=[getattr(settings.weights, term) for term in TERMS],
        learning_rate=settings.lr,
        lr_scheduler_type=settings.schedule,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.clip,
        bf16=trunk.lm_head.weight.dtype == torch.bfloat16,
        use_cpu=trunk.lm_head.weight.device.type == "cpu",
        gradient_checkpointing=False,  # `recompute` is ours
        seed=seed,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
    )


def _numbers(vocabulary: Vocabulary) -> PreTrainedTokenizerFast:
    """A tokenizer that writes ids as numbers: TRL decodes completions for its logs."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    numbers = {str(i): i for i in range(vocabulary.size)}
    end = str(vocabulary.end_of_turn)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(numbers, unk_token=end)),
        eos_token=end,
        pad_token=end,
        padding_side="left",
    )


def _reward(k: int, term: str) -> Callable[..., list[float | None]]:
    def reward(rewards: list[list[float]], **_: Any) -> list[float | None]:
        return [None if math.isnan(row[k]) else row[k] for row in rewards]

    reward.__name__ = term  # in TRL's logs
    return reward


def _rollout(
    tokenizer: ImageTokenizer,
    examples: Sequence[Example],
    vocabulary: Vocabulary,
    settings: Grpo,
    sampling: Sampling,
    seed: int,
) -> Callable[[list[str], Any], dict[str, Any]]:
    from trl.models import unwrap_model_for_generation

    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        chosen = [examples[int(prompt)] for prompt in prompts]
        first = trainer.accelerator.process_index * len(prompts)
        keys = [(seed, trainer.state.global_step, first + i) for i in range(len(prompts))]
        with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as whole:
            ids = padded([one.prompt for one in chosen], 0).to(trainer.accelerator.device)
            completions = sample(whole, vocabulary, ids, keys, sampling)
        return {
            "prompt_ids": [one.prompt.tolist() for one in chosen],
            "completion_ids": [completion.tokens for completion in completions],
            "logprobs": [[0.0] * len(completion.tokens) for completion in completions],  # unused
            "env_mask": [
                [int(k != FORCED) for k in completion.kinds] for completion in completions
            ],
            "rewards": judged(completions, chosen, tokenizer, vocabulary, settings)[2].tolist(),
        }

    return rollout


def _forward(trunk: Trunk, vocabulary: Vocabulary, sampling: Sampling) -> Callable[..., Scores]:
    sets = table(vocabulary).to(trunk.lm_head.weight.device)

    def forward(input_ids: torch.Tensor, labels: torch.Tensor, **_: Any) -> Scores:
        is_label = labels != IGNORED
        # Prompts have one length, so every completion begins at the same place.
        first = int(is_label.any(0).int().argmax())
        lengths = is_label.sum(1).tolist()
        tokens = input_ids[:, first:]
        kinds = padded(
            [
                np.array(replay(vocabulary, sampling.mode, row[:length]))
                for row, length in zip(tokens.tolist(), lengths, strict=True)
            ],
            FORCED,
        ).to(tokens.device)
        log_probs = token_log_probs(
            trunk, vocabulary, sets, input_ids[:, :first], tokens, kinds, None, sampling
        )
        scores = torch.nn.functional.pad(log_probs, (first - 1, 0))
        # -log pi of what was sampled is an unbiased estimate of the entropy.
        return Scores(log_probs=scores, entropy=-scores.detach())

    return forward
