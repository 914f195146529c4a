"""Tasks: a short name or "module:function" made a checked `Task`. Imports no jax."""

import itertools

from grpojax.config import DataConfig
from grpojax.names import find_function
from grpojax.task import Task
from grpojax.tasks import addition, few_shot_addition, gsm8k, math

TASKS = {
    "addition": addition.make,
    "few_shot_addition": few_shot_addition.make,
    "gsm8k": gsm8k.make,
    "math": math.make,
}
SPLITS = ("train", "validation", "test")


def load_task(name: str, data: DataConfig) -> Task:
    """Calls the task function `name`, one of `TASKS` or "module:function", and checks what it made.

    Raises:
      ValueError: the name is unknown, its files are missing, or the task breaks a rule of `Task`.
    """
    task = find_function("task", name, TASKS)(data)
    if not isinstance(task, Task):
        raise ValueError(f"task {name!r} must return a Task, got {type(task).__name__}")
    for split in SPLITS:
        if not task.splits.get(split):
            raise ValueError(
                f"task {name!r} must have examples in {', '.join(SPLITS)}, got none in {split}"
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
    return task
