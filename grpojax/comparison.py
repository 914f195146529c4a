"""Comparison: what the cells of an experiment say about its factors, over seeds.

Cells of one seed start from the same parameters and see the same prompts, so combinations are
compared by the difference within each seed, which leaves out what the seeds have in common.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student

Interval = tuple[float, float, int]  # mean, half-width at 95 %, number of seeds


def compare(
    rows: Sequence[dict[str, Any]], metrics: Sequence[str], baseline: dict[str, Any]
) -> list[dict[str, Any]]:
    """One entry for each combination of factors, in the order of the first rows that have them.

    Args:
      rows: a cell each: "factors", "seed", and "last", its value of each metric, or None if the
        cell is not done.
      metrics: names to compare by.
      baseline: the factors that the others are compared with.

    Returns:
      Entries with "factors", "seeds" (how many rows it has) and by metric its "mean" and its
      "difference" to the baseline, both as `t_interval`; the baseline has no difference.
    """
    seen = [row["factors"] for row in rows]
    entries = []
    for factors in [each for i, each in enumerate(seen) if each not in seen[:i]]:
        entry = {"factors": factors, "seeds": seen.count(factors)}
        for name in metrics:
            ours, theirs = by_seed(rows, factors, name), by_seed(rows, baseline, name)
            entry[name] = {"mean": t_interval(list(ours.values()))}
            if factors != baseline:
                entry[name]["difference"] = t_interval(paired_differences(ours, theirs))
        entries.append(entry)
    return entries


def by_seed(rows: Sequence[dict[str, Any]], factors: dict[str, Any], name: str) -> dict[int, float]:
    """The last value of a metric, by seed, of the cells with `factors` that are done."""
    return {
        row["seed"]: row["last"][name] for row in rows if row["factors"] == factors and row["last"]
    }


def t_interval(values: Sequence[float]) -> Interval:
    """Mean m, half-width h and number n of the values; NaN for what too few of them cannot give.

    m ± h covers the true mean of normal values in 95 of 100 cases: h = t(0.975, n - 1) s / √n, with
    the deviation s of ddof 1.
    """
    n = len(values)
    mean = float(np.mean(values)) if n else math.nan
    error = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return mean, float(student.ppf(0.975, n - 1)) * error if n > 1 else math.nan, n


def paired_differences(ours: dict[int, float], theirs: dict[int, float]) -> list[float]:
    """Ours minus theirs for every seed that both have; a seed of one alone has no pair."""
    return [value - theirs[seed] for seed, value in ours.items() if seed in theirs]


def as_table(entries: Sequence[dict[str, Any]], metrics: Sequence[str]) -> str:
    """The entries of `compare` in Markdown."""
    factors = list(entries[0]["factors"])
    head = [*factors, *(column for name in metrics for column in (name, "difference"))]
    lines = [head, ["---"] * len(head)]
    for entry in entries:
        line = [str(entry["factors"][name]) for name in factors]
        for name in metrics:
            line.append(in_words(entry[name]["mean"], entry["seeds"], ""))
            difference = entry[name].get("difference")
            line.append(in_words(difference, entry["seeds"], "+") if difference else "baseline")
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def in_words(interval: Interval, seeds: int, sign: str) -> str:
    """`0.712 ± 0.051`, with the number of seeds where some are missing."""
    mean, half, n = interval
    if n == 0:
        return "missing"
    width = f" ± {half:.3f}" if n > 1 else ""
    return f"{mean:{sign}.3f}{width}" + (f" ({n} of {seeds} seeds)" if n < seeds else "")
