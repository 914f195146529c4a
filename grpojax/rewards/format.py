"""Format: is a completion laid out as DeepSeek-R1 asks (arXiv 2501.12948, table 1)?

The layout is reasoning and answer, each between its own pair of tags:
`<think> ... </think><answer> ... </answer>`.
"""

import re

from grpojax.task import Example

LAYOUT = ["<think>", "</think>", "<answer>", "</answer>"]
TAG = re.compile(r"(</?(?:think|answer)>)")


def layout_followed(example: Example, completion: str) -> float:
    """1.0 if the four tags stand once each, in order, around some text and nothing else, else 0.0.

    White space is allowed before, between and after the two parts.
    """
    pieces = TAG.split(completion)  # texts at even places, tags at odd ones
    if pieces[1::2] != LAYOUT:
        return 0.0
    before, reasoning, between, answer, after = (text.strip() for text in pieces[::2])
    return float(bool(reasoning and answer) and not (before or between or after))


def inside(tag: str, completion: str) -> str | None:
    """The text between the only `<tag>` and the only `</tag>`; None if there is no such pair.

    Two openings or closings leave open which text is meant: a completion that offers several
    answers has none.
    """
    opening, closing = f"<{tag}>", f"</{tag}>"
    if completion.count(opening) != 1 or completion.count(closing) != 1:
        return None
    before, _, _ = completion.partition(closing)
    _, opened, text = before.partition(opening)
    return text if opened else None
