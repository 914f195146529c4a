"""MATH-500: the 500 problems of MATH's test set that are commonly evaluated (arXiv 2305.20050; MIT
licence). All held out.

The user brings a folder with the published `test.jsonl`, and with MATH's `train.jsonl` to train
on. `data.sha256` states which files they must be.
"""

from grpojax.config import DataConfig
from grpojax.rewards.math import final_answer
from grpojax.task import Task
from grpojax.tasks.math import REWARDS, TEST, TRAIN, solved
from grpojax.tasks.rows import cut_validation, has_file, read_examples


def make(data: DataConfig) -> Task:
    """The task; a problem's category is its level.

    Raises:
      ValueError: see `read_examples`.
    """
    files = [TEST, TRAIN] if has_file(data, TRAIN) else [TEST]
    examples, notes = read_examples(data, "MATH-500", {file: solved for file in files})
    return Task(
        splits={**cut_validation(examples.get(TRAIN, [])), "test": examples[TEST]},
        rewards=REWARDS,
        extract=final_answer,
        notes=notes,
    )
