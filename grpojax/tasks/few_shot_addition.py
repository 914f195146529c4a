"""Few-shot addition: plain sums for a pretrained model that was never taught tags or templates.

The prompt shows two solved sums and leaves a third open, so that the model's habit of continuing a
pattern is all that a right answer needs. The splits are those of `grpojax.tasks.addition`.
"""

import hashlib

from grpojax.config import DataConfig
from grpojax.rewards.accuracy import first_integer
from grpojax.task import Example, Task
from grpojax.tasks.addition import Pair, pair_id, split_pairs


def make(data: DataConfig) -> Task:
    """The task: two lines `a + b = c`, then `a + b =`; judged by the first number before a newline.

    A completion should stop at a newline (`sampling.stop`). Reads no files.
    """
    pairs = split_pairs()
    return Task(
        splits={
            name: [open_sum(pair, pairs["train"]) for pair in members]
            for name, members in pairs.items()
        },
        rewards={"accuracy": first_integer},
    )


def open_sum(pair: Pair, train: list[Pair]) -> Example:
    """The sum as the last line of a prompt, below two solved sums of `train` that its id draws."""
    a, b = pair
    start = int.from_bytes(hashlib.sha256(str(pair_id(a, b)).encode()).digest()) % len(train)
    # The sum itself and its mirror image may stand among the next four, at most once each.
    following = (train[(start + i) % len(train)] for i in range(4))
    first, second, *_ = (other for other in following if set(other) != {a, b})
    shown = "".join(f"{c} + {d} = {c + d}\n" for c, d in (first, second))
    return Example(id=pair_id(a, b), prompt=f"{shown}{a} + {b} =", answer=str(a + b))
