"""Tasks read from files: what each makes of a row as published, and of the files that are there."""

import json

import pytest

from grpojax.config import DataConfig
from grpojax.tasks import TASKS, load_task

GSM8K = {"question": "How many?", "answer": "1+1=<<1+1=2>>2\n#### 2"}
SVAMP = {
    "ID": "chal-1",
    "Body": "Each pack costs 76 dollars. If there is a discount of 25 dollars",
    "Question": "How much is a pack?",
    "Equation": "( 76.0 - 25.0 )",
    "Answer": 51.0,
    "Type": "Common-Divison",
}
AQUA = {
    "question": "What is 2 + 2?",
    "options": ["A)3", "B)4", "C)5", "D)6", "E)7"],
    "rationale": "Two and two make four.",
    "correct": "B",
}
EGSM = {"question": "Long ago, how many?", "orig_question": "How many?", "answer": "70000", "id": 1}
MATH = {
    "problem": "What is $1/2 + 1/2$?",
    "solution": r"It is \boxed{\frac{2}{2}}.",
    "level": "Level 5",
    "type": "Algebra",
}
EGGS = "She eats three of the eggs every morning and sells the others at the market"
MATH500 = {**MATH, "level": 5, "subject": "Algebra", "answer": "1", "unique_id": "test/x/1.json"}


@pytest.fixture
def load(tmp_path):
    """A function that writes files of rows, and loads a task from their folder."""

    def write_and_load(name: str, files: dict[str, list | str], **fields):
        for file, rows in files.items():
            lines = rows if isinstance(rows, str) else "".join(json.dumps(r) + "\n" for r in rows)
            (tmp_path / file).write_text(lines, encoding="utf-8")
        return load_task(
            name, DataConfig(dir=str(tmp_path), cache=str(tmp_path / "cache"), **fields)
        )

    return write_and_load


def questions(count):
    return [{**GSM8K, "question": f"How many of {i}?"} for i in range(count)]


def test_svamp_joins_body_and_question_and_is_all_held_out(load):
    task = load("svamp", {"SVAMP.json": json.dumps([SVAMP], indent=4)})
    (example,) = task.splits["test"]
    assert example.question == (
        "Each pack costs 76 dollars. If there is a discount of 25 dollars, How much is a pack?"
    )
    assert (example.answer, example.category) == ("51", "Common-Division")
    assert task.rewards["accuracy"](example, "76 - 25 = 51") == 1.0
    assert not task.splits["train"] and not task.splits["validation"]


def test_a_benchmark_trains_on_gsm8ks_training_file_if_it_is_there(load):
    files = {"SVAMP.json": json.dumps([SVAMP]), "train.jsonl": questions(16)}
    splits = load("svamp", files).splits
    assert {split: len(examples) for split, examples in splits.items()} == {
        "train": 14,
        "validation": 2,
        "test": 1,
    }
    assert splits["test"][0].id == 0  # whatever is beside the benchmark


def test_aqua_asks_for_the_letter_of_a_choice(load):
    files = {"dev.json": [AQUA], "test.json": [{**AQUA, "correct": "E"}]}
    task = load("aqua", files)
    (example,) = task.splits["test"]
    assert "What is 2 + 2?\nA)3\nB)4\nC)5\nD)6\nE)7\n" in example.prompt and example.answer == "E"
    for text, letter in (("E", "E"), (" (E) ", "E"), ("E)", "E"), ("B", "B"), ("7", None)):
        completion = f"<think>B</think><answer>{text}</answer>"
        assert task.extract(completion) == letter
        assert task.rewards["accuracy"](example, completion) == float(letter == "E")
    assert task.extract("E") is None and task.splits["train"] == []
    worked = load("aqua", files | {"train.json": [{**AQUA, "question": "2 and 2?"}]})
    (trained,) = worked.splits["train"]
    assert all(reward(trained, trained.completion) == 1.0 for reward in worked.rewards.values())
    assert worked.splits["test"] == task.splits["test"]


def test_aqua_refuses_a_right_choice_that_is_not_offered(load):
    rows = [{**AQUA, "correct": "F"}, {**AQUA, "options": "A)1"}, AQUA]
    note = load("aqua", {"dev.json": [AQUA], "test.json": rows}).notes[-1]
    assert "2 malformed rows" in note
    assert "one of its choices as 'correct', got 'F'" in note and "list of texts as" in note


def test_mgsm_asks_in_the_language_and_rewards_its_script(load):
    files = {
        "mgsm_te.tsv": "ఎన్ని గుడ్లు?\t1,024\n",
        "mgsm_en.tsv": "How many eggs?\t1,024\nAnd hens?\t3\n",
        "mgsm_ru.tsv": "Сколько яиц?\t1,024\nno number\n",
    }
    task = load("mgsm", files)
    test = task.splits["test"]
    assert [e.category for e in test] == ["en", "ru", "te", "en"]  # one of each in turn
    assert [e.answer for e in test] == ["1024", "1024", "1024", "3"]
    assert "row 2 must be a question, a tab and a number" in task.notes[-1]
    english, russian, telugu, _ = test
    assert telugu.prompt.startswith("ఎన్ని గుడ్లు?\nReason step by step in Telugu between <think>")
    for example, said in ((english, EGGS), (russian, "яиц"), (telugu, "గుడ్లు")):
        for other in (english, russian, telugu):
            expected = float(other is example)
            assert task.rewards["language"](other, f"<think>{said}</think>") == expected


