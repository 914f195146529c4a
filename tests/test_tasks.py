"""Tasks: that sums leak into no other split, and how tasks are found and checked."""

import importlib
import re
import shutil
import sys

import pytest

from grpojax.config import DataConfig
from grpojax.task import Example, Task
from grpojax.tasks import TASKS, load_task


@pytest.fixture(scope="module")
def addition():
    return load_task("addition", DataConfig())


@pytest.fixture(scope="module")
def few_shot():
    return load_task("few_shot_addition", DataConfig())


def last_pair(prompt):
    return tuple(map(int, re.findall(r"\d+", prompt)[-2:]))


def unordered(task):
    return {k: {frozenset(last_pair(e.prompt)) for e in v} for k, v in task.splits.items()}


def test_no_sum_is_in_two_splits_even_mirrored(addition):
    pairs = unordered(addition)
    assert {k: len(v) for k, v in pairs.items()} == {"train": 3327, "validation": 256, "test": 512}
    assert len(pairs["train"] | pairs["validation"] | pairs["test"]) == 90 * 91 // 2
    assert sum(map(len, addition.splits.values())) == 90 * 90


def test_few_shot_addition_has_the_splits_of_addition_without_the_sums_it_shows(addition, few_shot):
    shown = {frozenset((12, 34)), frozenset((56, 17))}
    assert unordered(few_shot) == {k: v - shown for k, v in unordered(addition).items()}


def test_the_splits_never_change(addition):
    assert [e.prompt for e in addition.splits["test"][:3]] == ["49+95=", "56+74=", "12+70="]
    assert addition.splits == TASKS["addition"](DataConfig()).splits


def test_every_answer_is_the_sum_and_every_worked_solution_earns_every_reward(addition):
    for example in (e for split in addition.splits.values() for e in split):
        assert int(example.answer) == sum(last_pair(example.prompt))
        assert all(r(example, example.completion) == 1.0 for r in addition.rewards.values())


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("47+38=", "<think>units 7+8=15 carry 1 tens 4+3+1=8</think><answer>85</answer>"),
        ("12+34=", "<think>units 2+4=6 carry 0 tens 1+3+0=4</think><answer>46</answer>"),
        ("99+99=", "<think>units 9+9=18 carry 1 tens 9+9+1=19</think><answer>198</answer>"),
    ],
)
def test_carries_are_worked_as_by_hand(addition, prompt, completion):
    worked = {e.prompt: e.completion for split in addition.splits.values() for e in split}
    assert worked[prompt] == completion


def test_every_step_of_every_worked_solution_is_true(addition):
    for example in addition.splits["train"]:
        for left, right in re.findall(r"([\d+]+)=(\d+)", example.completion):
            assert sum(map(int, left.split("+"))) == int(right)


def test_few_shot_prompts_show_two_solved_sums_that_are_never_asked(few_shot):
    for example in (e for split in few_shot.splits.values() for e in split):
        *solved, question = example.prompt.split("\n")
        shown = [tuple(map(int, re.findall(r"\d+", line))) for line in solved]
        assert len(shown) == 2 and all(a + b == c for a, b, c in shown)
        assert all({a, b} != set(last_pair(question)) for a, b, _ in shown)
        assert re.fullmatch(r"\d\d \+ \d\d =", question)
        assert few_shot.rewards["accuracy"](example, f" {example.answer}") == 1.0


THEIR_TASK = """
from grpojax.task import Example, Task

def make(data, **changes):
    names = ("train", "validation", "test")
    splits = {name: [Example(id=i, prompt=name, answer="")] for i, name in enumerate(names)}
    splits.update(changes)
    return Task(splits=splits, rewards={"accuracy": lambda example, completion: 1.0})

def no_test(data): return make(data, test=[])
def twice(data): return make(data, test=[Example(id=0, prompt="x", answer="")])
def negative(data): return make(data, test=[Example(id=-1, prompt="x", answer="")])
def large(data): return make(data, test=[Example(id=2**31, prompt="x", answer="")])
def nothing(data): pass
def held_out(data):
    train = [Example(id=i, prompt=f"{i} {name}", answer="") for i, name in ((7, "A"), (8, "b"))]
    return make(data, train=train, test=[Example(id=9, prompt=" 7\\n a", answer="")])
def all_held_out(data): return make(data, train=[Example(id=9, prompt="test", answer="")])
def shared(data):
    return make(data, train=[Example(id=i, prompt="7", question=q, answer="")
                             for i, q in ((7, "x"), (8, "y"))],
                test=[Example(id=9, prompt="7", question="z", answer="")])
def only_test(data): return Task(splits={"test": make(data).splits["test"]},
                                 rewards=make(data).rewards)
def unrewarded(data): return Task(splits=make(data).splits, rewards={"format": lambda e, c: 1.0})
def fewer(data): return Task(splits={"train": make(data).splits["train"]}, rewards={})
"""


@pytest.fixture
def their_task(tmp_path, monkeypatch):
    (tmp_path / "their_task.py").write_text(THEIR_TASK)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield
    sys.modules.pop("their_task", None)
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)


def test_a_task_of_the_users_is_named_by_module_and_function(their_task):
    task = load_task("their_task:make", DataConfig())
    assert isinstance(task, Task) and isinstance(task.splits["train"][0], Example)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("additon", "one of addition, few_shot_addition, .*, gsm8k, .* .did you mean addition"),
        ("", "task must be one of addition"),
        ("their_tusk:make", "No module named 'their_tusk' .did you mean their_task"),
        ("their_task:mak", "has no 'mak' .did you mean make"),
        ("their_task:no_test", "got none in test"),
        ("their_task:fewer", "got none in validation"),
        ("their_task:twice", "unique over all splits, got 0 twice"),
        ("their_task:negative", "int32 of 0 or more, got -1"),
        ("their_task:large", "int32 of 0 or more, got 2147483648"),
        ("their_task:nothing", "must return a Task, got NoneType"),
        ("their_task:unrewarded", "must have a reward 'accuracy', got format"),
        ("their_task:all_held_out", "must not be held out too, got all 1 so"),
    ],
)
def test_a_task_that_breaks_a_rule_is_refused_in_one_line(their_task, name, said):
    with pytest.raises(ValueError, match=said) as error:
        load_task(name, DataConfig())
    assert "\n" not in str(error.value)


def test_a_question_that_is_held_out_is_not_trained_on_whatever_its_case_and_spaces(their_task):
    task = load_task("their_task:held_out", DataConfig())
    assert [e.id for e in task.splits["train"]] == [8]
    assert [e.id for e in task.splits["test"]] == [9]
    assert task.notes == ("1 training examples left out: their questions are held out too",)


def test_what_all_prompts_share_makes_no_two_questions_equal(their_task):
    task = load_task("their_task:shared", DataConfig())
    assert [e.id for e in task.splits["train"]] == [7, 8] and task.notes == ()


def test_a_task_with_a_test_split_alone_is_for_evaluation(their_task):
    task = load_task("their_task:only_test", DataConfig())
    assert [len(task.splits[split]) for split in ("train", "validation", "test")] == [0, 0, 1]
