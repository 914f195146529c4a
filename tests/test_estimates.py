"""Estimates: pass@k and maj@k by enumeration, intervals by published values and by simulation."""

import itertools
import math

import numpy as np
import pytest

from grpojax.estimates import (
    NORMAL,
    Measure,
    difference_interval,
    interval,
    majority_at_k,
    mean_of,
    pass_at_k,
    resamples,
    restricted,
    standard_error,
    wilson_interval,
)


def test_pass_at_k_of_four_right_among_sixteen():
    assert pass_at_k(16, 4, 1) == 0.25
    assert pass_at_k(16, 4, 4) == pytest.approx(0.728021978, abs=1e-9)
    assert pass_at_k(16, 4, 8) == pytest.approx(0.961538462, abs=1e-9)
    assert (pass_at_k(16, 0, 8), pass_at_k(16, 9, 8)) == (0, 1)


def test_pass_at_k_is_the_share_of_subsets_with_a_right_one():
    subsets = list(itertools.combinations(range(6), 3))
    assert pass_at_k(6, 2, 3) == pytest.approx(np.mean([min(s) < 2 for s in subsets]))


def vote(answers, right) -> float:
    """The expected accuracy of one vote, by its definition."""
    votes = [answer for answer in answers if answer is not None]
    most = max((votes.count(answer) for answer in votes), default=0)
    top = {answer for answer in votes if votes.count(answer) == most}
    return sum(answer in right for answer in top) / len(top) if top else 0.0


@pytest.mark.parametrize("k", range(1, 8))
@pytest.mark.parametrize(
    "answers, right",
    [
        (["a", "a", "b", "b", "c", "c", "d"], {"a"}),  # ties of three
        (["a", "a", "a", "b", "b", None, None], {"b"}),
        (["a", "b", "c", "d", "e", "f", "a"], {"a", "c"}),  # two forms of the right answer
        ([None, None, None, None, None, None, "a"], {"a"}),
        (["a", "a", "a", "a", "a", "b", "c"], set()),
    ],
)
def test_majority_at_k_is_the_mean_over_all_subsets_however_ties_fall(answers, right, k):
    subsets = itertools.combinations(answers, k)
    expected = np.mean([vote(subset, right) for subset in subsets])
    found = majority_at_k(answers, [answer in right for answer in answers], k)
    assert found == pytest.approx(expected, abs=1e-12)


def test_majority_by_hand():
    """Of a, a, b the pairs are aa, ab, ab: a wins the first and half of each tie."""
    assert majority_at_k(["a", "a", "b"], [True, True, False], 2) == pytest.approx(2 / 3)
    assert majority_at_k(["a", "a", "b"], [True, True, False], 3) == 1
    assert majority_at_k(["a", "a", "b"], [False, False, True], 3) == 0
    assert majority_at_k([None, None], [False, False], 2) == 0
    # An answer is right if one of its samples was judged right: all that give it vote for it.
    assert majority_at_k(["a", "a", "b"], [True, False, False], 3) == 1


def test_wilsons_interval_solves_its_equation_and_has_its_published_values():
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
    for right, of, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson_interval(right, of) == pytest.approx((low, high), abs=5e-5)
    for p in wilson_interval(81, 263):
        assert abs(81 / 263 - p) == pytest.approx(NORMAL * math.sqrt(p * (1 - p) / 263))
    assert np.isnan(wilson_interval(0, 0)).all()


def test_a_share_has_wilsons_interval_and_a_mean_of_parts_the_bootstraps():
    yes = mean_of(np.array([1.0, 0.0, np.nan, 1.0]))
    assert interval(yes) == wilson_interval(2, 3)
    parts = mean_of(np.array([1.0, 0.5, 0.0, 1.0]))
    low, high = interval(parts)
    assert 0 <= low < parts.value < high <= 1
    assert interval(parts) != wilson_interval(2.5, 4)
    assert np.isnan(interval(mean_of(np.array([0.5])))).all()


def test_the_bootstrap_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):  # 60 problems of unequal difficulty, 4 samples each: the mean is 1/2
        difficulty = rng.uniform(size=60)
        low, high = interval(mean_of(rng.binomial(4, difficulty) / 4))
        covered += low <= 0.5 <= high
    assert 0.92 <= covered / 400 <= 0.97  # 0.95, three standard errors are 0.033; small n: less


def test_the_bootstrap_draws_the_same_in_every_process():
    parts = mean_of(np.array([0.2, 0.9, 0.4, 0.6]))
    before = interval(parts)
    resamples.cache_clear()
    assert interval(parts) == before


def test_a_difference_is_paired_by_problem():
    rng = np.random.default_rng(2)
    easy = rng.uniform(0.2, 0.8, size=50)
    low, high = difference_interval(mean_of(easy + 0.1), mean_of(easy))
    assert (low, high) == pytest.approx((0.1, 0.1))  # every problem gained as much
    shuffled = rng.permutation(easy)
    low, high = difference_interval(mean_of(shuffled + 0.1), mean_of(easy))
    assert high - low > 0.1


def test_standard_error_of_a_mean_and_of_a_ratio():
    # deviations from 5/12 in twelfths: -2, 7, -5; their squares add up to 78
    values = np.array([0.25, 1.0, 0.0, np.nan])
    assert mean_of(values).value == pytest.approx(1.25 / 3)
    assert standard_error(mean_of(values)) == pytest.approx(math.sqrt(78 / 144 / 2 / 3))
    # ratio 2/4; residuals 1/2, 1/2, -1/2, -1/2
    ratio = Measure(part=np.array([1.0, 1, 0, 0]), over=np.ones(4))
    doubled = Measure(part=ratio.part, over=ratio.over * 2)
    assert standard_error(ratio) == pytest.approx(math.sqrt(1 * 4 / 3) / 4)
    assert standard_error(doubled) == pytest.approx(standard_error(ratio) / 2)


def test_a_measure_over_some_of_its_problems_leaves_the_others_out():
    values = mean_of(np.array([1.0, 0.0, 0.5, np.nan]))
    assert restricted(values, np.array([True, False, True, True])).value == 0.75
    assert math.isnan(restricted(values, np.array([False, False, False, True])).value)


def test_nothing_to_average_is_nan_not_zero():
    nothing = mean_of(np.array([]))
    assert math.isnan(nothing.value) and math.isnan(standard_error(nothing))
    assert math.isnan(standard_error(mean_of(np.array([1.0]))))