def test_subset_chooses_languages_and_rounds_and_refuses_others(load):
    files = {"mgsm_en.tsv": "How many eggs?\t1\n", "mgsm_de.tsv": "Wie viele Eier?\t1\n"}
    (example,) = load("mgsm", files, subset=("de",)).splits["test"]
    assert example.category == "de"
    with pytest.raises(ValueError, match=r"data\.subset must be of en, bn, .*, got 'xx'"):
        load("mgsm", files, subset=("xx",))
    with pytest.raises(ValueError, match=r"put mgsm_fr\.tsv there"):
        load("mgsm", files, subset=("fr",))


def test_egsm_names_the_round_and_counts_gsm8ks_test_file_as_round_0(load):
    files = {"Q1.jsonl": [EGSM], "Q3.jsonl": [EGSM], "test.jsonl": [GSM8K]}
    test = load("egsm", files).splits["test"]
    assert [(e.category, e.answer) for e in test] == [("Q1", "70000"), ("Q3", "70000"), ("Q0", "2")]
    assert test[0].question == "Long ago, how many?"
    assert {e.origin for e in test} == {"How many?"}
    (alone,) = load("egsm", {}, subset=("Q3",)).splits["test"]
    assert alone.category == "Q3"


def test_math_boxes_its_answers_and_math500_states_them(load):
    rows = [{**MATH, "problem": f"What is ${i}/2$?"} for i in range(8)]
    task = load("math", {"train.jsonl": rows, "test.jsonl": [MATH, {**MATH, "solution": "1"}]})
    (example,) = task.splits["test"]
    assert (example.answer, example.category) == (r"\frac{2}{2}", "level 5")
    assert "must box an answer in its solution, got '1'" in task.notes[-1]
    assert task.rewards["accuracy"](example, example.completion) == 1.0
    assert [len(task.splits[split]) for split in ("train", "validation")] == [7, 1]
    task = load("math500", {"test.jsonl": [MATH500]})
    (example,) = task.splits["test"]
    assert (example.answer, example.category) == ("1", "level 5")
    assert task.rewards["accuracy"](example, r"\boxed{1}") == 1.0
    assert len(task.splits["train"]) == 7


def test_jsonl_reads_the_fields_that_the_config_names(load):
    row = {"q": "2 + 2?", "a": 4, "why": "<answer>4</answer>", "kind": "sum"}
    files = {
        "train.jsonl": [{**row, "q": f"{i} + 2?", "a": i + 2} for i in range(8)],
        "test.jsonl": [row, {**row, "a": "four"}],
    }
    fields = dict(
        prompt_field="q",
        answer_field="a",
        completion_field="why",
        category_field="kind",
        template="Q: {prompt} {A}:",
    )
    task = load("jsonl", files, **fields)
    (example,) = task.splits["test"]
    assert example.prompt == "Q: 2 + 2? {A}:" and example.question == "2 + 2?"
    assert (example.answer, example.completion, example.category) == (
        "4",
        "<answer>4</answer>",
        "sum",
    )
    assert "must have a number as 'a', got 'four'" in task.notes[-2]
    assert "1 training examples left out" in task.notes[-1]
    assert len(task.splits["train"]) + len(task.splits["validation"]) == 7
    own = load("jsonl", {"validation.jsonl": [{**row, "q": "3 - 1?"}]}, **fields)
    assert [e.question for e in own.splits["validation"]] == ["3 - 1?"]


@pytest.mark.parametrize(
    "answers, right, wrong",
    [
        ("number", "so 4", "4 or 5"),
        ("tagged", "<answer> 4 </answer>", "4"),
        ("boxed", r"\boxed{4}", "4"),
    ],
)
def test_jsonl_compares_what_the_config_says(load, answers, right, wrong):
    files = {"test.jsonl": [{"prompt": "2 + 2?", "answer": "4"}]}
    files["train.jsonl"] = [{"prompt": f"{i} + 2?", "answer": str(i + 2)} for i in range(3, 11)]
    task = load("jsonl", files, answers=answers)
    (example,) = task.splits["test"]
    assert task.rewards["accuracy"](example, right) == 1.0
    assert task.rewards["accuracy"](example, wrong) == 0.0


@pytest.mark.parametrize("name", ["gsm8k", "svamp", "aqua", "mgsm", "egsm", "math", "jsonl"])
def test_without_files_a_task_says_which_to_put_where(name, tmp_path):
    with pytest.raises(ValueError, match=r"data\.dir must be a folder with .*: put \S+ there"):
        TASKS[name](DataConfig(dir=str(tmp_path)))
