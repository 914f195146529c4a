"""E-GSM: the problems of GSM8K's test set told at greater length, by rounds of extension (arXiv
2405.14804; MIT licence). All held out.

The folder holds `Q1.jsonl` to `Q4.jsonl`, as published, or some of them; round 0 is GSM8K's own
`test.jsonl`. `data.subset` names the rounds; by default, all that are there.
"""

import functools

from grpojax.config import DataConfig
from grpojax.task import Task
from grpojax.tasks.gsm8k import TEST, make_benchmark, solved, word_problem
from grpojax.tasks.rows import chosen_files, json_row, number_of, text_of

FILES = {"Q1": "Q1.jsonl", "Q2": "Q2.jsonl", "Q3": "Q3.jsonl", "Q4": "Q4.jsonl", "Q0": TEST}


def make(data: DataConfig) -> Task:
    """The task; a problem's category is its round, from Q0 to Q4.

    Raises:
      ValueError: see `read_examples`, or `data.subset` names something else.
    """
    files = chosen_files(data, FILES)
    parsers = {file: functools.partial(problem, round) for round, file in files.items()}
    return make_benchmark(data, "E-GSM", parsers)


def problem(round: str, text: str) -> dict[str, str]:
    """A row of one round; its origin is GSM8K's question."""
    if round == "Q0":
        fields = solved(text)
        return fields | {"category": round, "origin": fields["question"]}
    row = json_row(text)
    fields = word_problem(text_of(row, "question"), number_of(row, "answer"))
    return fields | {"category": round, "origin": text_of(row, "orig_question")}
