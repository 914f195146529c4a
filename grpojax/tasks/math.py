r"""MATH: competition problems (arXiv 2103.03874; MIT licence), whose solutions end in
\boxed{answer}.

The user brings a folder with `train.jsonl` and `test.jsonl`, one problem a line with the fields
`problem`, `solution` and `level`. `data.sha256` states which files they must be.
"""

from grpojax.config import DataConfig
from grpojax.rewards.accuracy import boxed
from grpojax.rewards.math import final_answer, math_answer
from grpojax.task import Task
from grpojax.tasks.rows import cut_validation, json_row, read_examples, text_of

TRAIN, TEST = "train.jsonl", "test.jsonl"
REWARDS = {"accuracy": math_answer}


def make(data: DataConfig) -> Task:
    """The task, from the two files in `data.dir`; a problem's category is its level.

    Raises:
      ValueError: see `read_examples`.
    """
    examples, notes = read_examples(data, "MATH", {TRAIN: solved, TEST: solved})
    return Task(
        splits={**cut_validation(examples[TRAIN]), "test": examples[TEST]},
        rewards=REWARDS,
        extract=final_answer,
        notes=notes,
    )


def solved(text: str) -> dict[str, str]:
    """A row of MATH; the answer is what its solution boxes, unless it states one."""
    row = json_row(text)
    solution = text_of(row, "solution")
    answer = text_of(row, "answer") if "answer" in row else boxed(solution)
    if not answer:
        raise ValueError(f"must box an answer in its solution, got {solution[-40:]!r}")
    level = str(row.get("level", "")).lower().removeprefix("level").strip()
    problem = text_of(row, "problem")
    return {
        "question": problem,
        "prompt": problem,
        "answer": answer,
        "completion": solution,
        "category": f"level {level}" if level else "",
    }
