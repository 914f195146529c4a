"""Task: a set of problems with the rewards that judge a completion. Imports no jax.

A task is a plain function that returns a `Task`; a config names it (`module:function`), so a task
of the user's needs no change to the package. A reward is a plain function of one example and one
completion.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


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


Reward = Callable[[Example, str], float]
"""`reward(example, completion) -> float`: `completion` is the decoded text without the token that
ended it.

Raising, or returning NaN or anything but one number, makes the completion invalid, never zero.
"""


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
