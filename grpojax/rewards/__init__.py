"""Rewards: plain functions of an example and a completion, chosen by name.

A completion that a reward cannot judge becomes invalid; it never turns into a zero, which would be
an opinion about it. Imports no jax.
"""

import numbers
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf, isnan

import numpy as np
from jaxtyping import Bool, Float

from grpojax.names import find_function
from grpojax.task import Example, Reward, Task

LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The rewards of B prompts' G completions. What is not `valid` holds 0 everywhere else."""

    by_name: dict[str, Float[np.ndarray, "B G"]]  # float32, unweighted
    total: Float[np.ndarray, "B G"]  # float32, the weighted sum
    valid: Bool[np.ndarray, "B G"]  # every reward gave one finite number
    failure: str = ""  # what the first reward that did not give one did; empty if all did


def compute_rewards(
    rewards: dict[str, Reward],
    weights: Sequence[float],
    examples: Sequence[Example],
    texts: Sequence[Sequence[str]],
) -> Judged:
    """Judges `texts`, B groups of G decoded completions, one group for each of the B `examples`.

    `weights` are in the order of `rewards`. A reward that raises, or returns anything but one
    number that float32 holds (True and False are 1 and 0), makes that completion invalid.

    Raises:
      ValueError: there are not as many weights as rewards, or groups as examples, or the groups
        differ in size.
    """
    sizes = {len(group) for group in texts}
    if len(texts) != len(examples) or len(sizes) != 1 or len(weights) != len(rewards):
        raise ValueError(
            f"{len(examples)} examples and {len(rewards)} rewards need as many groups of one size "
            f"and as many weights, got {len(texts)} groups of sizes {sorted(sizes)} and "
            f"{len(weights)} weights"
        )
    shape = len(texts), sizes.pop()
    values = np.zeros((len(rewards), *shape), np.float32)
    total, valid = np.zeros(shape, np.float32), np.ones(shape, bool)
    failure = ""
    for row, (example, group) in enumerate(zip(examples, texts)):
        for member, text in enumerate(group):
            try:
                judged = [judge(name, reward, example, text) for name, reward in rewards.items()]
                weighted = zip(weights, judged)
                total[row, member] = one_number("sum of rewards", sum(w * v for w, v in weighted))
                values[:, row, member] = judged
            except RewardFailed as error:
                valid[row, member] = False
                failure = failure or f"{error} for a completion of example {example.id}"
    return Judged(by_name=dict(zip(rewards, values)), total=total, valid=valid, failure=failure)


class RewardFailed(Exception):
    """A reward did not give one finite number; the message names it and says what it gave."""


def judge(name: str, reward: Reward, example: Example, text: str) -> float:
    """The value of one reward of one completion.

    Raises:
      RewardFailed: the reward raised, or gave anything but one number that float32 holds.
    """
    try:
        value = reward(example, text)
    except Exception as error:  # a user's code: whatever it raises concerns one completion
        raise RewardFailed(f"reward {name!r} raised {type(error).__name__}: {error}") from error
    return one_number(f"reward {name!r}", value)


def one_number(what: str, value: object) -> float:
    """`value` as a float.

    Raises:
      RewardFailed: it is not one number, not finite, or beyond float32.
    """
    if not isinstance(value, numbers.Real | np.bool_):
        raise RewardFailed(f"{what} must be one number, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        number = inf
    if not abs(number) <= LARGEST:
        given = "nan" if isnan(number) else "a number beyond float32"
        raise RewardFailed(f"{what} must be finite, got {given}")
    return number


def choose_rewards(names: Iterable[str], task: Task) -> dict[str, Reward]:
    """The rewards that a config names, in its order: the task's own names, or "module:function".

    The metric of a `module:function` is called as the function.

    Raises:
      ValueError: a name is unknown, or two rewards would share a metric's name.
    """
    chosen: dict[str, Reward] = {}
    for name in names:
        reward = find_function("reward", name, task.rewards)
        metric = name.rpartition(":")[2]
        if metric in chosen:
            raise ValueError(
                f"rewards must differ in name (their metrics would mix), got {metric!r} twice; "
                "rename one"
            )
        chosen[metric] = reward
    return chosen
