"""GSM8K: grade-school word problems (arXiv 2110.14168; MIT licence), and what its kin share.

The folder holds `train.jsonl` and `test.jsonl` as published.
"""

import itertools
import re

from grpojax.config import DataConfig
from grpojax.rewards.accuracy import NUMBER, canonical, last_number, last_number_of
from grpojax.rewards.format import layout_followed
from grpojax.rewards.language import language_consistency
from grpojax.task import Task
from grpojax.tasks.rows import Parser, cut_validation, has_file, json_row, read_examples, text_of

TRAIN, TEST = "train.jsonl", "test.jsonl"
PROMPT = (
    "{question}\n"
    "Reason step by step{manner} between <think> and </think>, "
    "then give the number alone between <answer> and </answer>.\n"
)
SOLUTION = re.compile(r"(?P<reasoning>.*)####\s*(?P<number>" + NUMBER.pattern + r")\s*", re.DOTALL)
CALCULATOR = re.compile(r"<<[^<>]*>>")
REWARDS = {
    "accuracy": last_number,
    "format": layout_followed,
    "language": language_consistency("latin"),
}


def make(data: DataConfig) -> Task:
    """The task, from the two files in `data.dir`.

    Raises:
      ValueError: see `read_examples`.
    """
    examples, notes = read_examples(data, "GSM8K", {TRAIN: solved, TEST: solved})
    return Task(
        splits={**cut_validation(examples[TRAIN]), "test": examples[TEST]},
        rewards=REWARDS,
        extract=last_number_of,
        notes=notes,
    )


def make_benchmark(data: DataConfig, name: str, parsers: dict[str, Parser]) -> Task:
    """A task whose files are all held out: its test split is their rows, one of each file in turn.

    What it trains on is GSM8K's `train.jsonl`, if the folder holds that too; otherwise it has no
    training examples and is for evaluation.

    Raises:
      ValueError: see `read_examples`.
    """
    training = {TRAIN: solved} if has_file(data, TRAIN) else {}
    examples, notes = read_examples(data, name, {**parsers, **training})
    turns = itertools.zip_longest(*(examples[file] for file in parsers))
    test = [example for turn in turns for example in turn if example]
    return Task(
        splits={**cut_validation(examples.get(TRAIN, [])), "test": test},
        rewards=REWARDS,
        extract=last_number_of,
        notes=notes,
    )


def solved(text: str) -> dict[str, str]:
    """A row of GSM8K, with the published solution as the reasoning to imitate."""
    row = json_row(text)
    match = SOLUTION.fullmatch(text_of(row, "answer"))
    if not match:
        raise ValueError(f"must end its answer in '#### number', got {row['answer'][-40:]!r}")
    reasoning, number = CALCULATOR.sub("", match["reasoning"]).strip(), canonical(match["number"])
    completion = f"<think>{reasoning}</think><answer>{number}</answer>"
    return word_problem(text_of(row, "question"), number) | {"completion": completion}


def word_problem(question: str, number: str, manner: str = "") -> dict[str, str]:
    """The fields of a word problem whose answer is a number; `manner` is how to reason."""
    prompt = PROMPT.format(question=question, manner=manner)
    return {"question": question, "prompt": prompt, "answer": number}
