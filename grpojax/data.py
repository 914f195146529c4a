"""Data: examples made into prompts, and the batch of any step as a function of (seed, step).

Grain gives the order: a fresh permutation of the examples in every epoch, looked up by index, so
that there is no iterator to save. All prompts are tokenized and checked once, up front.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import grain
import numpy as np
from jaxtyping import Bool, Int

from grpojax.chat import render_chat
from grpojax.task import Example, Task
from grpojax.tokenizer import Tokenizer
from grpojax.types import Prompts

LongPrompts = Literal["refuse", "drop", "truncate"]


def as_chats(task: Task, tokenizer: Tokenizer, system: str) -> Task:
    """The task with each prompt as what a user says, in the tokenizer's chat template."""
    before = [{"role": "system", "content": system}] if system else []

    def chats(examples: Sequence[Example]) -> list[Example]:
        asked = [[*before, {"role": "user", "content": example.prompt}] for example in examples]
        texts = render_chat(tokenizer.chat, asked)
        return [dataclasses.replace(example, prompt=t) for example, t in zip(examples, texts)]

    return dataclasses.replace(task, splits={k: chats(v) for k, v in task.splits.items()})


def fit_prompts(
    task: Task, tokenizer: Tokenizer, prompt_length: int, long_prompts: LongPrompts
) -> Task:
    """The task without the training examples that are longer than `prompt_length` tokens, if
    `long_prompts` is "drop"; a note counts in each split the longer ones, dropped or truncated.

    Held-out examples always stay, so that an accuracy is of the whole split: where longer ones are
    not refused, `make_prompts` truncates them.

    Raises:
      ValueError: all training examples are longer.
    """
    if long_prompts == "refuse":
        return task
    splits, said = {}, []
    for split, examples in task.splits.items():
        long = [len(tokenizer.encode(example.prompt)) > prompt_length for example in examples]
        dropped = long_prompts == "drop" and split == "train"
        splits[split] = [e for e, longer in zip(examples, long) if not (dropped and longer)]
        if any(long):
            kind = "dropped" if dropped else f"truncated to their last {prompt_length} tokens"
            said.append(f"{split}: {sum(long)} of {len(long)} prompts {kind}")
    if task.splits["train"] and not splits["train"]:
        raise ValueError(
            f"some training prompt must have at most prompt_length={prompt_length} tokens, got "
            f"{len(task.splits['train'])} that are longer: raise prompt_length"
        )
    return dataclasses.replace(task, splits=splits, notes=(*task.notes, *said))


def make_prompts(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    prompt_length: int,
    long_prompts: LongPrompts = "refuse",
) -> Prompts:
    """The examples' prompts as numpy arrays, left-padded to `prompt_length` (P) tokens.

    Of a longer one the last P tokens are kept, unless `long_prompts` is "refuse".

    Raises:
      ValueError: there are no examples, a prompt has no token, or more than `prompt_length`.
    """
    if not examples:
        raise ValueError("prompts must be of at least one example, got none: the split is empty")
    rows = [tokenizer.encode(example.prompt) for example in examples]
    if long_prompts == "refuse":
        instead = ", or data.long_prompts to drop or truncate"
        refuse_long("prompt", rows, "prompt_length", prompt_length, instead)
    rows = [row[-prompt_length:] for row in rows]
    empty = [example.id for example, row in zip(examples, rows) if not row]
    if empty:
        raise ValueError(
            f"prompts must have at least one token, got none in {len(empty)} of {len(rows)} "
            f"(the first is example {empty[0]}); leave those examples out"
        )
    tokens, mask = padded(rows, prompt_length, tokenizer.pad_id)
    # Padding moves from the right to the left with the order of each row kept: [B, P]
    left = np.argsort(mask, axis=1, kind="stable")
    return Prompts(
        tokens=np.take_along_axis(tokens, left, axis=1),
        mask=np.take_along_axis(mask, left, axis=1),
        ids=np.array([example.id for example in examples], np.int32),
    )


