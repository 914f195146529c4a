"""Measures: answers of three problems made numbers by hand."""

import math

import pytest

from grpojax.answers import Answer, Answered
from grpojax.measures import as_metrics, measure
from grpojax.task import Example


def answer(accuracy, extracted=None, length=4, truncated=False, **rewards) -> Answer:
    return Answer(
        text="",
        length=length,
        truncated=truncated,
        extracted=extracted,
        rewards={"accuracy": float(accuracy), **rewards},
    )


def answered(greedy, sampled, category="", origin="") -> Answered:
    example = Example(id=0, prompt="", answer="", category=category, origin=origin)
    return Answered(example=example, greedy=answer(greedy), sampled=[answer(x) for x in sampled])


def metrics(problems, k=(), votes=False):
    return as_metrics(problems, measure(problems, k, votes=votes))


NAN = math.nan


def test_standard_errors_are_the_deviation_over_problems_by_the_root_of_their_number():
    problems = [answered(1, [1, 0, 0, 0]), answered(0, [1, 1, 1, 1]), answered(0, [0, 0, 0, 0])]
    found = metrics(problems, (1, 2))
    assert found["sampled_accuracy"] == found["pass@1"] == pytest.approx(1.25 / 3)
    # deviations from 5/12 in twelfths: -2, 7, -5; their squares add up to 78
    error = math.sqrt(78 / 144 / 2 / 3)
    assert found["sampled_accuracy_se"] == pytest.approx(error)
    assert found["pass@1_se"] == pytest.approx(error)
    assert found["pass@2"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert found["pass@2_se"] == pytest.approx(math.sqrt(0.5 / 2 / 3))
    assert found["accuracy"] == pytest.approx(1 / 3)
    assert "invalid" not in found and "maj@2" not in found


def test_samples_that_could_not_be_judged_count_nowhere():
    problems = [
        answered(1, [1, 0, NAN, NAN]),
        answered(NAN, [1, 1, 0, 0]),
        answered(0, [NAN, NAN, NAN, NAN]),
    ]
    found = metrics(problems, (2, 4))
    assert found["accuracy"] == 0.5
    assert found["sampled_accuracy"] == pytest.approx(0.5)
    assert found["pass@2"] == pytest.approx((1 + 5 / 6) / 2)
    assert found["pass@4"] == 1  # of the one problem with four samples
    assert math.isnan(found["pass@4_se"])
    assert found["invalid"] == 7


def test_the_vote_is_over_what_was_extracted_and_judged():
    example = Example(id=0, prompt="", answer="")
    votes = [answer(1, "7"), answer(0, "8"), answer(0, "8"), answer(NAN, "8"), answer(0)]
    problems = [Answered(example=example, greedy=answer(1), sampled=votes)]
    found = metrics(problems, (1, 3, 4), votes=True)
    assert found["maj@4"] == 0  # 7, 8, 8 and one that says nothing: 8 wins
    # 7 8 8: lost; 7 8 and nothing, twice: half; 8 8 and nothing: lost
    assert found["maj@3"] == pytest.approx(2 * 0.5 / 4)
    assert "maj@1" not in found


def test_rates_and_lengths_are_means_over_problems():
    sampled = [answer(0, length=2, format=1.0), answer(0, length=6, truncated=True, format=0.0)]
    problems = [
        Answered(
            example=Example(id=0, prompt="", answer=""),
            greedy=answer(1, length=3, format=1.0),
            sampled=sampled,
        ),
        Answered(
            example=Example(id=1, prompt="", answer=""),
            greedy=answer(1, length=6, truncated=True, format=NAN),
            sampled=sampled[:1] * 2,
        ),
    ]
    found = metrics(problems)
    assert (found["format"], found["length"], found["truncated"]) == (1, 4.5, 0.5)
    assert (found["sampled_format"], found["sampled_length"]) == (0.75, 3)
    assert found["sampled_truncated"] == 0.25
    assert "invalid" not in found  # that a format could not be judged leaves the accuracy alone
    assert "language" not in found


def test_greedy_accuracy_is_split_by_category_and_rounds_are_matched():
    problems = [
        answered(1, [0], "Q0", "a"), answered(1, [0], "Q0", "b"), answered(0, [1], "Q0", "c"),
        answered(1, [1], "Q1", "b"), answered(0, [1], "Q1", "a"),
    ]  # fmt: skip
    found = metrics(problems)
    assert found["accuracy/Q0"] == pytest.approx(2 / 3) and found["accuracy/Q1"] == 0.5
    assert found["coleg_e/Q0+Q1"] == found["coleg_r/Q0+Q1"] == 0.5  # over a and b
    assert not [name for name in metrics([answered(1, [1])]) if "/" in name]
