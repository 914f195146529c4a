"""Estimates: what n samples of a problem say of k, and how far a number over problems can be
trusted.

Completions of one problem are not independent of each other, so errors and intervals are always
over problems.
"""

import functools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy.stats import norm

Interval = tuple[float, float]

NORMAL = float(norm.ppf(0.975))  # 1.96: the middle 95 % of a normal variable
RESAMPLES = 2000


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Probability that k of `samples`, `right` of them right, hold a right one: the unbiased
    estimate 1 - C(samples - right, k) / C(samples, k) (Codex, 2107.03374)."""
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def majority_at_k(answers: Sequence[str | None], right: Sequence[bool], k: int) -> float:
    """Expected accuracy of the vote of k of n samples (self-consistency, arXiv 2203.11171).

    Exact over all C(n, k) subsets: they are not listed but counted, by how many samples of each
    answer they hold. Answers that tie at the top are drawn from evenly. None casts no vote, and a
    subset of Nones is wrong.

    Args:
      answers: what each of the n samples answers, in one canonical form.
      right: whether each sample was judged right; an answer is right if one of its samples was.
      k: from 1 to n, at most 1000 or so (binomials are floats).
    """
    counts = Counter(answer for answer in answers if answer is not None)
    winners = {answer for answer, r in zip(answers, right) if r and answer is not None}
    silent = len(answers) - counts.total()
    ways = 0.0
    for winner in sorted(winners):
        others = [count for answer, count in counts.items() if answer != winner]
        ways += winning_subsets(counts[winner], others, silent, k)
    return ways / math.comb(len(answers), k)


def winning_subsets(own: int, others: Sequence[int], silent: int, k: int) -> float:
    """Subsets of k samples whose vote is won by the answer that `own` samples give; one where it
    ties with t others counts 1 / (t + 1)."""
    won = 0.0
    for votes in range(1, min(own, k) + 1):
        left = k - votes
        # ways[s, t]: choices of s samples that do not vote, or vote for one of the others so far,
        # none of which has more than `votes` votes and t of which have as many
        ways = np.zeros((left + 1, len(others) + 1))
        ways[:, 0] = [math.comb(silent, s) for s in range(left + 1)]
        for count in others:
            before, ways = ways, np.zeros_like(ways)
            for theirs in range(min(count, votes, left) + 1):
                tie = int(theirs == votes)
                choices = float(math.comb(count, theirs))
                ways[theirs:, tie:] += (
                    choices * before[: left + 1 - theirs, : before.shape[1] - tie]
                )
        won += math.comb(own, votes) * float((ways[left] / np.arange(1, len(others) + 2)).sum())
    return won


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A number over n problems, as a ratio of two sums over them.

    Of a mean, `over` is 1 for the problems that count; one that does not has 0 in both.
    """

    part: Float[np.ndarray, "n"]
    over: Float[np.ndarray, "n"]

    @property
    def value(self) -> float:
        """The ratio; NaN where nothing counts."""
        return divided(float(self.part.sum()), float(self.over.sum()))


def mean_of(values: Float[np.ndarray, "n"]) -> Measure:
    """The mean of a value for each problem; one that is NaN does not count."""
    counts = ~np.isnan(values)
    return Measure(part=np.where(counts, values, 0.0), over=counts.astype(float))


def restricted(measure: Measure, to: Bool[np.ndarray, "n"]) -> Measure:
    """The measure over some of its problems."""
    return Measure(part=np.where(to, measure.part, 0.0), over=np.where(to, measure.over, 0.0))


def standard_error(measure: Measure) -> float:
    """The standard error over problems; NaN for fewer than two that count.

    Of a mean it is the deviation (ddof 1) by the root of their number; of another ratio the same of
    its linearised residuals.
    """
    number = np.count_nonzero((measure.part != 0) | (measure.over != 0))
    if number < 2 or measure.over.sum() == 0:
        return math.nan
    residuals = measure.part - measure.value * measure.over
    variance = float((residuals**2).sum()) * number / (number - 1)
    return math.sqrt(variance) / float(measure.over.sum())


def interval(measure: Measure) -> Interval:
    """The 95 % interval: Wilson's if every problem is a yes or a no, else the bootstrap's."""
    part, over = measure.part, measure.over
    if np.isin(over, (0, 1)).all() and np.isin(part, (0, 1)).all() and (part <= over).all():
        return wilson_interval(float(part.sum()), int(over.sum()))
    return percentile_interval(bootstrap(measure))


def difference_interval(ours: Measure, theirs: Measure) -> Interval:
    """The 95 % bootstrap interval of ours minus theirs, problem by problem the same in both."""
    return percentile_interval(bootstrap(ours) - bootstrap(theirs))


def wilson_interval(right: int | float, of: int) -> Interval:
    """Wilson's score interval at 95 % of a share (Wilson 1927): within [0, 1], and not of width 0
    where all are right or none is."""
    if of == 0:
        return math.nan, math.nan
    share, z2 = right / of, NORMAL**2
    middle = (share + z2 / (2 * of)) / (1 + z2 / of)
    half = NORMAL / (1 + z2 / of) * math.sqrt(share * (1 - share) / of + z2 / (4 * of**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap(measure: Measure) -> Float[np.ndarray, "R"]:
    """The measure on problems drawn with replacement, as many as there are, again and again.

    The draws depend on the number of problems alone, so two measures of the same problems meet the
    same draws: their difference is paired. A draw where nothing counts is NaN, and so is every draw
    of fewer than two problems.
    """
    if len(measure.part) < 2:
        return np.full(RESAMPLES, np.nan)
    times = resamples(len(measure.part))
    part, over = times @ measure.part, times @ measure.over
    return np.divide(part, over, out=np.full(RESAMPLES, np.nan), where=over != 0)


@functools.lru_cache(maxsize=2)
def resamples(number: int) -> UInt8[np.ndarray, "R {number}"]:
    """How often each of `number` problems is drawn, in each resample; seeded."""
    draws = np.random.default_rng(0)
    times = np.zeros((RESAMPLES, number), np.uint8)
    for row in times:
        row += np.bincount(draws.integers(number, size=number), minlength=number).astype(np.uint8)
    return times


def percentile_interval(values: Float[np.ndarray, "R"]) -> Interval:
    """The middle 95 % of resampled values."""
    known = values[~np.isnan(values)]
    if not known.size:
        return math.nan, math.nan
    low, high = np.quantile(known, (0.025, 0.975))
    return float(low), float(high)


def divided(part: float, over: float) -> float:
    return part / over if over else math.nan
