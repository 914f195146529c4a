"""GSM8K through TFDS: what is read, kept, read anew and refused, without a network."""

import json
import subprocess
import sys

import pytest

from grpojax.config import DataConfig
from grpojax.tasks import load_task

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
