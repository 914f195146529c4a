"""DataConfig: where a task's examples come from, and what becomes of rows and prompts that do not
fit."""

import re
from dataclasses import dataclass, field
from typing import Literal

from grpojax.checks import require, require_fields, require_positive


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where a task's files are and how they are read; tasks that make their examples read none."""

    dir: str = ""  # folder with the data set's files as published
    cache: str = "~/tensorflow_datasets"  # where TFDS keeps the records it makes of them
    # parts of the data set: languages of mgsm, rounds of egsm, generators of reasoning_gym
    subset: tuple[str, ...] = ()
    sha256: dict[str, str] = field(default_factory=dict)  # digests that files must have, by name
    max_malformed: int = 10  # rows that may be left out as unreadable, counted and named
    # of more than prompt_length tokens: refused; or drop leaves training examples out and truncates
    # held-out ones; or truncate keeps the last prompt_length tokens
    long_prompts: Literal["refuse", "drop", "truncate"] = "refuse"
    generated: int = 2048  # training problems that reasoning_gym makes
    prompt_field: str = "prompt"  # of a row of the task jsonl: the question
    answer_field: str = "answer"  # of such a row: text or a number
    completion_field: str = ""  # of such a row: a worked solution to imitate; empty: none
    category_field: str = ""  # of such a row: kind of problem; empty: none
    template: str = "{prompt}"  # what the task jsonl makes of a question to be the prompt
    # what the task jsonl compares with the answer: a completion's last number, the text between
    # <answer> and </answer>, or what \boxed{} holds
    answers: Literal["number", "tagged", "boxed"] = "number"

    def __post_init__(self):
        require_fields(self)
        require_positive(self, "generated")
        require(
            self.max_malformed >= 0, f"max_malformed must be 0 or more, got {self.max_malformed}"
        )
        for file, digest in self.sha256.items():
            hexadecimal = isinstance(digest, str) and re.fullmatch("[0-9a-fA-F]{64}", digest)
            require(bool(hexadecimal), f"sha256 of {file} must be 64 hex digits, got {digest!r}")
        require(
            self.template.count("{prompt}") == 1,
            f"template must hold {{prompt}} once, got {self.template!r}",
        )
