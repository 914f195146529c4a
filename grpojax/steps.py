"""Steps: the parts of a completion that process supervision rewards, found among its tokens.

A boundary (a newline, a tag) ends a step; what follows the last one is a step too. The rewards come
from a plain function of an example and the texts of all its steps.
"""

import bisect
import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from grpojax.rewards import Judged, RewardFailed, one_number
from grpojax.task import Example, StepReward
from grpojax.tokenizer import Tokenizer


def split_steps(
    tokenizer: Tokenizer, tokens: Sequence[int], boundary: str
) -> tuple[list[str], list[int]]:
    """Texts of the steps, and the index of each one's last token; the last is the last of all.

    The boundary belongs to the step that it ends. Where a token ends two steps at once they are
    one, and a step of white space belongs to the one before.
    """

    def boundaries(count: int) -> int:
        return tokenizer.decode(tokens[:count]).count(boundary)

    text, ends = tokenizer.decode(tokens), []
    for nth in range(1, text.count(boundary) + 1):
        # More tokens never hold fewer boundaries, so the one that completes the nth is bisected.
        ends.append(bisect.bisect_left(range(len(tokens)), nth, lo=1, key=boundaries))
    starts = [0, *ends]
    steps, indices = [], []
    for start, end in zip(starts, [*ends, len(tokens)]):
        part = tokenizer.decode(tokens[:end])[len(tokenizer.decode(tokens[:start])) :]
        if part.strip():
            steps.append(part)
            indices.append(end - 1)
    if indices:
        indices[-1] = len(tokens) - 1
    return steps, indices


def judge_steps(
    reward: StepReward,
    tokenizer: Tokenizer,
    boundary: str,
    stops: tuple[int, ...],
    examples: Sequence[Example],
    tokens: Int[np.ndarray, "B G T"],
    mask: Bool[np.ndarray, "B G T"],
    judged: Judged,
) -> tuple[Judged, Float[np.ndarray, "B G T"], Bool[np.ndarray, "B G T"]]:
    """Rewards of steps at their last tokens, where those are, and `judged` without the completions
    whose steps could not be judged.

    The stop token belongs to the last step.
    """
    values, ends = np.zeros(mask.shape, np.float32), np.zeros(mask.shape, bool)
    valid, failure = judged.valid.copy(), judged.failure
    for row, member in np.argwhere(valid):
        counted = tokens[row, member][mask[row, member]].tolist()
        body = counted[:-1] if counted[-1] in stops else counted
        steps, indices = split_steps(tokenizer, body, boundary)
        if indices:
            indices[-1] = len(counted) - 1
        try:
            given = reward(examples[row], steps)
            numbers = [one_number("a step's reward", value) for value in given]
            if len(numbers) != len(steps):
                raise RewardFailed(f"{len(steps)} steps need a reward each, got {len(numbers)}")
        except Exception as error:  # a user's code: whatever it raises concerns one completion
            valid[row, member] = False
            failure = failure or f"the step reward failed: {type(error).__name__}: {error}"
            continue
        values[row, member, indices], ends[row, member, indices] = numbers, True
    return dataclasses.replace(judged, valid=valid, failure=failure), values, ends
