"""Length: long reasoning is worth it when wrong, and costs when right.

The cosine reward of "Demystifying Long Chain-of-Thought Reasoning" (arXiv 2502.03373, section 4),
over words, as a text has no tokens; the penalty of DAPO for overlong completions counts tokens and
is not here.
"""

import math

from grpojax.task import Example, Reward


def cosine_length(
    accuracy: Reward,
    *,
    most_words: int,
    right: tuple[float, float] = (2.0, 1.0),
    wrong: tuple[float, float] = (-10.0, 0.0),
    too_long: float = -10.0,
) -> Reward:
    """A reward that goes from the first of a pair to the second as a completion grows.

    It follows half a cosine, from 0 words to `most_words`; `right` is for completions to which
    `accuracy` (a plain reward) gives more than 0. At `most_words` or more it is `too_long`,
    whatever they say. Defaults are the paper's.

    Raises:
      ValueError: `most_words` is not above 0.
    """
    if most_words <= 0:
        raise ValueError(f"most_words must be above 0, got {most_words}")

    def length(example: Example, completion: str) -> float:
        words = len(completion.split())
        if words >= most_words:
            return too_long
        short, long = right if accuracy(example, completion) > 0 else wrong
        return long + (short - long) * (1 + math.cos(math.pi * words / most_words)) / 2

    return length
