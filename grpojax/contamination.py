"""Contamination: are questions of a test set in a training set?

The rule of DeepSeekMath (arXiv 2402.03300, section 2.1): a training text is contaminated if ten
words in a row of it stand so in a test text, or if it holds the whole of a test text of three to
nine words. Compared are questions, without what all prompts of a task share.
"""

import dataclasses
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grpojax.config import DataConfig
from grpojax.tasks import SPLITS, load_task
from grpojax.tasks.records import read_rows
from grpojax.tasks.rows import json_row, malformed, parsed, text_of

FEWEST = 3  # words of a test text that is compared
# Scripts that put no spaces between words, a character of which stands for a word: Thai and Lao,
# kana, Han.
UNSPACED = re.compile("([\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff])")
PUNCTUATION = ".,;:!?…\"'()[]{}«»„“”\u2018\u2019`、。「」『』।"


@dataclass(frozen=True)
class Overlap:
    """A training text and a test text, by their places, and the words that they share first."""

    train: int
    test: int
    words: str


def overlaps(train: Sequence[str], test: Sequence[str], ngram: int = 10) -> list[Overlap]:
    """The pairs of a training and a test text that share `ngram` words in a row, or all words of
    the test text if it has fewer, but three at least. Each pair comes once."""
    held_out: dict[int, dict[tuple[str, ...], list[int]]] = defaultdict(lambda: defaultdict(list))
    for place, text in enumerate(test):
        words = words_of(text)
        size = min(len(words), ngram)
        if size >= min(FEWEST, ngram):
            for gram in dict.fromkeys(grams(words, size)):
                held_out[size][gram].append(place)
    found = []
    for place, text in enumerate(train):
        words, pairs = words_of(text), {}
        for size, known in held_out.items():
            for gram in grams(words, size):
                for other in known.get(gram, ()):
                    pairs.setdefault(other, Overlap(place, other, " ".join(gram)))
        found += pairs.values()
    return found


def grams(words: list[str], size: int) -> list[tuple[str, ...]]:
    """All runs of `size` words, in order."""
    return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]


def words_of(text: str) -> list[str]:
    """The words of a text without case and the punctuation around them; of scripts without spaces,
    the characters."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    apart = UNSPACED.sub(r" \1 ", folded)
    return [word for part in apart.split() if (word := part.strip(PUNCTUATION))]


def check_sets(
    train: str, test: str, data: DataConfig, *, field: str, ngram: int, shown: int
) -> tuple[int, str]:
    """How many questions of the training set are contaminated, and what a person wants to read.

    A set is named as `read_questions` says.

    Raises:
      ValueError: a set cannot be read.
    """
    (questions, notes), (held_out, more) = (read_questions(s, data, field) for s in (train, test))
    pairs = overlaps(questions, held_out, ngram)
    short = sum(len(words_of(text)) < min(FEWEST, ngram) for text in held_out)
    hit, of = len({pair.train for pair in pairs}), len({pair.test for pair in pairs})
    lines = [
        *dict.fromkeys((*notes, *more)),
        f"{hit} of {len(questions)} in {train} share {ngram} words in a row, or a whole shorter "
        f"question, with {of} of {len(held_out)} in {test}",
        *([f"{short} of {len(held_out)} in {test} are too short to compare"] if short else []),
        *(
            f"{train} {p.train} and {test} {p.test}, counted from 0: {p.words[:200]}"
            for p in pairs[:shown]
        ),
    ]
    return hit, "\n".join(lines)


def read_questions(name: str, data: DataConfig, field: str) -> tuple[list[str], tuple[str, ...]]:
    """The questions of a set, and notes on what was left out.

    `name` is a file of JSON lines, whose questions stand under `field`, or TASK:SPLIT, as in
    `gsm8k:train`, with the task's folder behind an @ or in `data.dir`.

    Raises:
      ValueError: there is no such set, or it cannot be read.
    """
    if Path(name).is_file():
        return read_file(Path(name), data, field)
    named, _, folder = name.partition("@")
    task_name, colon, split = named.rpartition(":")
    if not colon or split not in SPLITS:
        raise ValueError(
            f"a set must be a file, or TASK:SPLIT with a split of {', '.join(SPLITS)}, got {name!r}"
        )
    task = load_task(task_name, dataclasses.replace(data, dir=folder) if folder else data)
    if not task.splits[split]:
        raise ValueError(f"set {name} must have questions, got none")
    return [example.question or example.prompt for example in task.splits[split]], task.notes


def read_file(path: Path, data: DataConfig, field: str) -> tuple[list[str], tuple[str, ...]]:
    """The questions of a file of JSON lines."""
    questions, faults = [], []
    for number, (text, fault) in enumerate(read_rows(path), start=1):
        fields, fault = (
            ({}, fault)
            if fault
            else parsed(lambda row: {"question": text_of(json_row(row), field)}, text)
        )
        if fault:
            faults.append(f"{path}, row {number} {fault}")
        else:
            questions.append(fields["question"])
    return questions, malformed(faults, data.max_malformed)
