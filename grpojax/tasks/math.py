r"""MATH: competition problems (2103.03874), whose solutions end in \boxed{answer}.

The user names a folder with `train.jsonl` and `test.jsonl`, one problem a line with the fields
`problem` and `solution`.
"""

import json
from pathlib import Path

from grpojax.config import DataConfig
from grpojax.rewards.accuracy import boxed
from grpojax.rewards.math import math_answer
from grpojax.task import Example, Task

VALIDATION = 256  # examples cut from the front of train.jsonl, and at most an eighth of it


def make(data: DataConfig) -> Task:
    """The task, from the two files in `data.dir`.

    Raises:
      ValueError: a file is missing or empty, or a line is not a problem with a boxed answer.
    """
    train = read_problems(Path(data.dir) / "train.jsonl", first_id=0)
    held_out = min(VALIDATION, len(train) // 8)
    splits = {
        "train": train[held_out:],
        "validation": train[:held_out],
        "test": read_problems(Path(data.dir) / "test.jsonl", first_id=len(train)),
    }
    return Task(splits=splits, rewards={"accuracy": math_answer})


def read_problems(path: Path, first_id: int) -> list[Example]:
    """The problems of one file, their answers taken out of their solutions."""
    if not path.is_file():
        raise ValueError(f"data.dir must hold train.jsonl and test.jsonl, got no {path}")
    examples = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        try:
            row = json.loads(line)
            problem, answer = row["problem"], boxed(row["solution"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number + 1}: not a problem ({error!r})") from None
        if not answer or not isinstance(problem, str):
            raise ValueError(f"{path}, line {number + 1}: needs a problem and a boxed answer")
        examples.append(
            Example(id=first_id + number, prompt=problem, answer=answer, completion=row["solution"])
        )
    return examples
