r"""Math: is the answer of a completion equal, as mathematics, to the example's?

math-verify reads both as LaTeX and compares them with sympy: `\frac{1}{2}`, `0.5` and `50\%` are
one. Both libraries may take any time and memory, so this runs in worker processes; and sympy reads
numbers by evaluating Python, so that a guard refuses every evaluation but that of a number.
"""

import logging
import os
import re
import sys

from grpojax.rewards.accuracy import boxed, tagged_answer
from grpojax.task import Example, killable, prepared

LONGEST = 512  # characters of an answer
# Control characters, and marks that reorder or hide text.
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f]")
SHOWN = re.compile(r"\$\$(.+?)\$\$|\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
# Answers whose comparison makes sympy import what it imports lazily.
REHEARSAL = [
    (r"\int_0^1 x dx", r"\frac{1}{2}"),
    (r"\sin(x)^2", r"\sum_{k=1}^3 k"),
    ("x<3", "(1,2)"),
]
# All that sympy has Python evaluate to read an answer: its own names, and one number or symbol.
EVALUATED = re.compile(
    rb"\s*(from sympy import \*|(Integer|Float|Symbol)\s*\(\s*'?[\w.+-]*'?\s*\)|\w+)\s*"
)
HARMLESS = {"os.listdir", "os.scandir", "os.fork"}  # of those below: imports, and the worker
REFUSED = ("os.", "shutil.", "subprocess.", "socket.", "ctypes.", "pty.", "signal.")


def open_parser() -> None:
    """Imports math-verify, has it read once what it reads lazily, and raises the guard."""
    from math_verify import verify

    logging.disable()  # it warns that it has no time limit
    for gold, answer in REHEARSAL:
        verify(read_math(gold), read_math(answer), timeout_seconds=None)
    sys.addaudithook(guard)


@killable
@prepared(open_parser)
def math_answer(example: Example, completion: str) -> float:
    r"""1.0 if the completion's answer equals the example's, which is LaTeX, as mathematics.

    The completion's answer is what its last `\boxed{}` holds; without a box, what the only
    `<answer>` holds; without both, the last formula between dollars or LaTeX's brackets. A box that
    never closes, an answer of more than 512 characters, or one with control characters in it is
    wrong, as is what math-verify cannot read. Decimals are compared to 6 places.

    Raises:
      ValueError: the example's answer cannot be read; nothing would be right.
    """
    from math_verify import verify

    gold = read_math(example.answer) if example.answer else []
    if not gold:
        raise ValueError(
            f"the answer of example {example.id} must be mathematics, got {example.answer!r}"
        )
    answer = final_answer(completion)
    if not answer or len(answer) > LONGEST or UNPRINTABLE.search(answer):
        return 0.0
    if answer.split() == example.answer.split():
        return 1.0
    # Time is the workers' affair: math-verify's own limit is an alarm, and counts as wrong.
    return float(verify(gold, read_math(answer), timeout_seconds=None))


def final_answer(completion: str) -> str | None:
    """The text of a completion's answer, see `math_answer`; None if it gives none."""
    if "\\boxed{" in completion:
        found = boxed(completion)
    elif (found := tagged_answer(completion)) is None:
        formulas = SHOWN.findall(completion)
        found = next(filter(None, formulas[-1])) if formulas else None
    return found.strip() if found else None


def read_math(text: str) -> list:
    """What math-verify reads in `text`; empty if it is not mathematics."""
    from math_verify import LatexExtractionConfig, parse

    # The reader of plain expressions hands text to Python; that of LaTeX has a grammar.
    how = [LatexExtractionConfig(boxed_match_priority=0)]
    whole = f"\\boxed{{{text}}}"
    return parse(whole, how, fallback_mode="no_fallback", parsing_timeout=None)


def guard(event: str, arguments: tuple) -> None:
    """An audit hook: nothing of an answer becomes code, and nothing is started, sent or written.

    Raises:
      PermissionError: something tries to.
    """
    if event == "compile":
        source, file = arguments
        text = source.encode() if isinstance(source, str) else source or b""
        allowed = not str(file).startswith("<") or EVALUATED.fullmatch(text)
    elif event == "open":
        _, _, flags = arguments
        allowed = not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    else:
        allowed = event in HARMLESS or not event.startswith(REFUSED)
    if not allowed:
        raise PermissionError(f"{event} is refused while answers are judged")
