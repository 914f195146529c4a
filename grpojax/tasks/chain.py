"""Chain: a number and operations one after another, for a policy that starts from nothing.

Each operation applies to what came before: `7 +5 *3 -4` is 7, 12, 36, 32. The splits are fixed and
have no chain in common.
"""

from grpojax.config import DataConfig
from grpojax.rewards.accuracy import exact_answer, tagged_answer
from grpojax.rewards.format import layout_followed
from grpojax.task import Example, Task
from grpojax.tasks.draws import draw, splits_of

DRAWN = 8192  # chains before those that occur twice are left out
TEST, VALIDATION = 512, 256
LARGEST = 99  # no result on the way is larger, or below 0


def make(data: DataConfig) -> Task:
    """The task: prompt `7 +5 *3 =`, answer `36`, each operation worked; two to five operations are
    the categories. Reads no files."""
    chains = [drawn_chain(i) for i in range(DRAWN)]
    splits = splits_of([" ".join(words) for words in chains], TEST, VALIDATION)
    return Task(
        splits={k: [solved(place, chains[place]) for place in v] for k, v in splits.items()},
        rewards={"accuracy": exact_answer, "format": layout_followed},
        extract=tagged_answer,
    )


def drawn_chain(i: int) -> list[str]:
    """The i-th chain, as in ["7", "+5", "*3"]."""
    operations, value = draw(f"chain {i}", 4, 10)
    words = [str(value)]
    for step in range(operations + 2):
        sign, number = draw(f"chain {i}, {step}", 3, 9)
        choices = [("+-*"[(sign + turn) % 3], number + 1) for turn in range(3)]
        within = [(s, n) for s, n in choices if 0 <= result(value, s, n) <= LARGEST]
        chosen, number = within[0]  # one of + and - always stays within
        value = result(value, chosen, number)
        words.append(f"{chosen}{number}")
    return words


def result(value: int, sign: str, number: int) -> int:
    """One operation applied."""
    return {"+": value + number, "-": value - number, "*": value * number}[sign]


def solved(id: int, words: list[str]) -> Example:
    """The chain as an example, with each operation worked."""
    value, steps = int(words[0]), []
    for word in words[1:]:
        before, value = value, result(value, word[0], int(word[1:]))
        steps.append(f"{before}{word}={value}")
    return Example(
        id=id,
        prompt=f"{' '.join(words)} =",
        answer=str(value),
        completion=f"<think>{' '.join(steps)}</think><answer>{value}</answer>",
        category=f"{len(words) - 1} operations",
    )
