"""Countdown: make a target from given numbers, each used exactly once, with + - * / and parentheses
(the task of TinyZero).

Every problem was made from a solution. The splits are fixed: no two of them share a target with the
same numbers, in whatever order.
"""

from grpojax.config import DataConfig
from grpojax.rewards.accuracy import tagged_answer
from grpojax.rewards.countdown import countdown
from grpojax.rewards.format import layout_followed
from grpojax.task import Example, Task
from grpojax.tasks.draws import draw, splits_of

DRAWN = 32768  # problems before those without a solution, or that occur twice, are left out
TEST, VALIDATION = 512, 256
LARGEST_NUMBER, LARGEST_TARGET = 25, 100
PROMPT = (
    "Use {numbers}, each exactly once, with + - * / and parentheses, to make {target}.\n"
    "Reason between <think> and </think>, "
    "then give the expression alone between <answer> and </answer>.\n"
)


def make(data: DataConfig) -> Task:
    """The task; three or four numbers are the categories. Reads no files.

    An example's answer is the target and the numbers, as in `24 from 4 6 8 2`.
    """
    problems = [problem for i in range(DRAWN) if (problem := drawn_problem(i))]
    splits = splits_of(
        [key(numbers, target) for numbers, target, _, _ in problems], TEST, VALIDATION
    )
    return Task(
        splits={k: [example(place, *problems[place]) for place in v] for k, v in splits.items()},
        rewards={"accuracy": countdown, "format": layout_followed},
        extract=tagged_answer,
    )


def drawn_problem(i: int) -> tuple[list[int], int, str, list[str]] | None:
    """The i-th problem: its numbers, target, an expression that makes it, and the steps to that.

    None if a step of what was drawn is below 0 or not whole, or the target is 0 or too large.
    """
    more, *numbers = draw(f"countdown {i}", 2, *[LARGEST_NUMBER] * 4)
    numbers = [number + 1 for number in numbers[: 3 + more]]
    terms = [(number, str(number)) for number in numbers]  # values with their expressions
    steps = []
    for step in range(len(numbers) - 1):
        first, second, sign = draw(f"countdown {i}, {step}", len(terms), len(terms) - 1, 4)
        (a, left), (b, right) = terms.pop(first), terms.pop(second)
        if (sign == 1 and a < b) or (sign == 3 and (not b or a % b)):
            return None
        value = [a + b, a - b, a * b, a // (b or 1)][sign]
        terms.append((value, f"({left}{'+-*/'[sign]}{right})"))
        steps.append(f"{a}{'+-*/'[sign]}{b}={value}")
    ((target, expression),) = terms
    return (numbers, target, expression[1:-1], steps) if 1 <= target <= LARGEST_TARGET else None


def key(numbers: list[int], target: int) -> str:
    """What two problems share that are the same but for the order of the numbers."""
    return f"{target} from {' '.join(map(str, sorted(numbers)))}"


def example(id: int, numbers: list[int], target: int, expression: str, steps: list[str]) -> Example:
    """The problem as an example, with the steps of its solution as the reasoning to imitate."""
    return Example(
        id=id,
        prompt=PROMPT.format(numbers=", ".join(map(str, numbers)), target=target),
        answer=f"{target} from {' '.join(map(str, numbers))}",
        completion=f"<think>{' '.join(steps)}</think><answer>{expression}</answer>",
        question=key(numbers, target),
        category=f"{len(numbers)} numbers",
    )
