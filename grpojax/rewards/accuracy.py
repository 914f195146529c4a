"""Accuracy: does a completion arrive at the example's answer? 1.0 or 0.0, by three ways to read it.

Numbers are compared as text in one canonical form: exact for any size, and a number of a hundred
thousand digits costs no more than reading it. Only ASCII digits are digits here. The functions that
find an answer are public: a task votes over what they find (`Task.extract`).
"""

import re

from grpojax.rewards.format import inside
from grpojax.task import Example

# A minus after a word, a number or a bracket subtracts; elsewhere it is a sign.
NUMBER = re.compile(
    r"(?:(?<![\w)])[-+])?\$?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?"
)
MARKED = re.compile(r"####\s*(" + NUMBER.pattern + ")")
LATEX_COMMA = re.compile(r"\{,\}|,\\!")  # thousands, set without the space after a comma


def exact_answer(example: Example, completion: str) -> float:
    """1.0 if the text inside the only `<answer>...</answer>` is the answer, spaces around aside.

    Raises:
      ValueError: the example has no answer.
    """
    if not example.answer:
        raise ValueError(f"example {example.id} must have an answer, got {example.answer!r}")
    return float(tagged_answer(completion) == example.answer)


def first_integer(example: Example, completion: str) -> float:
    """1.0 if the first number before the first newline is the answer.

    Raises:
      ValueError: the example's answer is not a number.
    """
    return float(first_number_of(completion) == answer_number(example))


def last_number(example: Example, completion: str) -> float:
    """1.0 if the number that the completion ends on (`last_number_of`) is the answer.

    Raises:
      ValueError: the example's answer is not a number.
    """
    return float(last_number_of(completion) == answer_number(example))


def tagged_answer(completion: str) -> str | None:
    """The stripped text inside the only `<answer>...</answer>`; None if there is none."""
    text = inside("answer", completion)
    return (text.strip() or None) if text is not None else None


def first_number_of(completion: str) -> str | None:
    """The first number before the first newline, in canonical form; None if there is none."""
    line, _, _ = completion.partition("\n")
    match = NUMBER.search(line)
    return canonical(match[0]) if match else None


def last_number_of(completion: str) -> str | None:
    r"""The number that a completion ends on, in canonical form; None if there is none.

    It is the number after the last `####`, as in GSM8K's solutions; without one that in the last
    `\boxed{}`, then the last inside the only `<answer>`, then the last of all. A box with several
    numbers is an expression, and no number.

    Thousands commas, a dollar sign, a plus and zeros that change nothing do not count: `$1,085.0`
    is 1085.
    """
    if marked := MARKED.findall(completion):
        return canonical(marked[-1])
    if in_box := NUMBER.findall(LATEX_COMMA.sub(",", boxed(completion) or "")):
        return canonical(in_box[0]) if len(in_box) == 1 else None
    numbers = NUMBER.findall(tagged_answer(completion) or "") or NUMBER.findall(completion)
    return canonical(numbers[-1]) if numbers else None


def boxed(text: str) -> str | None:
    r"""What stands between the braces of the last `\boxed{}`, or None if nothing does."""
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
