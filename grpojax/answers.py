"""Answers: what a policy completes chosen problems with, by the sampler that trains, judged."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Array, Int, Key

from grpojax.data import make_prompts, rows_of
from grpojax.hosts import on_host
from grpojax.rewards import Judged, compute_rewards
from grpojax.run import Run
from grpojax.sampling import make_sampler
from grpojax.sharding import row_parts, shard_batch
from grpojax.task import Example
from grpojax.tokenizer import decode_groups
from grpojax.types import Params
from grpojax.verdicts import Verdict, judge_by_hosts

JUDGED = ("accuracy", "format", "language")  # rewards of a task that evaluation reports


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One completion of a problem."""

    text: str
    length: int  # tokens, the one that ended it included
    truncated: bool  # cut at `completion_length`
    extracted: str | None  # what the task reads from it; None too if the task reads nothing
    rewards: dict[str, float]  # those of `JUDGED` that the task has; NaN: could not be judged


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A problem with its greedy completion and those sampled."""

    example: Example
    greedy: Answer
    sampled: list[Answer]


Answerer = Callable[[Params, Sequence[Example], Key[Array, ""]], list[Answered]]


def make_answerer(run: Run, *, samples: int) -> Answerer:
    """`answer(params, examples, key)`: every example answered greedily and `samples` times by draws
    that `key` seeds, whatever the other examples are."""
    config, evaluation = run.config, run.config.evaluation
    shape = dict(
        completion_length=config.sampling.completion_length,
        stop_ids=run.stops,
        pad_id=run.tokenizer.pad_id,
    )
    greedy = make_sampler(run.policy, group_size=1, greedy=True, **shape)
    sampled = make_sampler(
        run.policy,
        group_size=max(samples, 1),
        temperature=evaluation.temperature,
        top_k=evaluation.top_k,
        top_p=evaluation.top_p,
        **shape,
    )
    rewards = {name: run.task.rewards[name] for name in JUDGED if name in run.task.rewards}
    at_once = config.grpo.prompts_per_step * config.grpo.group_size  # completions: as in training
    shards = row_parts(run.mesh)

    def judge(name: str, chosen: Sequence[Example], texts: list[list[str]]) -> Judged:
        def judge_rows(rows: Int[np.ndarray, "R"]) -> Verdict:
            asked, answers = [chosen[row] for row in rows], [texts[row] for row in rows]
            only = {name: rewards[name]}
            return compute_rewards(only, [1.0], asked, answers, config.judging), {}

        return judge_by_hosts(np.arange(len(chosen)), judge_rows)[0]

    def complete(sampler, params, prompts, chosen, key, group_size) -> list[list[Answer]]:
        size = -(-min(max(at_once // group_size, 1), len(chosen)) // shards) * shards
        texts, lengths, truncated = [], [], []
        for start in range(0, len(chosen), size):
            # The last batch is filled up with its last problem: one shape, compiled once.
            rows = np.minimum(np.arange(start, start + size), len(chosen) - 1)
            drawn = sampler(params, shard_batch(rows_of(prompts, rows), run.mesh), key)
            tokens, mask = on_host((drawn.tokens, drawn.mask))
            texts += decode_groups(run.tokenizer, tokens, mask, run.stops)
            lengths += mask.sum(-1).tolist()
            truncated += (~(mask & np.isin(tokens, run.stops)).any(-1)).tolist()
        texts = texts[: len(chosen)]
        # Each by itself: a format that cannot be judged says nothing about the accuracy.
        judged = {name: judge(name, chosen, texts) for name in rewards}
        worth = {name: np.where(j.valid, j.total, np.nan) for name, j in judged.items()}
        return [
            [
                Answer(
                    text=text,
                    length=lengths[i][j],
                    truncated=truncated[i][j],
                    extracted=read(run.task.extract, text),
                    rewards={name: float(values[i, j]) for name, values in worth.items()},
                )
                for j, text in enumerate(group)
            ]
            for i, group in enumerate(texts)
        ]

    def answer(params: Params, examples: Sequence[Example], key) -> list[Answered]:
        prompts = make_prompts(
            examples, run.tokenizer, config.sampling.prompt_length, config.data.long_prompts
        )
        first = complete(greedy, params, prompts, examples, key, 1)
        drawn = [[] for _ in examples]
        if samples:
            drawn = complete(sampled, params, prompts, examples, key, samples)
        return [
            Answered(example=example, greedy=one, sampled=group)
            for example, (one,), group in zip(examples, first, drawn)
        ]

    return answer


def read(extract: Callable[[str], str | None] | None, text: str) -> str | None:
    """What `extract` reads from a completion; None, which casts no vote, if it cannot."""
    try:
        return None if extract is None else extract(text)
    except Exception:  # a user's code: whatever it raises concerns one completion
        return None
