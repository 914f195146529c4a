"""Rewards: how they are chosen and weighed, and that one that fails is never a zero."""

import math
import sys
import types
from fractions import Fraction

import numpy as np
import pytest

from grpojax.config import JudgingConfig
from grpojax.rewards import choose_rewards, compute_rewards
from grpojax.rewards.accuracy import exact_answer, last_number
from grpojax.rewards.format import layout_followed
from grpojax.task import Example, Task

JUDGING = JudgingConfig()


def problem(id=1):
    return Example(id=id, prompt="47+38=", answer="85")


def test_total_is_the_weighted_sum_in_the_order_of_the_rewards():
    rewards = {"length": lambda example, text: len(text), "id": lambda example, text: example.id}
    judged = compute_rewards(
        rewards, [0.5, 2.0], [problem(id=1), problem(id=3)], [["", "ab"], ["abc", "a"]], JUDGING
    )
    np.testing.assert_array_equal(judged.by_name["length"], [[0, 2], [3, 1]])
    np.testing.assert_array_equal(judged.by_name["id"], [[1, 1], [3, 3]])
    np.testing.assert_array_equal(judged.total, [[2, 3], [7.5, 6.5]])
    assert judged.total.dtype == judged.by_name["id"].dtype == np.float32
    assert judged.valid.dtype == np.bool_ and judged.valid.all() and judged.failure == ""


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "must be one number, got NoneType"),
        ("1.0", "must be one number, got str"),
        ([1.0], "must be one number, got list"),
        ([], "must be one number, got list"),
        (np.ones(2), "must be one number, got ndarray"),
        (1j, "must be one number, got complex"),
        (math.nan, "must be finite, got nan"),
        (np.float32(math.nan), "must be finite, got nan"),
        (math.inf, "must be finite, got a number beyond float32"),
        (-math.inf, "must be finite, got a number beyond float32"),
        (1e300, "must be finite, got a number beyond float32"),
        (10**400, "must be finite, got a number beyond float32"),
        (ZeroDivisionError("by hand"), "raised ZeroDivisionError: by hand"),
    ],
)
def test_a_reward_that_fails_makes_its_completion_invalid_and_no_other(value, said):
    def fragile(example, text):
        if text != "bad":
            return 1.0
        if isinstance(value, Exception):
            raise value
        return value

    rewards = {"sound": lambda example, text: 1.0, "fragile": fragile}
    judged = compute_rewards(
        rewards, [1.0, 1.0], [problem(id=1), problem(id=2)], [["a", "b"], ["bad", "bad"]], JUDGING
    )
    np.testing.assert_array_equal(judged.valid, [[True, True], [False, False]])
    np.testing.assert_array_equal(judged.total, [[2, 2], [0, 0]])
    np.testing.assert_array_equal(judged.by_name["sound"], [[1, 1], [0, 0]])
    np.testing.assert_array_equal(judged.by_name["fragile"], [[1, 1], [0, 0]])
    assert judged.failure == f"reward 'fragile' {said} for a completion of example 2"


@pytest.mark.parametrize(
    "value", [True, np.bool_(True), 1, np.int64(1), np.float16(1), Fraction(1)]
)
def test_one_number_of_any_kind_is_a_reward(value):
    judged = compute_rewards(
        {"one": lambda example, text: value}, [3.0], [problem()], [["a"]], JUDGING
    )
    assert judged.valid.item() and judged.total.item() == 3.0


def test_the_first_failure_is_the_one_said():
    def failing(example, text):
        raise RuntimeError(text)

    judged = compute_rewards({"r": failing}, [1.0], [problem()], [["first", "second"]], JUDGING)
    assert judged.failure.startswith("reward 'r' raised RuntimeError: first")


def test_a_sum_beyond_float32_makes_its_completion_invalid():
    judged = compute_rewards(
        {"r": lambda example, text: 3e38}, [10.0], [problem()], [["a"]], JUDGING
    )
    assert not judged.valid.item() and judged.total.item() == 0.0
    assert "sum of rewards must be finite" in judged.failure


@pytest.mark.parametrize(
    ("weights", "texts"),
    [([1.0], [["a"]]), ([1.0], [["a"], ["a", "b"]]), ([1.0, 1.0], [["a"], ["a"]]), ([1.0], [])],
)
def test_weights_and_groups_that_do_not_fit_are_refused(weights, texts):
    with pytest.raises(ValueError, match="need as many groups"):
        compute_rewards(
            {"r": lambda example, text: 1}, weights, [problem(), problem()], texts, JUDGING
        )


@pytest.fixture
def module(monkeypatch):
    """A module of a user's, with a reward of its own."""
    module = types.ModuleType("their_rewards")
    module.shortness = lambda example, completion: 1.0 / (1 + len(completion))
    module.accuracy = exact_answer
    module.weight = 3
    monkeypatch.setitem(sys.modules, "their_rewards", module)
    return module


TASK = Task(splits={}, rewards={"accuracy": last_number, "format": layout_followed})


def test_rewards_are_chosen_by_short_name_or_function_in_the_configs_order(module):
    chosen = choose_rewards(["their_rewards:shortness", "accuracy"], TASK)
    assert list(chosen.items()) == [("shortness", module.shortness), ("accuracy", last_number)]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["acuracy"], "one of accuracy, format, .*, got 'acuracy' .did you mean accuracy"),
        ([""], "must be one of accuracy, format"),
        (["their_reward:shortness"], "No module named 'their_reward'"),
        (["tensorflow_dataset:load"], "did you mean tensorflow_datasets"),
        ([":shortness"], "must name a module"),
        ([".rewards:shortness"], "must name a module"),
        (["their_rewards:shortnes"], "has no 'shortnes' .did you mean shortness"),
        (["their_rewards:weight"], "must name a function of their_rewards"),
        (["their_rewards:"], "must name a function of their_rewards"),
        (["accuracy", "their_rewards:accuracy"], "got 'accuracy' twice"),
        (["accuracy", "accuracy"], "got 'accuracy' twice"),
    ],
)
def test_a_reward_that_cannot_be_found_is_one_line_with_the_nearest_name(module, names, said):
    with pytest.raises(ValueError, match=said) as error:
        choose_rewards(names, TASK)
    assert "\n" not in str(error.value)
