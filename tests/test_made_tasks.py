"""Tasks that make their problems: answers are right, splits share none, and never change."""

import re
from fractions import Fraction

import pytest

from grpojax.config import DataConfig
from grpojax.rewards.failure import Failed
from grpojax.rewards.workers import Workers
from grpojax.task import Example
from grpojax.tasks import TASKS, load_task

SIGNS = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
}


@pytest.fixture(scope="module")
def chain():
    return load_task("chain", DataConfig())


@pytest.fixture(scope="module")
def countdown():
    return load_task("countdown", DataConfig())


def every(task):
    return [example for split in task.splits.values() for example in split]


def test_every_chain_is_worked_left_to_right_within_0_and_99(chain):
    for example in every(chain):
        first, *rest, equals = example.prompt.split()
        values = [int(first)]
        for word in rest:
            values.append(SIGNS[word[0]](values[-1], int(word[1:])))
        assert equals == "=" and int(example.answer) == values[-1]
        assert all(0 <= value <= 99 for value in values)
        steps = re.findall(r"(\d+)([-+*]\d+)=(\d+)", example.completion)
        worked = [(str(a), word, str(b)) for a, word, b in zip(values, rest, values[1:])]
        assert steps == worked and example.category == f"{len(rest)} operations"
        assert all(reward(example, example.completion) == 1.0 for reward in chain.rewards.values())


def test_a_chain_worked_by_hand(chain):
    (example,) = (e for e in every(chain) if e.prompt == "8 *7 +1 -4 =")
    assert example.completion == "<think>8*7=56 56+1=57 57-4=53</think><answer>53</answer>"


def work_out(tokens):
    """The value of a fully bracketed expression: a second reader than the reward's."""
    token = tokens.pop(0)
    if token != "(":
        return Fraction(token)
    left, sign, right = work_out(tokens), tokens.pop(0), work_out(tokens)
    assert tokens.pop(0) == ")"
    return SIGNS[sign](left, right)


def test_every_countdown_solution_uses_each_number_once_and_makes_the_target(countdown):
    for example in every(countdown):
        expression = re.search(r"<answer>(.*)</answer>", example.completion)[1]
        target, numbers = re.fullmatch(r"(\d+) from ([\d ]+)", example.answer).groups()
        used = re.findall(r"\d+", expression)
        assert sorted(used) == sorted(numbers.split()) and len(used) in (3, 4)
        assert work_out(re.findall(r"\d+|.", f"({expression})")) == int(target)
        assert f"Use {numbers.replace(' ', ', ')}, each exactly once" in example.prompt
        assert f"to make {target}." in example.prompt
        for a, sign, b, value in re.findall(r"(\d+)([-+*/])(\d+)=(\d+)", example.completion):
            assert SIGNS[sign](Fraction(a), Fraction(b)) == int(value)


def test_countdown_solutions_earn_every_reward_and_other_expressions_do_not(countdown):
    for example in countdown.splits["test"]:
        assert all(r(example, example.completion) == 1.0 for r in countdown.rewards.values())
        target = example.answer.split()[0]
        assert countdown.rewards["accuracy"](example, f"<answer>{target}</answer>") == 0.0


def test_no_countdown_is_in_two_splits_in_whatever_order_its_numbers_are(countdown):
    problems = [
        {(e.answer.split()[0], tuple(sorted(e.answer.split()[2:]))) for e in examples}
        for examples in countdown.splits.values()
    ]
    assert sum(map(len, problems)) == len(set.union(*problems)) == len(every(countdown))


def test_no_chain_is_in_two_splits(chain):
    assert len({e.prompt for e in every(chain)}) == len(every(chain))


@pytest.mark.parametrize("name", ["chain", "countdown"])
def test_made_problems_never_change(name, request):
    task = request.getfixturevalue(name)
    assert task.splits == TASKS[name](DataConfig()).splits
    assert task.notes == () and len(task.splits["test"]) == 512
    known = {"chain": "8 *3 +7 +2 *2 -7 =", "countdown": "22 from 10 1 12"}
    assert known[name] in (task.splits["test"][0].prompt, task.splits["test"][0].answer)


@pytest.fixture(scope="module")
def gym():
    generators = ("leg_counting", "list_functions")  # the latter depends on the process's own state
    return load_task("reasoning_gym", DataConfig(subset=generators, generated=8))


def score(task, cases):
    """What the rewards "accuracy" and "score" say of each case, asked as a run asks them."""
    said = []
    for name in ("accuracy", "score"):
        assert task.rewards[name].kind == "killable"
        workers = Workers(task.rewards[name].imported, count=1, memory=1024)
        said.append(workers.call_all(cases, 10.0))
        workers.close()
    return list(zip(*said))


def test_generators_of_reasoning_gym_take_turns(gym):
    assert {k: len(v) for k, v in gym.splits.items()} == {
        "train": 8,
        "validation": 128,
        "test": 256,
    }
    first, second, *_ = gym.splits["test"]
    assert (first.category, second.category) == ("leg_counting", "list_functions")
    assert first.prompt.startswith(first.question.strip())
    assert "how many legs" in first.question and first.answer.isdigit()
    assert gym.notes[0].startswith("made by reasoning_gym 0.")


def test_reasoning_gym_judges_in_another_process_that_makes_the_problem_again(gym):
    legs, lists = gym.splits["test"][:2]
    right = [(e, f"<answer> {e.answer} </answer>") for e in gym.splits["test"][:40]]
    said = score(
        gym,
        [
            *right,
            (legs, f"<answer>{legs.answer} legs</answer>"),
            (legs, "<answer>no</answer>"),
            (legs, legs.answer),
            (lists, "<answer>[</answer>"),
            (Example(id=legs.id, prompt="", answer="1", category="leg_counting"), "<answer>1"),
        ],
    )
    assert said[:40] == [(1.0, 1.0)] * 40
    digits = len(legs.answer)
    assert said[40] == (0.0, pytest.approx(digits / (digits + 5)))
    assert said[41:44] == [(0.0, 0.0)] * 3
    assert all(isinstance(f, Failed) and "same when it is made again" in f.why for f in said[44])


@pytest.mark.parametrize(
    "fields, said",
    [
        ({}, "must name generators of reasoning-gym, got ''"),
        ({"subset": ("leg_countin",)}, r"got 'leg_countin' \(did you mean leg_counting\?\)"),
        ({"subset": ("gcd",), "generated": 9617}, "generated must be at most 9616, got 9617"),
    ],
)
def test_reasoning_gym_refuses_what_it_cannot_make(fields, said):
    with pytest.raises(ValueError, match=said):
        load_task("reasoning_gym", DataConfig(**fields))
