"""Scoreboard: evaluations of checkpoints side by side, each number with its 95 % interval."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console as Terminal
from rich.table import Table
from rich.text import Text

from grpojax.console import literal
from grpojax.estimates import Interval, Measure, difference_interval, interval
from grpojax.evaluate import Evaluation
from grpojax.measures import count_invalid

NOTE = "In brackets: 95 % intervals over problems, Wilson's of shares, else the bootstrap's."
PAIRED = " Difference: second minus first, paired by problem."


def show_scoreboard(
    evaluations: Sequence[Evaluation], split: str, terminal: Terminal | None = None
) -> None:
    """Prints a table: a row for each measure that all have, a column for each evaluation, and of
    exactly two their difference.

    Args:
      evaluations: at least one; of the same problems, with the same number of samples.
      split: what the problems are called in the title.
      terminal: where to; None is standard output.
    """
    terminal = Terminal(highlight=False) if terminal is None else terminal
    first, two = evaluations[0].answered, len(evaluations) == 2
    samples = len(first[0].sampled)
    names = [literal(str(each.workdir), terminal.encoding) for each in evaluations]
    alone = len(set(map(str, names))) == 1
    about = f"{split} split: {len(first)} problems, {samples} samples of each"
    table = Table(box=SIMPLE_HEAD, title_justify="left", title_style="bold")
    table.title = Text.assemble(names[0], ", ", about) if alone else about
    table.add_column(no_wrap=True)
    for name, each in zip(names, evaluations):
        heading = Text() if alone else name.append("\n")
        table.add_column(heading.append(f"step {each.step}"), overflow="fold")
    if two:
        table.add_column("difference")
    section = ""
    for name in evaluations[0].measures:
        measures = [each.measures[name] for each in evaluations if name in each.measures]
        if len(measures) < len(evaluations):
            continue
        before, (section, label) = section, placed(name, measures[0], samples)
        if section != before:
            table.add_section()
            table.add_row(Text(section, "dim"))
        row = [shown(each.value, interval(each), name) for each in measures]
        if two:
            theirs, ours = measures
            between = difference_interval(ours, theirs)
            row.append(shown(ours.value - theirs.value, between, name, sign="+"))
        table.add_row(literal(label, terminal.encoding), *row)
    terminal.print(table)
    terminal.print(Text(NOTE + (PAIRED if two else ""), "dim"))
    invalid = [count_invalid(each.answered) for each in evaluations]
    if any(invalid):
        terminal.print(f"Completions that could not be judged, and count nowhere: {invalid}")


def placed(name: str, measure: Measure, samples: int) -> tuple[str, str]:
    """The section of a measure and what it is called there."""
    kind, _, which = name.partition("/")
    if kind == "accuracy" and which:
        return "by category, greedy", f"{which} ({measure.over.sum():.0f})"
    if kind in LONGER:
        return "longer, greedy", f"{LONGER[kind]} {which} ({len(measure.part)})"
    if name.startswith("sampled_"):
        name = name.removeprefix("sampled_")
        return f"{samples} samples", f"avg@{samples}" if name == "accuracy" else WORDS[name]
    return (f"{samples} samples", name) if "@" in name else ("greedy", WORDS[name])


LONGER = {"coleg_e": "CoLeG-E", "coleg_r": "CoLeG-R"}
WORDS = {
    "accuracy": "accuracy",
    "format": "format",
    "language": "language",
    "length": "tokens",
    "truncated": "truncated",
}


def shown(value: float, between: Interval, name: str, sign: str = "") -> str:
    """`0.703 [0.617,0.776]`: a narrow column breaks it before the bracket only."""
    form = f"{sign}.1f" if name.endswith("length") else f"{sign}.3f"
    low, high = between
    return f"{value:{form}} [{low:{form}},{high:{form}}]"
