"""Scoreboard: what two checkpoints come to, read off the table as it is printed."""

import dataclasses
import io
import re
from pathlib import Path

from rich.console import Console as Terminal
from test_measures import answered

from grpojax.estimates import wilson_interval
from grpojax.evaluate import Evaluation
from grpojax.measures import measure
from grpojax.scoreboard import show_scoreboard

BEFORE = [answered(i < 10, [i < 4, 0], f"Q{i % 2}", str(i // 2)) for i in range(40)]
AFTER = [answered(i < 20, [i < 8, 0], f"Q{i % 2}", str(i // 2)) for i in range(40)]


def evaluation(problems, workdir="runs/a", step=1) -> Evaluation:
    measures = measure(problems, (1, 2), votes=False)
    return Evaluation(workdir=Path(workdir), step=step, answered=problems, measures=measures)


def printed(evaluations, width=120) -> str:
    terminal = Terminal(file=io.StringIO(), width=width, _environ={})
    show_scoreboard(evaluations, "test", terminal)
    text = terminal.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    return text


def rows(text) -> dict[str, list[str]]:
    """Cells by the name of their row, the first where a name comes twice."""
    found = {}
    for line in text.splitlines():
        name, *cells = re.split(r"\s{2,}", line.strip())
        found.setdefault(name, cells)
    return found


def test_two_checkpoints_side_by_side_with_their_paired_difference():
    text = printed([evaluation(BEFORE), evaluation(AFTER, step=2)])
    found = rows(text)
    assert text.startswith("runs/a, test split: 40 problems, 2 samples of each\n")
    assert found["step 1"] == ["step 2", "difference"]
    low, high = wilson_interval(10, 40)
    assert found["accuracy"][0] == f"0.250 [{low:.3f},{high:.3f}]"
    assert found["accuracy"][1].startswith("0.500 [0.352,")
    difference = re.fullmatch(r"\+0.250 \[\+(.*),\+(.*)\]", found["accuracy"][2])
    assert 0.1 < float(difference[1]) < 0.2 < 0.3 < float(difference[2]) < 0.42
    assert found["avg@2"][1].startswith("0.100 [")
    assert found["pass@2"][0].startswith("0.100 [")
    assert found["tokens"] == ["4.0 [4.0,4.0]", "4.0 [4.0,4.0]", "+0.0 [+0.0,+0.0]"]
    assert found["Q1 (20)"][1].startswith("0.500 [")
    assert found["CoLeG-E Q0+Q1 (20)"][0].startswith("0.250 [")
    assert found["CoLeG-R Q0+Q1 (20)"][:2] == ["1.000 [0.566,1.000]", "1.000 [0.722,1.000]"]
    assert "could not be judged" not in text


def test_several_runs_are_named_and_one_alone_has_no_difference():
    three = [evaluation(BEFORE), evaluation(AFTER, "runs/b"), evaluation(AFTER, "runs/b", 9)]
    found = rows(printed(three))
    assert found["runs/a"] == ["runs/b", "runs/b"]
    assert found["step 1"] == ["step 1", "step 9"]
    assert len(found["accuracy"]) == 3
    assert len(rows(printed([evaluation(BEFORE)]))["accuracy"]) == 1


def test_a_narrow_terminal_gets_further_tables_and_whole_intervals():
    text = printed([evaluation(BEFORE, step=i) for i in range(5)], width=80)
    assert text.count("[0.142,0.402]") == 5
    heads = [re.findall(r"step \d", line) for line in text.splitlines() if "step" in line]
    assert heads == [["step 0", "step 1", "step 2"], ["step 3", "step 4"]]


def test_a_measure_that_one_has_alone_is_left_out():
    bare = [
        dataclasses.replace(each, example=dataclasses.replace(each.example, category=""))
        for each in AFTER
    ]
    found = rows(printed([evaluation(BEFORE), evaluation(bare)]))
    assert "accuracy" in found and not [name for name in found if name.startswith("Q")]


def test_names_do_not_act_as_markup_or_as_control_sequences():
    hostile = "[red]\x1b[31m\u202e"
    problems = [answered(1, [1], category=hostile), answered(float("nan"), [1])]
    text = printed([evaluation(problems, workdir=hostile)])
    assert not set(text) & set("\x1b\u202e")
    assert r"[red]\x1b[31m\u202e (1)" in text
    assert r"[red]\x1b[31m\u202e, test split" in text
    assert "could not be judged, and count nowhere: [1]" in text
