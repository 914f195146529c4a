"""Contamination: n-grams that two sets share, by hand, and the command that looks for them."""

import json

import pytest

from grpojax.__main__ import main
from grpojax.contamination import Overlap, overlaps, words_of

TEN = "one two three four five six seven eight nine ten"


@pytest.mark.parametrize(
    "train, test, shared",
    [
        (f"zero {TEN} eleven", f"so {TEN}", TEN),
        (f"{TEN[:-4]}.", TEN, None),  # nine of the ten
        (TEN.replace("five", "5"), f"{TEN} eleven", None),
        (TEN.upper().replace(" ", ",  "), f'"{TEN}"!', TEN),  # case, spaces, punctuation
        ("I ask: what is 2 + 2?", "What is 2 + 2?", "what is 2 + 2"),  # a short question, whole
        ("What is 2 - 2?", "What is 2 + 2?", None),
        ("what is", "What is", None),  # fewer than three words
        ("how many eggs", "How many eggs are there", None),  # a part of a short question
        ("how many eggs are there", "How many eggs", "how many eggs"),
        ("", TEN, None),
        ("鸭子每天下十六颗蛋呢", "她的鸭子每天下十六颗蛋呢。", "鸭 子 每 天 下 十 六 颗 蛋 呢"),
    ],
)
def test_a_training_text_is_contaminated_by_ten_words_in_a_row_or_a_short_test_text(
    train, test, shared
):
    expected = [] if shared is None else [Overlap(0, 0, shared)]
    assert overlaps([train], [test]) == expected


def test_every_pair_is_found_once_with_its_first_shared_words():
    long = f"{TEN} eleven twelve"
    found = overlaps(["nothing", long, long], [long, "else", f"{TEN} eleven"])
    assert [(o.train, o.test) for o in found] == [(1, 0), (1, 2), (2, 0), (2, 2)]
    assert {o.words for o in found} == {TEN}


def test_a_smaller_ngram_finds_no_less():
    text = "She sells the rest of the eggs at the market every day"
    other = "He buys the rest of the eggs at home"
    assert overlaps([text], [other]) == []
    assert overlaps([text], [other], 6) == [Overlap(0, 0, "the rest of the eggs at")]
    assert overlaps([text], [other], 7) == []


def test_words_are_told_apart_by_spaces_or_of_scripts_without_spaces_by_character():
    assert words_of("«Don't» stop, (x+1)=2!") == ["don't", "stop", "x+1)=2"]
    assert words_of("2 ÷ 4 = x²") == ["2", "÷", "4", "=", "x2"]
    assert words_of("ไข่ 16") == [*"ไข่", "16"]
    assert words_of("ప్రతిరోజూ గుడ్లు") == ["ప్రతిరోజూ", "గుడ్లు"]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Two files that share a question, in the current folder, and a folder of GSM8K that does."""
    monkeypatch.chdir(tmp_path)
    rows = {"a.jsonl": ["How many eggs?", TEN, "x"], "b.jsonl": ["What now?", f"So {TEN}"]}
    for name, questions in rows.items():
        lines = (json.dumps({"question": question}) for question in questions)
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    (tmp_path / "gsm8k").mkdir()
    shared = f"{TEN} eggs are sold. How many?"
    for split, count in (("train", 16), ("test", 2)):
        rows = [{"question": f"Are {i} {split} alike?", "answer": "#### 1"} for i in range(count)]
        rows += [{"question": f"{split}: {shared}", "answer": "#### 1"}]
        (tmp_path / "gsm8k" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return tmp_path


def check(capsys, *args, cache="cache"):
    code = main(["data", "check", *args, "--data.cache", cache])
    return code, capsys.readouterr().out


def test_the_command_compares_files_and_exits_1_if_they_share_a_question(files, capsys):
    code, said = check(capsys, "a.jsonl", "b.jsonl")
    assert code == 1
    first, short, shown = said.splitlines()
    assert first.startswith("1 of 3 in a.jsonl share 10 words in a row")
    assert first.endswith("with 1 of 2 in b.jsonl")
    assert short == "1 of 2 in b.jsonl are too short to compare"
    assert shown == f"a.jsonl 1 and b.jsonl 1, counted from 0: {TEN}"
    code, said = check(capsys, "a.jsonl", "b.jsonl", "--ngram", "11", "--shown", "0")
    assert code == 0 and said.startswith("0 of 3 in a.jsonl share 11 words")


def test_the_command_compares_tasks_by_their_questions_and_not_their_common_template(files, capsys):
    code, said = check(capsys, "gsm8k:train", "gsm8k:test", "--data.dir", "gsm8k")
    # The template of the prompts is longer than ten words; 16 questions differ all the same.
    assert code == 1 and "1 of 15 in gsm8k:train share" in said
    assert "with 1 of 3 in gsm8k:test" in said
    code, said = check(capsys, "a.jsonl", "gsm8k:test@gsm8k")
    assert code == 1 and f"a.jsonl 1 and gsm8k:test@gsm8k 2, counted from 0: {TEN}" in said
    code, said = check(capsys, "addition:train", "addition:test")
    assert code == 0


def test_malformed_rows_of_a_file_are_named_up_to_the_limit(files, capsys):
    with (files / "a.jsonl").open("a") as file:
        file.write('{"q": 1}\n\n')
    code, said = check(capsys, "a.jsonl", "b.jsonl")
    assert code == 1
    assert "2 malformed rows left out: a.jsonl, row 4 has no 'question'; a.jsonl, row 5 is" in said
    assert main(["data", "check", "a.jsonl", "b.jsonl", "--data.max-malformed", "1"]) == 2
    assert "max_malformed=1" in capsys.readouterr().err


CHECK = ["data", "check", "a.jsonl", "b.jsonl"]


@pytest.mark.parametrize(
    "args, part",
    [
        (["data", "show", "a", "b"], "action must be one of 'check', got 'show'"),
        (["data", "check", "a.jsonl"], "grpojax data needs TEST test set"),
        (["data", "check", "a", "b"], "a set must be a file, or TASK:SPLIT with a split of train"),
        (["data", "check", "gsm8k:dev", "b"], "got 'gsm8k:dev'"),
        (["data", "check", "gsm8k:train", "b"], "put train.jsonl there"),
        (["data", "check", "svamp:train@svamp", "b"], "svamp:train@svamp must have questions"),
        ([*CHECK, "--ngram", "0"], "ngram must be above 0, got 0"),
        ([*CHECK, "--data.long-prompts", "cut"], "'drop', 'truncate', got 'cut'"),
        ([*CHECK, "--data.sha256", "a.jsonl"], "of a name and a digest, got a.jsonl"),
        ([*CHECK, "--data.sha256", "a", "b"], "sha256 of a must be 64 hex digits, got 'b'"),
        ([*CHECK, "--data.template", "x"], "template must hold {prompt} once, got 'x'"),
        ([*CHECK, "--data.max-malformed", "-1"], "max_malformed must be 0 or more, got -1"),
        ([*CHECK, "--data.generated", "0"], "generated must be above 0, got 0"),
    ],
)
def test_wrong_flags_and_sets_end_in_one_line(files, capsys, monkeypatch, args, part):
    monkeypatch.setenv("HOME", str(files))  # of `data.cache`
    (files / "svamp").mkdir()
    (files / "svamp" / "SVAMP.json").write_text(
        '[{"Body": "A.", "Question": "B?", "Answer": 1.0, "Type": "Addition"}]'
    )
    assert main(args) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1
    assert part in said.err
