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
COLUMN = 17  # characters that a column needs at least: an interval of two signed numbers


def show_scoreboard(
    evaluations: Sequence[Evaluation], split: str, terminal: Terminal | None = None
) -> None:
    """Prints a table: a row for each measure that all have, a column for each evaluation, and of
    exactly two their difference. What a terminal is too narrow for goes into further tables.

    Args:
      evaluations: at least one; of the same problems, with the same number of samples.
      split: what the problems are called in the title.
      terminal: where to; None is standard output.
    """
    terminal = Terminal(highlight=False) if terminal is None else terminal
    answered, two = evaluations[0].answered, len(evaluations) == 2
    samples = len(answered[0].sampled)
    runs = [literal(str(each.workdir), terminal.encoding) for each in evaluations]
    alone = len(set(map(str, runs))) == 1
    about = f"{split} split: {len(answered)} problems, {samples} samples of each"
    terminal.print(Text.assemble(runs[0], ", ", about) if alone else Text(about), style="bold")
    columns = []
    for run, each in zip(runs, evaluations):
        heading = Text(f"step {each.step}") if alone else run.append(f"\nstep {each.step}")
        values = {name: (m.value, interval(m)) for name, m in each.measures.items()}
        columns.append((heading, {name: shown(name, *value) for name, value in values.items()}))
    if two:
        columns.append((Text("difference"), differences(*evaluations)))
    common = set.intersection(*(set(values) for _, values in columns))
    rows = {name: m for name, m in evaluations[0].measures.items() if name in common}
    labels = {name: placed(name, m, samples) for name, m in rows.items()}
    first = max(len(label) for _, label in labels.values()) + 4
    fit = max(1, (terminal.width - first) // COLUMN)
    for start in range(0, len(columns), fit):
        terminal.print(as_table(columns[start : start + fit], labels, terminal.encoding))
    terminal.print(Text(NOTE + (PAIRED if two else ""), "dim"))
    invalid = [count_invalid(each.answered) for each in evaluations]
    if any(invalid):
        terminal.print(f"Completions that could not be judged, and count nowhere: {invalid}")


def differences(first: Evaluation, second: Evaluation) -> dict[str, str]:
    """The second's measures minus the first's."""
    return {
        name: shown(name, theirs.value - ours.value, difference_interval(theirs, ours), sign="+")
        for name, ours in first.measures.items()
        if (theirs := second.measures.get(name)) is not None
    }


def as_table(
    columns: Sequence[tuple[Text, dict[str, str]]],
    labels: dict[str, tuple[str, str]],
    encoding: str,
) -> Table:
    """A row for each of `labels`, which are a section and a name in it."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column(no_wrap=True)
    for heading, _ in columns:
        table.add_column(heading, overflow="fold")
    last = ""
    for name, (section, label) in labels.items():
        if section != last:
            table.add_section()
            table.add_row(Text(section, "dim"))
        table.add_row(literal(label, encoding), *(values[name] for _, values in columns))
        last = section
    return table


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


def shown(name: str, value: float, between: Interval, sign: str = "") -> str:
    """`0.703 [0.617,0.776]`: a narrow column breaks it before the bracket only."""
    form = f"{sign}.1f" if name.endswith("length") else f"{sign}.3f"
    low, high = between
    return f"{value:{form}} [{low:{form}},{high:{form}}]"
