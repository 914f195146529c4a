"""Rewards: functions of an example and a completion, chosen by name, called and weighed.

A completion that a reward cannot judge becomes invalid; unless the config says so, it never turns
into a zero, which would be an opinion about it. Imports no jax.
"""

import numbers
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf, isnan
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from grpojax.config import JudgingConfig
from grpojax.names import find_function
from grpojax.rewards.calls import call_rewards, kind_of
from grpojax.rewards.failure import Failed
from grpojax.task import Example, Reward, Task

LARGEST = float(np.finfo(np.float32).max)
TURN = threading.Lock()  # a batch judged ahead and an evaluation share what calls their rewards


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The rewards of B prompts' G completions. What is not `valid` holds 0 everywhere else."""

    by_name: dict[str, Float[np.ndarray, "B G"]]  # float32, unweighted
    total: Float[np.ndarray, "B G"]  # float32, the weighted sum
    valid: Bool[np.ndarray, "B G"]  # every reward gave one finite number, or its failure counts 0
    failure: str = ""  # what the first reward that did not give one did; empty if all did
    counts: dict[str, int] = field(default_factory=dict)  # metrics of `calls.call_rewards`


def compute_rewards(
    rewards: dict[str, Reward],
    weights: Sequence[float],
    examples: Sequence[Example],
    texts: Sequence[Sequence[str]],
    judging: JudgingConfig,
) -> Judged:
    """Judges `texts`, B groups of G decoded completions, one group for each of the B `examples`.

    `weights` are in the order of `rewards`. A reward fails for a completion that it raises for,
    exceeds its time limit for, or gives anything for but one number that float32 holds (True and
    False are 1 and 0). `judging.on_failure` says what becomes of that completion. Nothing but a
    time limit makes the outcome depend on the order in which calls end. Safe to call from any
    thread; one batch is judged at a time.

    Raises:
      ValueError: there are not as many weights as rewards, or groups as examples, or the groups
        differ in size.
      RewardFailed: a reward failed and `on_failure` is "stop".
      RuntimeError: see `calls.call_rewards`.
    """
    sizes = {len(group) for group in texts}
    if len(texts) != len(examples) or len(sizes) != 1 or len(weights) != len(rewards):
        raise ValueError(
            f"{len(examples)} examples and {len(rewards)} rewards need as many groups of one size "
            f"and as many weights, got {len(texts)} groups of sizes {sorted(sizes)} and "
            f"{len(weights)} weights"
        )
    shape = len(texts), sizes.pop()
    cases = [(example, text) for example, group in zip(examples, texts) for text in group]
    with TURN:
        said, counts = call_rewards(list(rewards.values()), cases, judging)
    values = np.zeros((len(rewards), len(cases)), np.float32)
    total, valid = np.zeros(len(cases), np.float32), np.ones(len(cases), bool)
    failure = ""
    for i, (example, _) in enumerate(cases):
        judged, failed = [], []
        for name, results in zip(rewards, said):
            try:
                judged.append(one_number(f"reward {name!r}", results[i]))
            except RewardFailed as error:
                judged.append(0.0)
                failed.append(error)
        try:
            summed = one_number("sum of rewards", sum(w * v for w, v in zip(weights, judged)))
        except RewardFailed as error:
            summed = 0.0
            failed.append(error)
        if failed:
            why = f"{failed[0]} for a completion of example {example.id}"
            if judging.on_failure == "stop":
                raise RewardFailed(why)
            failure = failure or why
        valid[i] = not failed or judging.on_failure == "zero"
        if valid[i]:
            total[i], values[:, i] = summed, judged
    by_name = {name: row.reshape(shape) for name, row in zip(rewards, values)}
    total, valid = total.reshape(shape), valid.reshape(shape)
    return Judged(by_name=by_name, total=total, valid=valid, failure=failure, counts=counts)


class RewardFailed(Exception):
    """A reward did not give one finite number; the message names it and says what it gave."""


def one_number(what: str, value: Any) -> float:
    """`value` as a float.

    Raises:
      RewardFailed: it is a failure, not one number, not finite, or beyond float32.
    """
    if isinstance(value, Failed):
        raise RewardFailed(f"{what} {value.why}")
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

    The metric of a `module:function` is called as the function. What a reward asks to be prepared
    in this process is prepared here; so is the task's accuracy, which evaluation calls.

    Raises:
      ValueError: a name is unknown, two rewards would share a metric's name, or one cannot be
        prepared.
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
    for reward in dict.fromkeys([*chosen.values(), task.rewards["accuracy"]]):
        if kind_of(reward) != "killable":
            getattr(reward, "prepare", lambda: None)()
    return chosen
