"""Addition: two-digit sums with worked carries, for a policy that starts from nothing.

A sum and its mirror image (47+38 and 38+47) are always in the same split, so that no held-out sum
was seen in training. The splits are fixed: they depend on no seed and on no library's generator.
"""

import hashlib

from grpojax.config import DataConfig
from grpojax.rewards.accuracy import exact_answer, tagged_answer
from grpojax.rewards.format import layout_followed
from grpojax.rewards.language import language_consistency
from grpojax.task import Example, Task

Pair = tuple[int, int]

NUMBERS = range(10, 100)
TEST_PAIRS, VALIDATION_PAIRS = 512, 256  # of the 4095 unordered ones


def make(data: DataConfig) -> Task:
    """The task: prompt `47+38=`, answer `85`, and a short worked solution. Reads no files."""
    return Task(
        splits={name: [solved(*pair) for pair in pairs] for name, pairs in split_pairs().items()},
        rewards={
            "accuracy": exact_answer,
            "format": layout_followed,
            "language": language_consistency("latin"),
        },
        extract=tagged_answer,
    )


def split_pairs() -> dict[str, list[Pair]]:
    """The pairs (a, b) of two-digit numbers of each split, shuffled; with (a, b) comes (b, a)."""
    unordered = shuffled({(a, b) for a in NUMBERS for b in NUMBERS if a <= b})
    validation = TEST_PAIRS + VALIDATION_PAIRS
    parts = {
        "train": unordered[validation:],
        "validation": unordered[TEST_PAIRS:validation],
        "test": unordered[:TEST_PAIRS],
    }
    return {name: shuffled({*pairs, *((b, a) for a, b in pairs)}) for name, pairs in parts.items()}


def shuffled(pairs: set[Pair]) -> list[Pair]:
    """The pairs in a fixed order that has nothing to do with their values."""
    return sorted(pairs, key=lambda pair: hashlib.sha256("{}+{}".format(*pair).encode()).digest())


def pair_id(a: int, b: int) -> int:
    """The example id of a sum, readable: 4738 is 47+38."""
    return 100 * a + b


def solved(a: int, b: int) -> Example:
    """The sum as an example, with its solution worked digit by digit."""
    units, carry = a % 10 + b % 10, (a % 10 + b % 10) // 10
    tens = a // 10 + b // 10 + carry
    steps = f"units {a % 10}+{b % 10}={units} carry {carry} tens {a // 10}+{b // 10}+{carry}={tens}"
    return Example(
        id=pair_id(a, b),
        prompt=f"{a}+{b}=",
        answer=str(a + b),
        completion=f"<think>{steps}</think><answer>{a + b}</answer>",
    )
