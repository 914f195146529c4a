"""Records: rows that are no text or no problem are left out, counted and named, up to a limit."""

import hashlib
import json
import tracemalloc

import pytest

from grpojax.__main__ import main
from grpojax.config import DataConfig
from grpojax.tasks import load_task
from grpojax.tasks.records import LONGEST, read_rows

GOOD = [{"question": f"How much is {i} + 1?", "answer": f"#### {i + 1}"} for i in range(20)]
DEEP = b"[" * 100_000

# What a row is, its bytes, and what is said of it.
MALFORMED = [
    ("not JSON", b"not json", "is not JSON (Expecting value"),
    ("cut off", b'{"question": "How', "is not JSON (Unterminated string"),
    ("a list", b'["question", "answer"]', "must be a JSON object, got list"),
    ("missing key", b'{"question": "How?"}', "has no 'answer'"),
    ("wrong type", b'{"question": 3, "answer": "#### 5"}', "text as 'question', got '3'"),
    ("blank text", b'{"question": " ", "answer": "#### 5"}', "text as 'question', got ' '"),
    ("no number", b'{"question": "How?", "answer": "#### five"}', "in '#### number', got"),
    ("not UTF-8", b'{"question": "\xff\xfe", "answer": "#### 5"}', "is not UTF-8"),
    ("a NUL", b'{"question": "How\0?", "answer": "#### 5"}', "holds a NUL"),
    ("an escaped NUL", rb'{"question": "\u0000", "answer": "#### 5"}', "holds a NUL"),
    ("half a pair", rb'{"question": "\ud800", "answer": "#### 5"}', "is not Unicode text"),
    ("empty", b" \t", "is empty"),
    ("nested", DEEP, "is nested too deeply"),
    ("10 MB", b"x" * (LONGEST + 1), "is longer than 10,000,000 bytes"),
]


@pytest.fixture
def load(tmp_path):
    """A function that writes train.jsonl with the given rows in its middle, and loads the task."""

    def write_and_load(*rows: bytes, **fields):
        lines = [json.dumps(row).encode() for row in GOOD]
        lines[10:10] = rows
        (tmp_path / "train.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        (tmp_path / "test.jsonl").write_text(json.dumps({"question": "2?", "answer": "#### 2"}))
        data = DataConfig(dir=str(tmp_path), cache=str(tmp_path / "cache"), **fields)
        return load_task("gsm8k", data)

    return write_and_load


def questions(task):
    return [e.question for e in (*task.splits["validation"], *task.splits["train"])]


@pytest.mark.parametrize("row, why", [pytest.param(r, w, id=name) for name, r, w in MALFORMED])
def test_a_malformed_row_is_left_out_and_named_with_file_row_and_reason(load, tmp_path, row, why):
    task = load(row)
    assert questions(task) == [row["question"] for row in GOOD]
    assert task.splits["train"][-1].id == 20 and task.splits["test"][0].id == 21
    note = task.notes[-1]
    assert note.startswith(f"1 malformed rows left out: {tmp_path}/train.jsonl, row 11 ")
    assert why in note and len(note) < 400 and "\n" not in note
    assert "train.jsonl: 20 of 21 rows" in task.notes[0]


def test_malformed_rows_are_counted_again_when_the_records_come_from_the_cache(load):
    first, again = load(b"\xff", b"{}"), load(b"\xff", b"{}")
    assert first.notes == again.notes
    assert "2 malformed rows" in again.notes[-1]


def test_more_malformed_rows_than_allowed_stop_the_run_and_the_first_are_named(load):
    assert "10 malformed rows" in load(*[b"{}"] * 10).notes[-1]
    with pytest.raises(ValueError, match=r"at most data\.max_malformed=10 .* got 11: .*") as error:
        load(*[b"{}"] * 10, b"\0")
    said = str(error.value)
    assert said.count("row ") == 3 and said.endswith("; and 8 more") and "\n" not in said
    with pytest.raises(ValueError, match=r"max_malformed=0 .* got 1"):
        load(b"{}", max_malformed=0)
    assert len(questions(load(*[b"{}"] * 30, max_malformed=30))) == 20


def test_a_row_of_10_mb_is_read_and_one_byte_more_is_passed_over(tmp_path):
    path = tmp_path / "rows.jsonl"
    for extra, expected in ((0, (b"x" * LONGEST).decode()), (1, "")):
        path.write_bytes(b"a\r\n" + b"x" * (LONGEST + extra) + b"\r\nb")
        (first, _), (text, fault), (last, _) = read_rows(path)
        assert (first, last) == ("a", "b") and text == expected
        assert bool(fault) == bool(extra)


def test_a_row_without_end_is_never_held_whole(tmp_path):
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as file:
        file.truncate(20 * LONGEST)  # zeros without a line's end, which take no room on the disk
    tracemalloc.start()
    rows = list(read_rows(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(rows) == 1 and rows[0][1].startswith("is longer")
    assert peak < 4 * LONGEST


def test_a_list_of_problems_is_read_as_its_elements(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[\n  {"a": 1},\n  {"a": "é"}\n]\n', encoding="utf-8")
    assert [json.loads(text) for text, _ in read_rows(path)] == [{"a": 1}, {"a": "é"}]
    path.write_text('[{"a": 1}, ')
    with pytest.raises(ValueError, match=r"rows\.json begins as a JSON list but is none"):
        list(read_rows(path))


def test_a_broken_list_ends_the_command_in_one_line(tmp_path, capsys):
    (tmp_path / "SVAMP.json").write_text("[{")
    place = ["--data.dir", str(tmp_path), "--data.cache", str(tmp_path / "cache")]
    assert main(["data", "check", "svamp:test", "svamp:test", *place]) == 2
    said = capsys.readouterr().err
    assert "begins as a JSON list" in said and said.count("\n") == 1


def test_a_file_must_have_the_digest_that_the_config_states(load, tmp_path):
    digest = hashlib.sha256(b"\n".join(json.dumps(row).encode() for row in GOOD) + b"\n")
    right = digest.hexdigest()
    assert any(right in note for note in load(sha256={"train.jsonl": right.upper()}).notes)
    wrong = "0" * 64
    with pytest.raises(ValueError, match=rf"train\.jsonl must have the SHA-256 {wrong} .*{right}"):
        load(sha256={"train.jsonl": wrong})
    with pytest.raises(ValueError, match=r"data\.sha256 .* 'tain\.jsonl'"):
        load(sha256={"tain.jsonl": right})


def test_a_digest_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"sha256 of a must be 64 hex digits, got 'abc'"):
        DataConfig(sha256={"a": "abc"})
