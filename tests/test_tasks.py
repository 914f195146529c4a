"""Tasks: what they ask and answer, that no split leaks into another, and how they are found."""

import importlib
import json
import re
import shutil
import subprocess
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


PROBLEMS = {
    "train": [
        (
            f"Añil has {i} pens & 1,{i:02}0 «crayons» 🖍. How many?",
            f"<<{i}+0={i}>>{i}.\n#### 1,{i:02}0",
        )
        for i in range(16)
    ],
    "test": [("What is 2 \N{MINUS SIGN} 3?\n", "2-3 = <<2-3=-1>>-1\n#### -1")],
}


@pytest.fixture
def gsm8k(tmp_path):
    """A folder of tiny published files, and the function that loads the task from it."""
    write(tmp_path, "train", PROBLEMS["train"])
    write(tmp_path, "test", PROBLEMS["test"])
    data = DataConfig(dir=str(tmp_path), cache=str(tmp_path / "cache"))
    return tmp_path, lambda: load_task("gsm8k", data)


def write(folder, split, problems):
    rows = [{"question": question, "answer": answer} for question, answer in problems]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")


def test_gsm8k_returns_the_texts_of_the_files_in_order(gsm8k):
    _, load = gsm8k
    splits = load().splits
    examples = [*splits["validation"], *splits["train"], *splits["test"]]
    questions = [question for split in PROBLEMS.values() for question, _ in split]
    assert [e.id for e in examples] == list(range(17))
    assert [e.prompt.partition("\nReason")[0] for e in examples] == [q.strip() for q in questions]
    assert {k: len(v) for k, v in splits.items()} == {"train": 14, "validation": 2, "test": 1}


def test_gsm8k_solutions_are_reasoning_and_number_in_tags(gsm8k):
    _, load = gsm8k
    task = load()
    (example,) = task.splits["test"]
    assert example.completion == "<think>2-3 = -1</think><answer>-1</answer>"
    assert task.splits["train"][0].answer == "1020"
    for example in task.splits["train"]:
        assert task.rewards["accuracy"](example, example.completion) == 1.0
        assert task.rewards["format"](example, example.completion) == 1.0


def test_gsm8k_says_nothing_on_the_console(gsm8k, capfd, caplog):
    _, load = gsm8k
    load()
    assert capfd.readouterr() == ("", "") and not caplog.records


def test_gsm8k_reads_changed_files_anew_and_unchanged_ones_from_the_cache(gsm8k):
    folder, load = gsm8k
    before = load()
    (records,) = (folder / "cache").glob("gsm8k-*")
    written = {path: path.stat().st_mtime_ns for path in records.rglob("*record*")}
    assert load().splits == before.splits
    assert {path: path.stat().st_mtime_ns for path in records.rglob("*record*")} == written
    write(folder, "test", [("What is 2 - 4?", "#### -2")])
    assert [e.answer for e in load().splits["test"]] == ["-2"]
    write(folder, "test", PROBLEMS["test"])
    assert load().splits == before.splits


def test_gsm8k_needs_neither_tensorflow_nor_jax_nor_a_network(gsm8k):
    folder, _ = gsm8k
    program = f"""
import socket, sys
def refuse(*args, **kwargs):
    raise AssertionError("the network was asked for")
socket.socket.connect = socket.getaddrinfo = refuse
from grpojax.config import DataConfig
from grpojax.tasks import load_task
load_task("gsm8k", DataConfig(dir={str(folder)!r}, cache={str(folder / "fresh")!r}))
assert not {{"jax", "tensorflow"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("missing", ["train.jsonl", "test.jsonl"])
def test_gsm8k_names_the_file_that_is_missing(gsm8k, missing):
    folder, load = gsm8k
    (folder / missing).unlink()
    with pytest.raises(ValueError, match=rf"data\.dir must be a folder .*: put {missing} there"):
        load()


def test_gsm8k_without_a_folder_says_which_files_to_put_into_one():
    with pytest.raises(ValueError, match=r"train\.jsonl and test\.jsonl, as published, got ''"):
        load_task("gsm8k", DataConfig())


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[]",
        "3",
        '{"question": "How many?"}',
        '{"question": "How many?", "answer": "five"}',
        '{"question": "How many?", "answer": "#### five"}',
        '{"question": 3, "answer": "#### 5"}',
        '{"question": "How many?", "answer": 5}',
        "",
    ],
)
def test_gsm8k_names_the_line_that_is_no_problem(gsm8k, line):
    folder, load = gsm8k
    path = folder / "train.jsonl"
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"line 17 of .*train\.jsonl must hold a question"
    ) as error:
        load()
    assert "\n" not in str(error.value)


def test_gsm8k_takes_an_empty_file_for_a_missing_one(gsm8k):
    folder, load = gsm8k
    (folder / "test.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"put test\.jsonl there"):
        load()


def test_gsm8k_with_a_cache_that_cannot_be_written_is_refused(gsm8k):
    folder, _ = gsm8k
    data = DataConfig(dir=str(folder), cache=str(folder / "train.jsonl"))
    with pytest.raises(ValueError, match=r"data\.cache must be a folder to write in"):
        load_task("gsm8k", data)


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
        ("additon", "one of addition, few_shot_addition, gsm8k, .* .did you mean addition"),
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
    ],
)
def test_a_task_that_breaks_a_rule_is_refused_in_one_line(their_task, name, said):
    with pytest.raises(ValueError, match=said) as error:
        load_task(name, DataConfig())
    assert "\n" not in str(error.value)
