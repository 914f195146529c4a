"""Reasoning: problems of reasoning-gym, made and scored in worker processes.

A problem is a function of its generator's name (an example's category) and its number (the id), so
a worker makes it again to score it. Some generators depend on the order of sets, which is one in
every worker, or on Python's own generator of random numbers, which is seeded here.
"""

import functools
import random
from typing import Any

from grpojax.rewards.accuracy import tagged_answer
from grpojax.task import Example, killable, prepared

SEED = 0
PROBLEMS = 10_000  # of a generator; a few differ with it, and some have no more
# What scorers raise for answers that they cannot read.
UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError)


def open_package() -> None:
    """Imports reasoning-gym, which takes most of a second."""
    import reasoning_gym  # noqa: F401


@functools.cache
def open_generator(name: str) -> Any:
    """A generator of reasoning-gym with its own default difficulty."""
    import reasoning_gym

    return reasoning_gym.create_dataset(name, seed=SEED, size=PROBLEMS)


def make_problem(name: str, number: int) -> dict[str, Any]:
    """A problem as reasoning-gym has it: `question`, `answer` and `metadata`."""
    generator = open_generator(name)
    random.seed(number)
    return generator[number]


@killable
@prepared(open_package)
def question_and_answer(example: Example, completion: str) -> list[str]:
    """The question and the answer of the problem that the example names; its own are not read."""
    problem = make_problem(example.category, example.id)
    return [problem["question"], str(problem["answer"] or "")]


@killable
@prepared(open_package)
def reasoning_score(example: Example, completion: str) -> float:
    """What reasoning-gym gives for the text inside the only `<answer>`, from 0.0 to 1.0.

    Some of its scorers give a part for an answer that is partly right, or well formed. Without such
    a text, or with one that the scorer cannot read, it is 0.0.

    Raises:
      ValueError: the problem is no longer the example's: reasoning-gym is another version.
    """
    problem = make_problem(example.category, example.id)
    if problem["question"] != example.question:
        raise ValueError(
            f"example {example.id} of {example.category} must be the same when it is made again"
        )
    answer = tagged_answer(completion)
    if answer is None:
        return 0.0
    try:
        return float(open_generator(example.category).score_answer(answer, problem))
    except UNREADABLE:
        return 0.0


@killable
@prepared(open_package)
def reasoning_solved(example: Example, completion: str) -> float:
    """1.0 if reasoning-gym gives the whole score, see `reasoning_score`."""
    return float(reasoning_score(example, completion) >= 1.0)
