"""Task: a set of problems with the rewards that judge a completion. Imports no jax.

A task is a plain function that returns a `Task`; a config names it (`module:function`), so a task
of the user's needs no change to the package. A reward is a plain function of one example and one
completion.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Example:
    """One problem. `id` is unique over the task's splits and seeds every draw for the example."""

    id: int
    prompt: str  # the text the policy completes, ready to be tokenized
    answer: str  # what a right completion arrives at
    # a worked solution to imitate in the supervised stage, where the task has one
    completion: str = ""
    # the problem without what all prompts share, by which sets are compared; empty: the prompt
    question: str = ""
    category: str = ""  # kind of problem; evaluation reports accuracy by it where a task has some
    # the same text in every version of one problem, such as its longer tellings; empty: no versions
    origin: str = ""


Reward = Callable[[Example, str], Any]
"""`reward(example, completion) -> float`: `completion` is the decoded text without the token that
ended it.

Raising, or returning NaN or anything but one number, is a failure: by default it makes the
completion invalid, never zero. Plain rewards are called from several threads; an `async def` is
awaited beside its other calls. See also `batched`, `killable` and `prepared`.
"""


def batched(reward: Callable) -> Callable:
    """Decorator: the reward is called once for all completions of a step.

    It takes a list of examples and the list of their completions, as long, an example once for each
    of its completions, and returns as many numbers in the same order.

    Raises:
      ValueError: it is asynchronous.
    """
    if inspect.iscoroutinefunction(reward):
        raise ValueError(f"a batched reward must not be async, got {reward.__qualname__}")
    reward.kind = "batched"
    return reward


def killable(reward: Reward) -> Reward:
    """Decorator: the reward is called in worker processes, killed when they exceed the time limit.

    Workers import it by name, so it stands in a module that is quick to import. They have as much
    memory as `judging.worker_memory` says, and nothing of the environment's variables.

    Raises:
      ValueError: it is asynchronous, or cannot be imported by name.
    """
    name = f"{reward.__module__}:{reward.__qualname__}"
    if inspect.iscoroutinefunction(reward) or "." in reward.__qualname__:
        raise ValueError(f"a killable reward must be a plain function of a module, got {name}")
    reward.kind, reward.imported = "killable", name
    return reward


def prepared(prepare: Callable[[], None]) -> Callable[[Callable], Callable]:
    """Decorator: `prepare` is called once before the reward is, outside of any time limit.

    It runs before anything compiles, where it may refuse by a ValueError; for a killable reward it
    runs in each worker as that starts.
    """

    def mark(reward: Callable) -> Callable:
        reward.prepare = prepare
        return reward

    return mark


StepReward = Callable[[Example, Sequence[str]], Sequence[float]]
"""`step_reward(example, steps) -> floats`, one for each step of a completion, for process
supervision. Raising, or returning anything else, makes the completion invalid."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Examples by split and rewards by name.

    `splits` holds "train", "validation" and "test", each with examples of its own; without "train"
    the task is for evaluation. `rewards` holds at least "accuracy" (1.0 for a right completion,
    else 0.0), which evaluation reports. A config chooses among the rewards and weighs them.
    """

    splits: dict[str, Sequence[Example]]
    rewards: dict[str, Reward]
    # the answer that a completion gives, in one canonical form, or None: maj@k votes over it
    extract: Callable[[str], str | None] | None = None
    notes: tuple[str, ...] = ()  # what was read, left out or cut, a line each; a run says them
