"""Curves: rewards by update over seeds, their intervals, and whether two systems' agree.

Intervals are those of `grpojax.comparison.t_interval`: 95 %, over seeds. Curves are smoothed seed
by seed before any interval is taken: value u is the mean of updates u - window + 1 to u.
"""

import math
import statistics
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import t as student

from grpojax.comparison import t_interval
from tools.benchmark.parity.cells import Lines


def summarise(by_seed: dict[int, Lines], window: int, level: float) -> dict[str, Any]:
    """What a system's cells come to; None where a number cannot be had (an interval of one seed).

    `first` and `step` are seconds: of the first update, which compiles, and the median of the
    others. `mean`, `half` and `minutes` belong to the smoothed curve, whose first value stands at
    update `window`; minutes are since the run began, the mean over seeds. `to_level` is the seconds
    until the smoothed reward of each seed was at `level`, None if it never was.

    Raises:
      ValueError: there are fewer updates than `window`.
    """
    updates = [lines[:-1] for lines in by_seed.values()]
    reward = np.array([[np.mean(line["rewards"]) for line in lines] for lines in updates])
    seconds = np.array([[line["seconds"] for line in lines] for lines in updates])
    curve, since = smoothed(reward, window), seconds.cumsum(axis=1)[:, window - 1 :]
    intervals = [t_interval(column) for column in curve.T.tolist()]
    reached = [seconds_to(level, *each) for each in zip(curve, since)]
    times = t_interval(reached) if None not in reached else (math.nan, math.nan, 0)
    lengths = [[np.mean([len(c) for c in x["completions"]]) for x in lines] for lines in updates]
    return {
        "seeds": list(by_seed),
        "reward": reward.tolist(),
        "seconds": seconds.tolist(),
        "length": np.array(lengths).tolist(),
        "grad_norm": [[line["grad_norm"] for line in lines] for lines in updates],
        "peak": max(lines[-1]["peak"] for lines in by_seed.values()),
        "first": statistics.median(seconds[:, 0]),
        "step": known(np.median(seconds[:, 1:])) if seconds.shape[1] > 1 else None,
        "mean": [mean for mean, _, _ in intervals],
        "half": [known(half) for _, half, _ in intervals],
        "minutes": (since.mean(axis=0) / 60).tolist(),
        "to_level": reached,
        "to_level_interval": [known(x) for x in times[:2]],
    }


def smoothed(values: Float[np.ndarray, "S N"], window: int) -> Float[np.ndarray, "S n"]:
    """Each row's means over `window` values in a row: n = N - window + 1."""
    if not 1 <= window <= values.shape[1]:
        raise ValueError(
            f"window must be from 1 to the number of updates = {values.shape[1]}, got {window}"
        )
    return np.lib.stride_tricks.sliding_window_view(values, window, axis=1).mean(axis=-1)


def seconds_to(
    level: float, curve: Float[np.ndarray, "n"], since: Float[np.ndarray, "n"]
) -> float | None:
    """Seconds `since` the beginning at the first value of the curve that is at `level`."""
    at_level = curve >= level
    return float(since[at_level.argmax()]) if at_level.any() else None


def agreement(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Shares of updates at which a smoothed mean lies within the other system's interval; None
    where a system has one seed.

    `expected` is the share for two systems that learn the same and whose seeds vary the same, by
    chance alone: their means differ by √2 times the error of one. Neighbouring updates share most
    of what they are means of, so a share of few updates may be far from it. `first_update` is the
    difference of the rewards of update 1, where both have the same policy and the same prompts: its
    mean over seeds that both have, and its interval.
    """
    a, b = np.array(ours["mean"]), np.array(theirs["mean"])
    pairs = dict(zip(theirs["seeds"], theirs["reward"]))
    first = [
        rewards[0] - pairs[seed][0]
        for seed, rewards in zip(ours["seeds"], ours["reward"])
        if seed in pairs
    ]
    n = min(len(ours["seeds"]), len(theirs["seeds"]))
    found: dict[str, Any] = {
        "updates": len(a),
        "mean_difference": float((a - b).mean()),
        "largest_difference": float(np.abs(a - b).max()),
        "first_update": [known(x) for x in t_interval(first)[:2]],
        "ours_within_theirs": None,
        "theirs_within_ours": None,
        "both": None,
        "expected": None,
    }
    if n < 2:
        return found
    ours_within = np.abs(a - b) <= np.array(theirs["half"])
    theirs_within = np.abs(a - b) <= np.array(ours["half"])
    least = student.ppf(0.975, n - 1) / math.sqrt(2)
    return found | {
        "ours_within_theirs": float(ours_within.mean()),
        "theirs_within_ours": float(theirs_within.mean()),
        "both": float((ours_within & theirs_within).mean()),
        "expected": float(1 - 2 * student.sf(least, n - 1)),
    }


def known(value: float) -> float | None:
    """The value, None for NaN, which JSON does not have."""
    return None if math.isnan(value) else float(value)


def describe(systems: dict[str, dict[str, Any]], level: float, window: int) -> str:
    """The numbers in Markdown: a line for each system, then how far they agree."""
    head = ["system", "seeds", "seconds an update", "first update", "peak, GB"]
    head += [f"last {window} updates", f"seconds to {level:g}"]
    rows = [head, ["---"] * len(head)]
    for name, system in systems.items():
        rows.append(
            [
                name,
                str(len(system["seeds"])),
                shown(system["step"]),
                shown(system["first"]),
                f"{system['peak'] / 1e9:.2f}",
                with_half(system["mean"][-1], system["half"][-1], ".3f"),
                to_level(system),
            ]
        )
    lines = [f"| {' | '.join(row)} |" for row in rows]
    if len(systems) == 2:
        found = agreement(*systems.values())
        first, second = systems
        difference = with_half(*found["first_update"], "+.3f")
        lines += ["", f"- update 1, {first} less {second}: reward {difference}"]
        lines.append(
            f"- from update {window} on, {first} less {second}: {found['mean_difference']:+.3f} on "
            f"average, {found['largest_difference']:.3f} at most"
        )
        if found["both"] is not None:
            lines.append(
                f"- share of {found['updates']} updates (means of {window}): {first}'s mean within "
                f"{second}'s 95 % interval {found['ours_within_theirs']:.2f}, {second}'s within "
                f"{first}'s {found['theirs_within_ours']:.2f}, both {found['both']:.2f}; "
                f"{found['expected']:.2f} of each is chance if they learn the same"
            )
    return "\n".join(lines)


def to_level(system: dict[str, Any]) -> str:
    """When the seeds reached the level, or how many did."""
    reached = [x for x in system["to_level"] if x is not None]
    if len(reached) < len(system["to_level"]):
        return f"{len(reached)} of {len(system['to_level'])} seeds reached it"
    return with_half(*system["to_level_interval"], ".0f")


def with_half(mean: float | None, half: float | None, digits: str) -> str:
    """`0.712 ± 0.051`, as far as it is known."""
    if mean is None:
        return "-"
    return f"{mean:{digits}}" + ("" if half is None else f" ± {half:{digits.lstrip('+')}}")


def shown(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.3g}"
