"""Repetition: a penalty on phrases that a completion says again.

After "Demystifying Long Chain-of-Thought Reasoning" (arXiv 2502.03373, appendix C.2), which takes
from each token of a repeated n-gram; here it is one number, the share of n-grams that are repeats.
"""

from grpojax.task import Example, Reward


def repetition_penalty(words: int, most: float = 1.0) -> Reward:
    """A reward from 0.0, nothing said twice, towards `-most`, all said before.

    It is `-most` times the share of the completion's runs of `words` words that occurred earlier
    in it; upper and lower case are one. Texts with fewer words than that repeat nothing.

    Raises:
      ValueError: `words` is not above 0, or `most` is negative.
    """
    if words <= 0 or most < 0:
        raise ValueError(f"words must be above 0 and most 0 or more, got {words} and {most}")

    def repetition(example: Example, completion: str) -> float:
        said = completion.lower().split()
        runs = list(zip(*(said[start:] for start in range(words))))
        return -most * (1 - len(set(runs)) / len(runs)) if runs else 0.0

    return repetition
