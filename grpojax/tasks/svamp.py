"""SVAMP: 1000 short word problems, made to mislead (arXiv 2103.07191; MIT licence). All held out.

The folder holds `SVAMP.json` as published.
"""

from grpojax.config import DataConfig
from grpojax.task import Task
from grpojax.tasks.gsm8k import make_benchmark, word_problem
from grpojax.tasks.rows import json_row, number_of, text_of


def make(data: DataConfig) -> Task:
    """The task; a problem's category is its `Type`, the operation it asks for.

    Raises:
      ValueError: see `read_examples`.
    """
    return make_benchmark(data, "SVAMP", {"SVAMP.json": problem})


def problem(text: str) -> dict[str, str]:
    """A row of SVAMP. Where the body breaks off before the question, a comma joins them."""
    row = json_row(text)
    body, question = text_of(row, "Body"), text_of(row, "Question")
    comma = "" if body.endswith((".", ",", "?", "!")) else ","
    fields = word_problem(f"{body}{comma} {question}", number_of(row, "Answer"))
    kind = text_of(row, "Type").replace("Divison", "Division")  # misspelt once
    return fields | {"category": kind}
