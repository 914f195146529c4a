"""Curves: a run's metrics as panels over steps, in light or dark, as PNG.

A panel is drawn if one of the metrics that it needs was recorded. Figures are objects of their own:
nothing of matplotlib's global state is changed.
"""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

LIGHT = {"back": "#ffffff", "text": "#3d4451", "grid": "#e6e8ec"}
DARK = {"back": "#1c2028", "text": "#c3c9d4", "grid": "#343a46"}
BLUE, ORANGE, GREEN, PURPLE, GRAY = "#3f7fd0", "#e08a4c", "#43a36b", "#9a72c7", "#8c93a0"
TIMES = {
    "wait": BLUE, "sample": BLUE, "reward": GREEN, "reference": PURPLE, "update": ORANGE,
    "checkpoint": GRAY,
}  # fmt: skip
FEW = 40  # points; a curve of no more shows each as a dot

Series = dict[str, tuple[np.ndarray, np.ndarray]]  # name -> steps [n], finite values [n]


def collect(lines: Sequence[dict[str, int | float]]) -> Series:
    """One series for each name in lines of metrics; a value that is not finite is left out."""
    points: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        for name, value in line.items():
            if name != "step" and np.isfinite(value):
                points.setdefault(name, []).append((line["step"], value))
    return {name: tuple(np.array(pairs, float).T) for name, pairs in points.items()}


def recorded_panels(series: Series) -> list[str]:
    """The titles of the panels that have something to show."""
    return [title for title, (needs, _) in PANELS.items() if any(name in series for name in needs)]


def draw(series: Series, titles: Sequence[str], theme: dict[str, str], dpi: int) -> bytes:
    """A PNG of the panels `titles`, at most three in a row; one panel alone has no title.

    Args:
      series: from `collect`.
      titles: some of `recorded_panels(series)`, at least one.
      theme: LIGHT or DARK.
      dpi: pixels an inch; a panel is about 4.7 by 3 inches.
    """
    columns = min(len(titles), 3)
    rows = -(-len(titles) // columns)
    figure = Figure(
        figsize=(4.7 * columns, 3 * rows), layout="constrained", facecolor=theme["back"]
    )
    for i, title in enumerate(titles):
        axes = figure.add_subplot(rows, columns, i + 1)
        PANELS[title][1](axes, series)
        settle(axes, theme)
        if len(titles) > 1:
            axes.set_title(title, loc="left", fontsize=10.5, color=theme["text"], pad=22)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=dpi)
    return picture.getvalue()


def settle(axes: Axes, theme: dict[str, str]) -> None:
    """The quiet look that all panels share."""
    axes.set_facecolor(theme["back"])
    axes.spines[:].set_visible(False)
    axes.grid(axis="y", color=theme["grid"], lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme["text"], labelsize=9, length=0)
    axes.set_xlabel("step", color=theme["text"], fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    handles, labels = axes.get_legend_handles_labels()
    style = {"frameon": False, "fontsize": 8.5, "labelcolor": theme["text"], "borderpad": 0.2}
    if len(handles) > 2:
        # Too many for the line of the title: inside, in room made for it.
        axes.set_ylim(top=1.4 * axes.get_ylim()[1])
        axes.legend(handles, labels, loc="upper left", ncols=3, **style)
    elif len(handles) == 2:
        axes.legend(handles, labels, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, **style)


def draw_reward(axes: Axes, series: Series) -> None:
    steps, mean = series["reward"]
    spread = values_at(series, "reward_std", steps, np.nan)
    band(axes, steps, mean - spread, mean + spread, BLUE, "± spread within a group")
    curve(axes, series, "reward", BLUE, "mean")


def draw_accuracy(axes: Axes, series: Series) -> None:
    for name, color, label in (
        ("eval/accuracy", BLUE, "greedy"),
        ("eval/sampled_accuracy", ORANGE, "sampled"),
    ):
        if name in series:
            steps, values = series[name]
            errors = values_at(series, f"{name}_se", steps, 0.0)
            style = {"marker": "o", "ms": 3.5, "lw": 1.4, "elinewidth": 1, "capsize": 2}
            axes.errorbar(steps, values, errors, color=color, label=label, **style)
    axes.set_ylim(-0.03, 1.03)


def draw_kl(axes: Axes, series: Series) -> None:
    curve(axes, series, "kl", PURPLE, "to the reference")


def draw_length(axes: Axes, series: Series) -> None:
    steps, _ = series["completions/mean_length"]
    low = values_at(series, "completions/min_length", steps, np.nan)
    high = values_at(series, "completions/max_length", steps, np.nan)
    band(axes, steps, low, high, GREEN, "shortest to longest")
    curve(axes, series, "completions/mean_length", GREEN, "mean")
    axes.set_ylim(bottom=0)


def draw_clip(axes: Axes, series: Series) -> None:
    for name, color in (("low", BLUE), ("high", ORANGE)):
        if f"clip_ratio/{name}_mean" in series:
            curve(axes, series, f"clip_ratio/{name}_mean", color, name)
    axes.set_ylim(bottom=0)


def draw_time(axes: Axes, series: Series) -> None:
    names = [name for name in TIMES if f"time/{name}" in series]
    if "wait" in names:  # with a lag these two are beside the step, not in it
        names = [name for name in names if name not in ("sample", "reward")]
    steps = np.unique(np.concatenate([series[f"time/{name}"][0] for name in names]))
    parts = [values_at(series, f"time/{name}", steps, 0.0) for name in names]
    colors = [TIMES[name] for name in names]
    axes.stackplot(*widen(steps, *parts), labels=names, colors=colors, alpha=0.85, lw=0)
    axes.set_ylim(bottom=0)


# Title, with the unit: the metrics of which one is needed, and what draws it.
PANELS = {
    "Reward": (("reward",), draw_reward),
    "Held-out accuracy ± standard error": (
        ("eval/accuracy", "eval/sampled_accuracy"),
        draw_accuracy,
    ),
    "KL to the reference": (("kl",), draw_kl),
    "Completion length, tokens": (("completions/mean_length",), draw_length),
    "Clip ratio": (("clip_ratio/low_mean", "clip_ratio/high_mean"), draw_clip),
    "Time of a step, seconds": (tuple(f"time/{name}" for name in TIMES), draw_time),
}


def curve(axes: Axes, series: Series, name: str, color: str, label: str) -> None:
    """One metric as a line, with dots if it has few points."""
    steps, values = series[name]
    marker = "o" if len(steps) <= FEW else None
    axes.plot(steps, values, color=color, lw=1.4, marker=marker, ms=3.5, label=label)


def band(
    axes: Axes, steps: np.ndarray, low: np.ndarray, high: np.ndarray, color: str, label: str
) -> None:
    """The area between two series; nothing where they were not recorded."""
    if np.isfinite(low + high).any():
        steps, low, high = widen(steps, low, high)
        axes.fill_between(steps, low, high, color=color, alpha=0.18, lw=0, label=label)


def widen(steps: np.ndarray, *values: np.ndarray) -> list[np.ndarray]:
    """Steps and values for an area, which needs a width: one point becomes one step wide."""
    if len(steps) > 1:
        return [steps, *values]
    return [np.array([steps[0] - 0.5, steps[0] + 0.5]), *(np.repeat(v, 2) for v in values)]


def values_at(series: Series, name: str, steps: np.ndarray, missing: float) -> np.ndarray:
    """The values of a metric at `steps`; `missing` at those where it was not recorded."""
    known = dict(zip(*series[name])) if name in series else {}
    return np.array([known.get(step, missing) for step in steps])
