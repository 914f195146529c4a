"""Plot: rewards by update and by minute, the mean over seeds with its 95 % interval."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tools.benchmark.parity.curves import smoothed

COLOURS = {"grpojax": "#3f7fd0", "trl": "#e08a4c"}
NAMES = {"grpojax": "grpojax", "trl": "TRL GRPOTrainer"}


def draw(systems: dict[str, dict[str, Any]], window: int, level: float, path: Path) -> None:
    """Writes a PNG of two panels that share the reward's axis; thin lines are single seeds."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    by_update, by_minute = figure.subplots(1, 2, sharey=True)
    for name, system in systems.items():
        updates = window + np.arange(len(system["mean"]))
        minutes = np.array(system["seconds"]).cumsum(axis=1)[:, window - 1 :] / 60
        curves = smoothed(np.array(system["reward"]), window)
        draw_system(by_update, name, system, updates, [updates] * len(curves), curves)
        draw_system(by_minute, name, system, np.array(system["minutes"]), minutes, curves)
    for axes in (by_update, by_minute):
        axes.axhline(level, color="#8c93a0", lw=0.9, ls=(0, (4, 3)), zorder=0)
        axes.grid(axis="y", color="#e6e8ec", lw=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color("#8c93a0")
        axes.tick_params(length=0, colors="#3d4451", labelsize=9)
        axes.set_xlim(left=0)
    by_update.set_ylim(0, 1)
    by_update.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    by_update.set_title(
        "thin: each seed; band: 95 % of the mean", loc="left", fontsize=8.5, color="#3d4451"
    )
    by_update.set_xlabel("update", fontsize=9.5)
    by_minute.set_xlabel("minutes", fontsize=9.5)
    by_update.set_ylabel(f"reward, mean of {window} updates", fontsize=9.5)
    by_update.legend(loc="lower right", frameon=False, fontsize=9.5)
    for name, system in systems.items():
        mark_level(by_minute, name, system, level)
    figure.savefig(path, dpi=150)


def draw_system(axes: Axes, name: str, system: dict[str, Any], x, by_seed, curves) -> None:
    """The mean [M] at `x`, its interval, and the curve of each seed at its own places."""
    colour, mean = COLOURS[name], np.array(system["mean"])
    if None not in system["half"]:
        half = np.array(system["half"])
        axes.fill_between(x, mean - half, mean + half, color=colour, alpha=0.16, lw=0)
    for places, curve in zip(by_seed, curves):
        axes.plot(places, curve, color=colour, lw=0.6, alpha=0.55)
    axes.plot(x, mean, color=colour, lw=2, label=NAMES[name])


def mark_level(axes: Axes, name: str, system: dict[str, Any], level: float) -> None:
    """A dot where the seeds were at the level on average, and its minutes on the axis."""
    seconds, _ = system["to_level_interval"]
    if seconds is None:
        return
    minutes, colour = seconds / 60, COLOURS[name]
    axes.vlines(minutes, 0, level, color=colour, lw=0.9, ls=(0, (1, 2)))
    axes.plot(minutes, level, "o", color=colour, ms=6, mec="white", mew=1.2, zorder=5)
    axes.annotate(
        f"{level:g} after {minutes:.0f} min",
        (minutes, 0),
        xytext=(5, 6),
        textcoords="offset points",
        fontsize=8.5,
        color=colour,
    )
