"""Countdown: does an expression of the given numbers, each used once, make the target?

The expression is read into Python's syntax tree and only sums, differences, products and quotients
of plain integers are worked out, in exact fractions. Nothing is evaluated.
"""

import ast
import collections
import operator
import re
from fractions import Fraction

from grpojax.rewards.accuracy import tagged_answer
from grpojax.task import Example

PROBLEM = re.compile(r"(?P<target>[0-9]+) from (?P<numbers>[0-9]+(?: [0-9]+)*)")
ALLOWED = re.compile(r"[-+*/() 0-9]*")
LONGEST, DEEPEST = 200, 20  # characters of an expression, and brackets open at once
OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def countdown(example: Example, completion: str) -> float:
    """1.0 if the only `<answer>` holds an expression of the given numbers that makes the target.

    The example's answer is the problem, "24 from 4 6 8 2". Each given number is used exactly once
    (twice if it is given twice), joined by `+ - * /` and parentheses; there are no signs, no other
    numbers, and no `= 24` behind. Expressions of more than 200 characters or with more than 20
    brackets open at once are wrong unread.

    Raises:
      ValueError: the example's answer is no such problem.
    """
    problem = PROBLEM.fullmatch(example.answer or "")
    if problem is None:
        raise ValueError(
            f"the answer of example {example.id} must be like '24 from 4 6 8 2', got "
            f"{example.answer!r}"
        )
    text = tagged_answer(completion) or ""
    try:
        value, used = work_out(text)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return 0.0
    given = collections.Counter(int(number) for number in problem["numbers"].split())
    return float(collections.Counter(used) == given and value == int(problem["target"]))


def work_out(text: str) -> tuple[Fraction, list[int]]:
    """The value of an expression and the numbers in it.

    Raises:
      SyntaxError, ValueError: it is no such expression, or too long, or too deep.
      ZeroDivisionError: it divides by 0.
    """
    if len(text) > LONGEST or not ALLOWED.fullmatch(text):
        raise ValueError("not an expression of at most 200 characters")
    depth = 0
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth > DEEPEST:
            raise ValueError("more than 20 brackets open at once")
    numbers: list[int] = []

    def value(node: ast.expr) -> Fraction:
        match node:
            case ast.BinOp(left, kind, right) if type(kind) in OPERATORS:
                return OPERATORS[type(kind)](value(left), value(right))
            case ast.Constant(int(number)):
                numbers.append(number)
                return Fraction(number)
        raise ValueError(f"no {type(node).__name__} is allowed")

    return value(ast.parse(text, mode="eval").body), numbers
