"""Measures: what the answers to problems come to, one number for each name."""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Float

from grpojax.answers import Answer, Answered
from grpojax.coleg import coleg
from grpojax.estimates import (
    Measure,
    majority_at_k,
    mean_of,
    pass_at_k,
    restricted,
    standard_error,
)


def measure(
    answered: Sequence[Answered], k: Sequence[int], *, votes: bool = False
) -> dict[str, Measure]:
    """The measures of answered problems, by name.

    `accuracy`, and `format` and `language` if the task has such rewards: of the greedy completions;
    `length`, their tokens; `truncated`, the share that was cut at `completion_length`. The same of
    the samples as `sampled_accuracy` (avg@n) and so on, a mean for each problem first. `pass@k` for
    each of `k`, and with `votes` `maj@k` for k > 1. `accuracy/CATEGORY`, greedy, where the examples
    have categories, and what `coleg` makes of them.

    Completions that could not be judged count nowhere, nor do problems left with fewer than k.
    """
    greedy = over_problems([problem.greedy] for problem in answered)
    found = {name: mean_of(values) for name, values in greedy.items()}
    if all(problem.sampled for problem in answered):
        sampled = over_problems(problem.sampled for problem in answered)
        found |= {f"sampled_{name}": mean_of(values) for name, values in sampled.items()}
        judged = [[a for a in p.sampled if not np.isnan(a.rewards["accuracy"])] for p in answered]
        found |= {f"pass@{n}": mean_of(of_each(judged, n, passed)) for n in k}
        if votes:
            found |= {f"maj@{n}": mean_of(of_each(judged, n, voted)) for n in k if n > 1}
    categories = [problem.example.category for problem in answered]
    for category in sorted({*categories} - {""}):
        found[f"accuracy/{category}"] = restricted(
            found["accuracy"], np.array(categories) == category
        )
    origins = [problem.example.origin for problem in answered]
    return found | coleg(greedy["accuracy"].tolist(), categories, origins)


def over_problems(groups: Iterable[list[Answer]]) -> dict[str, Float[np.ndarray, "n"]]:
    """By name, the mean over each problem's completions; NaN where none could be judged."""
    rows = [[numbers(answer) for answer in group] for group in groups]
    return {name: np.array([mean([x[name] for x in row]) for row in rows]) for name in rows[0][0]}


def numbers(answer: Answer) -> dict[str, float]:
    return answer.rewards | {
        "length": float(answer.length),
        "truncated": float(answer.truncated),
    }


def mean(values: Sequence[float]) -> float:
    """The mean of those that are not NaN."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def of_each(
    problems: Sequence[list[Answer]], k: int, estimate: Callable[[list[Answer], int], float]
) -> Float[np.ndarray, "n"]:
    """An estimate for k from the samples of each problem; NaN where there are fewer than k."""
    return np.array([estimate(each, k) if len(each) >= k else math.nan for each in problems])


def passed(answers: list[Answer], k: int) -> float:
    return pass_at_k(len(answers), sum(is_right(answer) for answer in answers), k)


def voted(answers: list[Answer], k: int) -> float:
    return majority_at_k([a.extracted for a in answers], [is_right(a) for a in answers], k)


def is_right(answer: Answer) -> bool:
    return answer.rewards["accuracy"] > 0


def as_metrics(answered: Sequence[Answered], measures: dict[str, Measure]) -> dict[str, float]:
    """The value of every measure, and its standard error in `.._se`; `invalid` if it is not 0."""
    metrics = {}
    for name, each in measures.items():
        metrics |= {name: each.value, f"{name}_se": standard_error(each)}
    invalid = count_invalid(answered)
    return metrics | ({"invalid": float(invalid)} if invalid else {})


def count_invalid(answered: Sequence[Answered]) -> int:
    """Completions that could not be judged right or wrong."""
    completions = (answer for each in answered for answer in (each.greedy, *each.sampled))
    return sum(math.isnan(answer.rewards["accuracy"]) for answer in completions)
