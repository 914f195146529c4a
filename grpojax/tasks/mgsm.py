"""MGSM: 250 problems of GSM8K's test set in eleven languages (arXiv 2210.03057; CC BY 4.0). All
held out.

The folder holds `mgsm_en.tsv` and its like as published. `data.subset` names the languages; by
default, all that are there.
"""

import dataclasses
import functools

from grpojax.config import DataConfig
from grpojax.rewards.accuracy import NUMBER, canonical
from grpojax.rewards.language import language_consistency, language_detected
from grpojax.task import Example, Reward, Task
from grpojax.tasks.gsm8k import make_benchmark, word_problem
from grpojax.tasks.rows import chosen_files

# Codes of the files, with the language's name, and its script where that tells it from the others.
LANGUAGES = {
    "en": ("English", ""),
    "bn": ("Bengali", "bengali"),
    "de": ("German", ""),
    "es": ("Spanish", ""),
    "fr": ("French", ""),
    "ja": ("Japanese", "japanese"),
    "ru": ("Russian", "cyrillic"),
    "sw": ("Swahili", ""),
    "te": ("Telugu", "telugu"),
    "th": ("Thai", "thai"),
    "zh": ("Chinese", "han"),
}


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
    """Consistency with the problem's language, by its script or else as detected; GSM8K's problems
    are English."""
    return judge_of(example.category or "en")(example, completion)


@functools.cache
def judge_of(code: str) -> Reward:
    """The language reward of one language."""
    _, script = LANGUAGES[code]
    return language_consistency(script) if script else language_detected(code)


def problem(code: str, text: str) -> dict[str, str]:
    """A line: question, tab, number. The instruction is in English and names the language."""
    question, _, number = (part.strip() for part in text.partition("\t"))
    if not (question and NUMBER.fullmatch(number)):
        raise ValueError(f"must be a question, a tab and a number, got {text[-40:]!r}")
    name, _ = LANGUAGES[code]
    return word_problem(question, canonical(number), f" in {name}") | {"category": code}
