"""MGSM: 250 problems of GSM8K's test set in eleven languages (arXiv 2210.03057; CC BY 4.0). All
held out.

The folder holds `mgsm_en.tsv` and its like as published. `data.subset` names the languages; by
default, all that are there.
"""

import dataclasses
import functools

from grpojax.config import DataConfig
from grpojax.rewards.accuracy import NUMBER, canonical
from grpojax.rewards.language import language_consistency
from grpojax.task import Example, Task
from grpojax.tasks.gsm8k import make_benchmark, word_problem
from grpojax.tasks.rows import chosen_files

# Codes of the files, with the language's name and its script in `rewards.language`.
LANGUAGES = {
    "en": ("English", "latin"),
    "bn": ("Bengali", "bengali"),
    "de": ("German", "latin"),
    "es": ("Spanish", "latin"),
    "fr": ("French", "latin"),
    "ja": ("Japanese", "japanese"),
    "ru": ("Russian", "cyrillic"),
    "sw": ("Swahili", "latin"),
    "te": ("Telugu", "telugu"),
    "th": ("Thai", "thai"),
    "zh": ("Chinese", "han"),
}
JUDGES = {code: language_consistency(script) for code, (_, script) in LANGUAGES.items()}


def make(data: DataConfig) -> Task:
    """The task; a problem's category is its language's code, which the language reward follows.

    Raises:
      ValueError: see `read_examples`, or `data.subset` names something else.
    """
    files = chosen_files(data, {code: f"mgsm_{code}.tsv" for code in LANGUAGES})
    parsers = {file: functools.partial(problem, code) for code, file in files.items()}
    task = make_benchmark(data, "MGSM", parsers)
    return dataclasses.replace(task, rewards={**task.rewards, "language": language})


def language(example: Example, completion: str) -> float:
    """Language consistency in the script of the problem's language; of GSM8K's problems, Latin."""
    return JUDGES[example.category or "en"](example, completion)


def problem(code: str, text: str) -> dict[str, str]:
    """A line: question, tab, number. The instruction is in English and names the language."""
    question, _, number = (part.strip() for part in text.partition("\t"))
    if not (question and NUMBER.fullmatch(number)):
        raise ValueError(f"must be a question, a tab and a number, got {text[-40:]!r}")
    name, _ = LANGUAGES[code]
    return word_problem(question, canonical(number), f" in {name}") | {"category": code}
