"""Tasks: a short name or "module:function" made a checked `Task`. Imports no jax."""

import dataclasses
import itertools
import unicodedata

from grpojax.config import DataConfig
from grpojax.names import find_function
from grpojax.task import Example, Task
from grpojax.tasks import (
    addition,
    aqua,
    chain,
    countdown,
    egsm,
    few_shot_addition,
    gsm8k,
    jsonl,
    math,
    math500,
    mgsm,
    reasoning_gym,
    svamp,
)

TASKS = {
    "addition": addition.make,
    "few_shot_addition": few_shot_addition.make,
    "chain": chain.make,
    "countdown": countdown.make,
    "reasoning_gym": reasoning_gym.make,
    "gsm8k": gsm8k.make,
    "svamp": svamp.make,
    "aqua": aqua.make,
    "mgsm": mgsm.make,
    "egsm": egsm.make,
    "math": math.make,
    "math500": math500.make,
    "jsonl": jsonl.make,
}
SPLITS = ("train", "validation", "test")


def load_task(name: str, data: DataConfig) -> Task:
    """Calls the task function `name`, one of `TASKS` or "module:function", and checks what it made.

    Training examples whose question is also held out are left out, with a note.

    Raises:
      ValueError: the name is unknown, its files are missing, or the task breaks a rule of `Task`.
    """
    task = find_function("task", name, TASKS)(data)
    if not isinstance(task, Task):
        raise ValueError(f"task {name!r} must return a Task, got {type(task).__name__}")
    needed = SPLITS if task.splits.get("train") else ("test",)
    for split in needed:
        if not task.splits.get(split):
            raise ValueError(
                f"task {name!r} must have examples in {', '.join(needed)}, got none in {split}"
            )
    if "accuracy" not in task.rewards:
        raise ValueError(
            f"task {name!r} must have a reward 'accuracy', got {', '.join(task.rewards)}"
        )
    seen: set[int] = set()
    for example in itertools.chain.from_iterable(task.splits.values()):
        if not 0 <= example.id < 2**31:
            raise ValueError(f"task {name!r}: ids must fit an int32 of 0 or more, got {example.id}")
        if example.id in seen:
            raise ValueError(
                f"task {name!r}: ids must be unique over all splits, got {example.id} twice"
            )
        seen.add(example.id)
    return without_held_out(name, task)


def without_held_out(name: str, task: Task) -> Task:
    """The task without those training examples whose question is in a held-out split too.

    Raises:
      ValueError: there are no others.
    """
    splits = {**dict.fromkeys(SPLITS, ()), **task.splits}
    held_out = {normalised(e) for split, part in splits.items() if split != "train" for e in part}
    train = [e for e in splits["train"] if normalised(e) not in held_out]
    left_out = len(splits["train"]) - len(train)
    if not left_out:
        return dataclasses.replace(task, splits=splits)
    if not train:
        raise ValueError(
            f"task {name!r}: training questions must not be held out too, got all {left_out} so"
        )
    note = f"{left_out} training examples left out: their questions are held out too"
    return dataclasses.replace(task, splits=splits | {"train": train}, notes=(*task.notes, note))


def normalised(example: Example) -> str:
    """The question without what does not tell one from another: case, forms of letters, spaces."""
    text = unicodedata.normalize("NFKC", example.question or example.prompt)
    return " ".join(text.casefold().split())