def make_batches(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    *,
    prompts_per_step: int,
    prompt_length: int,
    seed: int,
    long_prompts: LongPrompts = "refuse",
) -> Callable[[int], tuple[list[Example], Prompts]]:
    """`batch(step)`: the B examples of a step and their prompts, whatever was asked for before.

    An epoch is as many whole steps as the examples fill; what is left over changes with the epoch.
    No example occurs twice in an epoch, and so none in a step.

    Raises:
      ValueError: there are fewer examples than `prompts_per_step`, or `make_prompts` refuses one.
    """
    order = make_order(len(examples), "prompts_per_step", prompts_per_step, seed)
    prompts = make_prompts(examples, tokenizer, prompt_length, long_prompts)

    def batch(step: int) -> tuple[list[Example], Prompts]:
        chosen = order(step)
        return [examples[i] for i in chosen], rows_of(prompts, chosen)

    return batch


def make_demonstrations(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    *,
    examples_per_step: int,
    prompt_length: int,
    completion_length: int,
    seed: int,
    long_prompts: LongPrompts = "refuse",
) -> Callable[[int], tuple[Prompts, Int[np.ndarray, "B 1 T"], Bool[np.ndarray, "B 1 T"]]]:
    """`demonstrations(step)`: prompts, and worked completions as groups of one, right-padded to T.

    A completion's mask is True up to and including the EOS that is put after it. The order is as in
    `make_batches`.

    Raises:
      ValueError: there are fewer examples than `examples_per_step`, one has no worked completion or
        one beyond `completion_length` with its EOS, or `make_prompts` refuses one.
    """
    order = make_order(len(examples), "examples_per_step", examples_per_step, seed)
    missing = sum(not example.completion for example in examples)
    if missing:
        raise ValueError(
            "the supervised stage needs a worked completion of every example, got none in "
            f"{missing} of {len(examples)}; let the task write some, or train without the stage"
        )
    prompts = make_prompts(examples, tokenizer, prompt_length, long_prompts)
    rows = [[*tokenizer.encode(example.completion), tokenizer.eos_ids[0]] for example in examples]
    refuse_long("completion", rows, "completion_length", completion_length)
    tokens, mask = (a[:, None] for a in padded(rows, completion_length, tokenizer.pad_id))

    def demonstrations(step: int) -> tuple[Prompts, np.ndarray, np.ndarray]:
        chosen = order(step)
        return rows_of(prompts, chosen), tokens[chosen], mask[chosen]

    return demonstrations


def make_order(
    examples: int, name: str, per_step: int, seed: int
) -> Callable[[int], Int[np.ndarray, "B"]]:
    """`order(step)`: the indices of a step's examples; `name` is what a config calls `per_step`."""
    if not examples:
        raise ValueError(
            "the task has no training examples: it is for evaluation; train on another"
        )
    if examples < per_step:
        raise ValueError(
            f"{name}={per_step} must be at most the number of examples, got {examples}"
        )
    shuffled = grain.MapDataset.range(examples).seed(seed).shuffle().repeat()
    steps_per_epoch = examples // per_step

    def order(step: int) -> Int[np.ndarray, "B"]:
        epoch, step_in_epoch = divmod(step, steps_per_epoch)
        first = epoch * examples + step_in_epoch * per_step
        return np.array([shuffled[first + i] for i in range(per_step)])

    return order


def rows_of(prompts: Prompts, rows: Int[np.ndarray, "B"]) -> Prompts:
    """Some of the prompts."""
    return Prompts(tokens=prompts.tokens[rows], mask=prompts.mask[rows], ids=prompts.ids[rows])


def refuse_long(what: str, rows: list[list[int]], name: str, most: int, instead: str = "") -> None:
    """Raises ValueError if a row exceeds `most` tokens; `name` is what a config calls `most`, and
    `instead` another remedy than to raise it."""
    longest, longer = max(map(len, rows), default=0), sum(len(row) > most for row in rows)
    if longer:
        raise ValueError(
            f"every {what} must have at most {name}={most} tokens, got {longer} of {len(rows)} "
            f"with more; the longest has {longest}: set {name} to {longest}{instead}"
        )


def padded(
    rows: list[list[int]], length: int, pad_id: int
) -> tuple[Int[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]:
    """The rows right-padded to `length` tokens, and the mask that is True where they are."""
    mask = np.arange(length) < np.array([len(row) for row in rows])[:, None]
    tokens = np.full(mask.shape, pad_id, np.int32)
    tokens[mask] = np.concatenate(rows)
    return tokens, mask
