"""AQuA: algebraic word problems with five choices (arXiv 1705.04146; Apache-2.0).

The folder holds `dev.json` and `test.json` as published, and `train.json`; without the last, the
task has no training examples and is for evaluation.
"""

import re

from grpojax.config import DataConfig
from grpojax.rewards.accuracy import tagged_answer
from grpojax.rewards.format import layout_followed
from grpojax.rewards.language import language_consistency
from grpojax.task import Example, Task
from grpojax.tasks.rows import has_file, json_row, read_examples, text_of

FILES = {"test": "test.json", "validation": "dev.json", "train": "train.json"}
PROMPT = (
    "{question}\n{choices}\n"
    "Reason step by step between <think> and </think>, "
    "then give the letter of the right choice between <answer> and </answer>.\n"
)
CHOICE = re.compile(r"\(?([A-E])[).:]?")


def make(data: DataConfig) -> Task:
    """The task, from the files in `data.dir`.

    Raises:
      ValueError: see `read_examples`.
    """
    there = [f for split, f in FILES.items() if split != "train" or has_file(data, f)]
    examples, notes = read_examples(data, "AQuA", {file: problem for file in there})
    return Task(
        splits={split: examples.get(file, []) for split, file in FILES.items()},
        rewards={
            "accuracy": right_choice,
            "format": layout_followed,
            "language": language_consistency("latin"),
        },
        extract=chosen_letter,
        notes=notes,
    )


def problem(text: str) -> dict[str, str]:
    """A row of AQuA, its rationale as the reasoning to imitate."""
    row = json_row(text)
    question, rationale, letter = (text_of(row, k) for k in ("question", "rationale", "correct"))
    choices = row.get("options")
    if not isinstance(choices, list) or not all(isinstance(c, str) for c in choices):
        raise ValueError(f"must have a list of texts as 'options', got {choices!r}"[:80])
    if letter not in [choice.strip()[:1] for choice in choices]:
        raise ValueError(f"must have one of its choices as 'correct', got {letter[:40]!r}")
    return {
        "question": question,
        "prompt": PROMPT.format(question=question, choices="\n".join(choices)),
        "answer": letter,
        "completion": f"<think>{rationale}</think><answer>{letter}</answer>",
    }


def right_choice(example: Example, completion: str) -> float:
    """1.0 if the chosen letter is the answer."""
    return float(chosen_letter(completion) == example.answer)


def chosen_letter(completion: str) -> str | None:
    """The letter alone inside the only `<answer>...</answer>`, as `B`, `(B)` or `B)`; or None."""
    match = CHOICE.fullmatch(tagged_answer(completion) or "")
    return match[1] if match else None
