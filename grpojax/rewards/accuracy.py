"""Accuracy: does a completion arrive at the example's answer? 1.0 or 0.0, by three ways to read it.

Numbers are compared as text in one canonical form: exact for any size, and a number of a hundred
thousand digits costs no more than reading it. Only ASCII digits are digits here.
"""

import re

from grpojax.rewards.format import inside
from grpojax.task import Example

# A minus after a word, a number or a bracket subtracts; elsewhere it is a sign.
NUMBER = re.compile(
    r"(?:(?<![\w)])[-+])?\$?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?"
)
MARKED = re.compile(r"####\s*(" + NUMBER.pattern + ")")


def exact_answer(example: Example, completion: str) -> float:
    """1.0 if the text inside the only `<answer>...</answer>` is the answer, spaces around aside.

    Raises:
      ValueError: the example has no answer.
    """
    if not example.answer:
        raise ValueError(f"example {example.id} must have an answer, got {example.answer!r}")
    text = inside("answer", completion)
    return float(text is not None and text.strip() == example.answer)


def first_integer(example: Example, completion: str) -> float:
    """1.0 if the first number before the first newline is the answer.

    Raises:
      ValueError: the example's answer is not a number.
    """
    answer, (line, _, _) = answer_number(example), completion.partition("\n")
    match = NUMBER.search(line)
    return float(match is not None and canonical(match[0]) == answer)


def last_number(example: Example, completion: str) -> float:
    """1.0 if the number after the last `####` is the answer; without such a mark, the last number.

    Thousands commas, a dollar sign, a plus and zeros that change nothing do not count: `$1,085.0`
    is 1085.

    Raises:
      ValueError: the example's answer is not a number.
    """
    answer = answer_number(example)
    numbers = MARKED.findall(completion) or NUMBER.findall(completion)
    return float(bool(numbers) and canonical(numbers[-1]) == answer)


def boxed_answer(example: Example, completion: str) -> float:
    """1.0 if what the completion boxes last is the answer, spaces aside.

    Raises:
      ValueError: the example has no answer.
    """
    if not example.answer:
        raise ValueError(f"example {example.id} must have an answer, got {example.answer!r}")
    found = boxed(completion)
    return float(found is not None and found.split() == example.answer.split())


def boxed(text: str) -> str | None:
    """What stands between the braces of the last box, or None if nothing does."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    start += len("\\boxed{")
    depth = 1
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[start:end]
    return None


def answer_number(example: Example) -> str:
    """The example's answer in canonical form.

    Raises:
      ValueError: the answer is not one number: nothing could be right, nor may it be by accident.
    """
    if not isinstance(example.answer, str) or not NUMBER.fullmatch(example.answer):
        raise ValueError(
            f"the answer of example {example.id} must be a number, got {example.answer!r}"
        )
    return canonical(example.answer)


def canonical(number: str) -> str:
    """The shortest text of a number that `NUMBER` matched: "-$1,085.50" gives "-1085.5"."""
    whole, _, fraction = number.lstrip("+-$").replace(",", "").partition(".")
    whole, fraction = whole.lstrip("0") or "0", fraction.rstrip("0")
    digits = f"{whole}.{fraction}" if fraction else whole
    return f"-{digits}" if number.startswith("-") and digits != "0" else digits
