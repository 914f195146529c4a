"""The Countdown reward: the given numbers, each once, joined by four operations."""

import pytest

from grpojax.rewards.countdown import countdown
from grpojax.task import Example


def problem(answer="24 from 4 6 8 2"):
    return Example(id=1, prompt="", answer=answer)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("(8 - 4) * 6 * (2 / 2)", 0.0),
        ("4 * (8 - 2) * 6 / 6", 0.0),
        ("6 * 8 / (4 - 2)", 1.0),
        (" 6*8/(4-2)\n", 1.0),
        ("(6 * 8) / ((4 - 2))", 1.0),
        ("8 * 6 / 2", 0.0),
        ("24", 0.0),
        ("6 * 8 / (4 - 2) = 24", 0.0),
        ("6 * 8 / (-2 + 4)", 0.0),
        ("6 * 8 // (4 - 2)", 0.0),
        ("6 * 8 / (4 - 2) ** 1", 0.0),
        ("68 / (4 - 2)", 0.0),
        ("6.0 * 8 / (4 - 2)", 0.0),
        ("6 * 8 / (4 - 2) # 24", 0.0),
        ("6 * 8 / (4 - 4) + 2", 0.0),
        ("6 * 8 / (4 - 2), 0", 0.0),
        ("6 * 8 / (4 - 2", 0.0),
        ("6 8 4 2", 0.0),
        ("6(8)/(4-2)", 0.0),
        ("int('24')", 0.0),
        ("__import__('os').system('true')", 0.0),
        ("6 * 8 / (4 - 2)" + " " * 300, 1.0),
        ("6 * 8 / (4" + " " * 300 + "- 2)", 0.0),
        ("(" * 21 + "6 * 8 / (4 - 2)" + ")" * 21, 0.0),
        ("(" * 19 + "6 * 8 / (4 - 2)" + ")" * 19, 1.0),
        ("", 0.0),
    ],
)
def test_an_expression_of_the_given_numbers_makes_the_target(expression, expected):
    assert countdown(problem(), f"<think>so</think><answer>{expression}</answer>") == expected


def test_division_is_exact():
    assert countdown(problem("1 from 3 3 3 3 3"), "<answer>3/3/3*3*3/3</answer>") == 0.0
    assert countdown(problem("3 from 3 3 9 3"), "<answer>(3/9)*(3*3)</answer>") == 1.0
    assert countdown(problem("24 from 3 3 8 8"), "<answer>8/(3-8/3)</answer>") == 1.0  # by thirds


@pytest.mark.parametrize(
    "completion", ["6*8/(4-2)", "<answer>6*8/(4-2)", "<answer>1</answer><answer>6*8/(4-2)</answer>"]
)
def test_only_what_stands_in_the_only_answer_tags_counts(completion):
    assert countdown(problem(), completion) == 0.0


@pytest.mark.parametrize("answer", ["", "24", "24 from", "24 from 4, 6", "-1 from 2 3"])
def test_an_answer_that_is_no_problem_is_never_right(answer):
    with pytest.raises(ValueError, match="must be like '24 from 4 6 8 2'"):
        countdown(problem(answer), "<answer>24</answer>")
