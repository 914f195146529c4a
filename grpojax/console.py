"""Console: what a run shows while it runs.

On a terminal: one live line at the bottom, and above it notices and tables of sampled completions.
In a CI log or a file: plain lines, one every few steps. Completions are what a policy made up:
nothing in them acts as markup or as a control sequence.
"""

import math
from collections import deque
from collections.abc import Mapping
from datetime import timedelta
from itertools import groupby
from time import monotonic
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console as Terminal
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from grpojax.hosts import is_first
from grpojax.metrics import Group

SHOWN = 320  # characters of a completion or a prompt in a table; more are left out in the middle
RECENT = 50  # steps that the time left is estimated from


class Console:
    """Holds the terminal during a run, in a `with`: the live line ends however the run does."""

    def __init__(self, steps: int, first_step: int, every: int, terminal: Terminal | None = None):
        """Args:
        steps: steps of the whole run.
        first_step: 0 for a new run; for one restored after n batches, n + 1.
        every: steps between the lines of a run that is not shown on a terminal.
        terminal: where to; None is standard output, and on a host but the first nowhere.
        """
        self.terminal = terminal or Terminal(highlight=False, quiet=not is_first())
        self.steps, self.every = steps, every
        # Of a restored run the tokens so far are not known before its first step has ended.
        self.tokens = 0.0 if first_step <= 1 else math.nan
        self.ends = deque(maxlen=RECENT + 1)  # when the last steps ended
        self.progress = Progress(
            SpinnerColumn("line"),
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=16),
            TextColumn("{task.description}"),
            console=self.terminal,
            refresh_per_second=4,
            disable=not self.terminal.is_interactive,
        )
        done = max(first_step - 1, 0)
        self.line = self.progress.add_task("starting", total=steps, completed=done)

    def __enter__(self) -> "Console":
        self.progress.start()
        return self

    def __exit__(self, *_) -> None:
        self.progress.stop()

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Shows the run after `step` batches: reward and accuracy (or loss), speed, time left."""
        first = not self.ends
        self.ends.append(monotonic())
        line = self.describe(step, metrics)
        self.progress.update(self.line, completed=step, description=line)
        if not self.terminal.is_interactive and (
            first or step % self.every == 0 or step == self.steps
        ):
            self.say(f"step {step}/{self.steps}  {line}")

    def describe(self, step: int, metrics: Mapping[str, Any]) -> str:
        """One line of the numbers to watch, without those not recorded or not yet known."""
        parts = []
        if "reward" in metrics:
            parts.append(f"reward {float(metrics['reward']):.3f}")
        elif "loss" in metrics:  # the supervised stage; of GRPO the loss says nothing
            parts.append(f"loss {float(metrics['loss']):.3f}")
        if "rewards/accuracy/mean" in metrics:
            parts.append(f"accuracy {float(metrics['rewards/accuracy/mean']):.3f}")
        if "num_tokens" in metrics and "step_time" in metrics:
            before, self.tokens = self.tokens, float(metrics["num_tokens"])
            if not math.isnan(before):
                rate = (self.tokens - before) / float(metrics["step_time"])
                parts.append(f"{rate:,.0f} tokens/s")
        if len(self.ends) > 1:
            # From the end of the first step on, which compiles and would spoil the mean.
            mean = (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1)
            parts.append(f"{timedelta(seconds=round(mean * (self.steps - step)))} left")
        return "  ".join(parts)

    def show_group(self, step: int, group: Group, count: int) -> None:
        """On a terminal, a table of `count` completions of a group, evenly from best to worst."""
        if not self.terminal.is_interactive or count == 0:
            return
        table = Table(box=SIMPLE_HEAD, expand=True, title_justify="left", title_style="")
        table.title = Text.assemble(
            (f"step {step}  ", "bold"),
            self.literal(group["prompt"]),
            ("  answer ", "dim"),
            self.literal(group["answer"]),
        )
        table.add_column("completion", ratio=1, overflow="fold")
        for name in ("reward", *group["rewards"], "advantage"):
            table.add_column(Text(name), justify="right", no_wrap=True)
        for i in spread(group, count):
            advantage = float(group["advantages"][i])
            color = "green" if advantage > 0 else "red" if advantage < 0 else "dim"
            table.add_row(
                self.literal(group["texts"][i]),
                Text(f"{group['total'][i]:.2f}" if group["valid"][i] else "invalid", "bold"),
                *(f"{values[i]:.2f}" for values in group["rewards"].values()),
                Text(f"{advantage:+.2f}", color),
            )
        self.terminal.print(table)

    def say(self, text: str) -> None:
        """A notice of one or more lines, shown as it is, above the live line if there is one."""
        lines = [self.literal(line, None) for line in text.split("\n")]
        self.terminal.print(Text("\n").join(lines), soft_wrap=True)

    def literal(self, text: str, shown: int | None = SHOWN) -> Text:
        """`text` as this terminal can show it; see `literal`."""
        return literal(text, self.terminal.encoding, shown)


def literal(text: str, encoding: str, shown: int | None = SHOWN) -> Text:
    """`text` without markup; what a terminal would obey, or cannot write, as its dim escape."""
    if shown is not None and len(text) > shown:
        half = shown // 2
        left_out = f" …{len(text) - 2 * half:,} characters… "
        return Text.assemble(
            literal(text[:half], encoding),
            (literal(left_out, encoding).plain, "dim"),
            literal(text[-half:], encoding),
        )
    pieces = Text()
    for writable, characters in groupby(text, lambda c: is_writable(c, encoding)):
        piece = "".join(characters)
        if writable:
            pieces.append(piece)
        else:
            pieces.append(piece.encode("unicode_escape").decode("ascii"), "dim")
    return pieces


def is_writable(character: str, encoding: str) -> bool:
    """Whether a terminal can write the character and does nothing else with it."""
    # isprintable() is False for controls, surrogates and the marks that turn text around.
    return character.isprintable() and bool(character.encode(encoding, "ignore"))


def spread(group: Group, count: int) -> list[int]:
    """`count` indices of a group's completions, evenly from the highest total reward to the lowest.

    Completions that are not valid come last; all of them when there are no more than `count`.
    """
    size = len(group["texts"])

    def rank(i: int) -> tuple[bool, float]:
        return (not group["valid"][i], -group["total"][i] if group["valid"][i] else 0.0)

    ranked = sorted(range(size), key=rank)
    if count == 1 or size <= count:
        return ranked[:count]
    return [ranked[round(k * (size - 1) / (count - 1))] for k in range(count)]
