"""Few-shot addition: plain sums for a pretrained model that was never taught tags or templates.

The prompt shows two solved sums and leaves a third open, so that the model's habit of continuing a
pattern is all that a right answer needs. The splits are those of `grpojax.tasks.addition`.
"""

from grpojax.config import DataConfig
from grpojax.rewards.accuracy import first_integer, first_number_of
from grpojax.task import Example, Task
from grpojax.tasks.addition import pair_id, split_pairs

SHOWN = ((12, 34), (56, 17))  # the solved sums of every prompt; they are in no split


def make(data: DataConfig) -> Task:
    """The task: two lines `a + b = c`, then `a + b =`; judged by the first number before a newline.

    A completion should stop at a newline (`sampling.stop`). Reads no files.
    """
    solved = "".join(f"{a} + {b} = {a + b}\n" for a, b in SHOWN)
    taken = {frozenset(pair) for pair in SHOWN}
    return Task(
        splits={
            name: [
                Example(id=pair_id(a, b), prompt=f"{solved}{a} + {b} =", answer=str(a + b))
                for a, b in pairs
                if frozenset((a, b)) not in taken
            ]
            for name, pairs in split_pairs().items()
        },
        rewards={"accuracy": first_integer},
        extract=first_number_of,
    )
