"""CoLeG: both measures by hand, over the questions that every round holds."""

import math

import numpy as np
import pytest

from grpojax.coleg import coleg, efficacy, robustness
from grpojax.estimates import interval, wilson_interval

# Five questions: right in Q0: a b c d; in Q1: a b d; in Q2: a c.
ROUNDS = {
    "Q0": {"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0, "e": 0.0},
    "Q1": {"a": 1.0, "b": 1.0, "c": 0.0, "d": 1.0, "e": 0.0},
    "Q2": {"a": 1.0, "b": 0.0, "c": 1.0, "d": 0.0, "e": 0.0},
}


def problems(rounds):
    """Problems of the rounds as three lists, the last round first."""
    rows = [(x, r, q) for r in reversed(rounds) for q, x in rounds[r].items()]
    return [list(column) for column in zip(*rows)]


def values(rounds):
    return {name: measure.value for name, measure in coleg(*problems(rounds)).items()}


def test_both_measures_of_five_questions_in_three_rounds():
    assert values(ROUNDS) == {
        "coleg_e/Q1+Q2": pytest.approx(1 / 5),  # a
        "coleg_e/Q0+Q1+Q2": pytest.approx(1 / 5),
        "coleg_r/Q0+Q2": pytest.approx(1 - (4 / 5 - 2 / 5) / (4 / 5)),
    }
    two = {name: ROUNDS[name] for name in ("Q0", "Q1")}
    assert values(two) == {
        "coleg_e/Q1": pytest.approx(3 / 5),
        "coleg_e/Q0+Q1": pytest.approx(3 / 5),
        "coleg_r/Q0+Q1": pytest.approx(3 / 4),
    }


def test_the_original_is_asked_for_only_where_the_name_says_q0():
    rounds = {"Q0": {"a": 0.0, "b": 1.0}, "Q1": {"a": 1.0, "b": 1.0}}
    assert values(rounds)["coleg_e/Q1"] == 1
    assert values(rounds)["coleg_e/Q0+Q1"] == 0.5
    assert values(rounds)["coleg_r/Q0+Q1"] == 2  # length may help
    assert values({"Q1": rounds["Q1"]}) == {"coleg_e/Q1": 1}


def test_questions_that_a_round_lacks_count_nowhere():
    short = ROUNDS | {"Q2": {"a": 1.0, "c": 1.0}}
    assert values(short)["coleg_r/Q0+Q2"] == 1
    assert values(short)["coleg_e/Q1+Q2"] == 0.5
    assert values({"Q0": {"a": 1.0}, "Q1": {"b": 1.0}}) == {}


def test_a_question_that_could_not_be_judged_counts_nowhere_and_keeps_its_place():
    first, last = ROUNDS["Q0"], ROUNDS["Q2"] | {"b": math.nan}
    measure = robustness(first, last)
    assert measure.value == 2 / 3 and len(measure.part) == 5
    assert efficacy([first, last]).value == 2 / 4
    assert np.isnan(robustness({"a": 0.0}, {"a": 1.0}).value)


def test_other_categories_and_problems_without_an_origin_are_no_round():
    assert coleg([1.0, 1.0, 1.0], ["algebra", "Q1", "Q"], ["a", "", "a"]) == {}
    assert coleg([1.0, 1.0], ["Q0", "Q0"], ["a", "b"]) == {}  # no longer telling


def test_rounds_are_ordered_by_number():
    rounds = {"Q10": {"a": 1.0}, "Q9": {"a": 0.0}, "Q0": {"a": 1.0}}
    assert values(rounds)["coleg_r/Q0+Q10"] == 1


def test_efficacy_is_a_share():
    measure = coleg(*problems(ROUNDS))["coleg_e/Q1+Q2"]
    assert interval(measure) == wilson_interval(1, 5)
