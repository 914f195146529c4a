"""Rewards that shape how something is said: its language by a detector, length, repetition."""

import math

import pytest

from grpojax.rewards.language import language_detected, passages
from grpojax.rewards.length import cosine_length
from grpojax.rewards.repetition import repetition_penalty
from grpojax.task import Example

EXAMPLE = Example(id=1, prompt="", answer="")
ENGLISH = "First we add the units and carry one to the tens, then we add the tens and write it."
GERMAN = "Zuerst addieren wir die Einer und merken uns eins, dann addieren wir die Zehner dazu auf."
FRENCH = "On additionne les unités et on retient une dizaine, puis on additionne les dizaines."


@pytest.mark.parametrize(
    ("language", "reasoning", "expected"),
    [
        ("en", ENGLISH, 1.0),
        ("de", GERMAN, 1.0),
        ("fr", FRENCH, 1.0),
        ("en", GERMAN, 0.0),
        ("de", ENGLISH, 0.0),
        ("en", " ".join([ENGLISH] * 3 + [GERMAN] * 3), 0.5),
        ("zh", "我们先把个位数相加,然后把十位数相加", 1.0),
        ("en", "12 + 34 = 46", 0.0),
        ("en", "", 0.0),
    ],
)
def test_the_detected_language_is_the_share_of_words_in_passages_of_it(
    language, reasoning, expected
):
    completion = f"<think>{reasoning}</think><answer>{ENGLISH}</answer>"
    share = language_detected(language)(EXAMPLE, completion)
    # Where two languages meet, one passage of some 18 words in 99 holds both.
    assert share == expected if expected in (0.0, 1.0) else abs(share - expected) < 0.2


def test_without_reasoning_there_is_no_language_and_an_unknown_one_is_refused():
    assert language_detected("en")(EXAMPLE, ENGLISH) == 0.0
    with pytest.raises(ValueError, match="a code that py3langid knows, as 'en', got 'english'"):
        language_detected("english")


@pytest.mark.parametrize("text", ["", "a", "ab " * 500, "a" * 1234, ENGLISH * 7, " " * 333])
def test_passages_lose_nothing_and_are_neither_short_nor_long(text):
    pieces = passages(text)
    assert "".join(pieces) == text
    assert all(100 <= len(piece) <= 250 for piece in pieces[:-1])
    assert len(pieces) < 2 or 50 <= len(pieces[-1]) <= 250


def words(number):
    return " ".join(["w"] * number)


@pytest.mark.parametrize(
    ("right", "number", "expected"),
    [
        (1.0, 0, 2.0),
        (1.0, 50, 1.5),
        (1.0, 25, 1 + (1 + math.sqrt(0.5)) / 2),
        (0.0, 0, -10.0),
        (0.0, 50, -5.0),
        (0.0, 100, -10.0),
        (1.0, 100, -10.0),
        (1.0, 1000, -10.0),
    ],
)
def test_length_costs_when_right_pays_when_wrong_and_has_an_end(right, number, expected):
    reward = cosine_length(lambda example, completion: right, most_words=100)
    assert reward(EXAMPLE, words(number)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("size", "completion", "expected"),
    [
        (1, "a b c", 0.0),
        (1, "a a a a", -0.75),
        (2, "a b a b a", -0.5),  # ab ba ab ba
        (2, "A b a B", -1 / 3),
        (3, "a b", 0.0),
        (1, "", 0.0),
    ],
)
def test_repetition_is_the_share_of_runs_said_before(size, completion, expected):
    assert repetition_penalty(size)(EXAMPLE, completion) == pytest.approx(expected)
    assert repetition_penalty(size, most=2.0)(EXAMPLE, completion) == pytest.approx(2 * expected)


def test_impossible_shapes_are_refused():
    with pytest.raises(ValueError, match="most_words must be above 0, got 0"):
        cosine_length(lambda example, completion: 1.0, most_words=0)
    with pytest.raises(ValueError, match=r"words must be above 0 and most 0 or more, got 2 and -1"):
        repetition_penalty(2, most=-1.0)
