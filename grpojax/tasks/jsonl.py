"""Jsonl: any problems of the user's, a JSON object a line, by the names of its fields.

The folder holds `train.jsonl` and `test.jsonl`, and `validation.jsonl` or not; `data.prompt_field`
and its like name the fields, `data.template` makes a prompt of a question, and `data.answers` says
what of a completion is compared with the answer.
"""

import functools

from grpojax.config import DataConfig
from grpojax.rewards.accuracy import (
    exact_answer,
    last_number,
    last_number_of,
    tagged_answer,
)
from grpojax.rewards.format import layout_followed
from grpojax.rewards.math import final_answer, math_answer
from grpojax.task import Task
from grpojax.tasks.rows import (
    cut_validation,
    has_file,
    json_row,
    number_of,
    read_examples,
    text_of,
)

FILES = {"train": "train.jsonl", "test": "test.jsonl", "validation": "validation.jsonl"}


def make(data: DataConfig) -> Task:
    """The task, from the files in `data.dir`.

    Raises:
      ValueError: see `read_examples`.
    """
    there = {s: f for s, f in FILES.items() if s != "validation" or has_file(data, f)}
    parse = functools.partial(problem, data)
    examples, notes = read_examples(data, "jsonl", {file: parse for file in there.values()})
    splits = {split: examples[file] for split, file in there.items()}
    accuracy, extract = JUDGES[data.answers]
    return Task(
        splits=splits if "validation" in splits else splits | cut_validation(splits["train"]),
        rewards={"accuracy": accuracy, "format": layout_followed},
        extract=extract,
        notes=notes,
    )


def problem(data: DataConfig, text: str) -> dict[str, str]:
    """A row, by the fields that `data` names."""
    row = json_row(text)
    question = text_of(row, data.prompt_field)
    read_answer = number_of if data.answers == "number" else text_of
    named = {"completion": data.completion_field, "category": data.category_field}
    return {
        "question": question,
        "prompt": data.template.replace("{prompt}", question),
        "answer": read_answer(row, data.answer_field),
        **{field: text_of(row, key) for field, key in named.items() if key},
    }


JUDGES = {
    "number": (last_number, last_number_of),
    "tagged": (exact_answer, tagged_answer),
    "boxed": (math_answer, final_answer),
}
