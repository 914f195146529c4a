"""Evaluation: every problem counts once, errors are over problems, and a run's numbers return."""

import dataclasses
import math
import zlib

import jax
import numpy as np
import pytest
from flax.core import meta
from test_train import CONFIG

from grpojax.evaluate import evaluate_run, make_evaluator, pass_at_k, sampled_metrics, with_error
from grpojax.metrics import read_metrics
from grpojax.model import init_params
from grpojax.run import open_run
from grpojax.sharding import use_mesh
from grpojax.task import Example, Task
from grpojax.train import train

judged: list[tuple[int, str]] = []  # example ids and completions, in the order they were judged


def sums(data) -> Task:
    """Problems whose "accuracy" is a share between 0 and 1 that depends on the completion."""
    examples = [Example(id=i, prompt=f"{i}=", answer="") for i in range(200)]
    splits = {"train": examples[:60], "validation": examples[60:63], "test": examples[63:]}
    return Task(splits=splits, rewards={"accuracy": share})


def share(example, completion):
    judged.append((example.id, completion))
    return zlib.crc32(completion.encode()) % 101 / 100


TASK = dataclasses.replace(CONFIG, task="test_evaluate:sums", rewards={"accuracy": 1.0}, steps=1)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """`evaluated(examples, samples, group_size, step)`: metrics of the test split, judged."""
    folder = tmp_path_factory.mktemp("evaluate")

    def evaluated(examples, samples, group_size=4, step=0):
        grpo = dataclasses.replace(TASK.grpo, group_size=group_size)
        run = open_run(dataclasses.replace(TASK, grpo=grpo), folder)
        params = meta.unbox(init_params(run.policy, jax.random.key(0)))
        params = jax.tree.map(lambda x: 3 * x, params)  # far from ties
        judged.clear()
        with use_mesh(run.mesh):
            evaluate = make_evaluator(run, examples=examples, samples=samples, k=(samples,))
            return evaluate(params, step, "test"), judged.copy()

    return evaluated


def test_pass_at_k_of_four_right_among_sixteen():
    assert pass_at_k(16, 4, 1) == 0.25
    assert pass_at_k(16, 4, 4) == pytest.approx(0.728021978, abs=1e-9)
    assert pass_at_k(16, 4, 8) == pytest.approx(0.961538462, abs=1e-9)
    assert (pass_at_k(16, 0, 8), pass_at_k(16, 9, 8)) == (0, 1)


def test_pass_at_k_is_the_share_of_subsets_with_a_right_one():
    rng = np.random.default_rng(0)
    subsets = [rng.permutation(6)[:3] for _ in range(20_000)]
    found = np.mean([subset.min() < 2 for subset in subsets])  # 0 and 1 are right
    assert pass_at_k(6, 2, 3) == pytest.approx(found, abs=0.015)


def test_standard_errors_are_the_deviation_over_problems_by_the_root_of_their_number():
    right = np.array([[1.0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    metrics = sampled_metrics(right, np.ones((3, 4), bool), (1, 2))
    assert metrics["sampled_accuracy"] == metrics["pass@1"] == pytest.approx(1.25 / 3)
    # deviations from 5/12 in twelfths: -2, 7, -5; their squares add up to 78
    error = math.sqrt(78 / 144 / 2 / 3)
    assert metrics["sampled_accuracy_se"] == metrics["pass@1_se"] == pytest.approx(error)
    assert metrics["pass@2"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert metrics["pass@2_se"] == pytest.approx(math.sqrt(0.5 / 2 / 3))


def test_samples_that_could_not_be_judged_count_nowhere():
    right = np.array([[1.0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
    valid = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], bool)
    metrics = sampled_metrics(right, valid, (2, 4))
    assert metrics["sampled_accuracy"] == pytest.approx(0.5)
    assert metrics["pass@2"] == pytest.approx((1 + 5 / 6) / 2)
    assert metrics["pass@4"] == 1  # of the one problem with four samples
    assert math.isnan(metrics["pass@4_se"])


def test_nothing_to_average_is_nan_not_zero():
    assert math.isnan(with_error("accuracy", np.array([]))["accuracy"])


def test_every_problem_counts_once_although_the_last_batch_is_filled_up(evaluated):
    metrics, seen = evaluated(examples=37, samples=2)  # 32 completions at a time
    ids = [id for id, _ in seen]
    assert ids[:37] == list(range(63, 100))  # greedy
    assert ids[37:] == [id for id in range(63, 100) for _ in range(2)]
    values = [zlib.crc32(text.encode()) % 101 / 100 for _, text in seen]
    greedy, pairs = np.array(values[:37]), np.array(values[37:]).reshape(37, 2).mean(1)
    for name, values in (("accuracy", greedy), ("sampled_accuracy", pairs)):
        assert metrics[name] == pytest.approx(values.mean(), abs=1e-6)
        assert metrics[f"{name}_se"] == pytest.approx(values.std(ddof=1) / 37**0.5, abs=1e-6)


def test_completions_do_not_depend_on_how_many_are_drawn_at_once(evaluated):
    _, texts = evaluated(examples=37, samples=2)  # 32 at once: the last batch is filled up
    _, others = evaluated(examples=64, samples=2, group_size=16)  # 128 at once: none is
    assert texts == others[:37] + others[64 : 64 + 2 * 37]


def test_greedy_completions_are_the_same_after_any_step_and_sampled_ones_are_not(evaluated):
    first, texts = evaluated(examples=20, samples=2)
    other, other_texts = evaluated(examples=20, samples=2, step=1)
    assert texts[:20] == other_texts[:20] and first["accuracy"] == other["accuracy"]
    assert texts[20:] != other_texts[20:]


@pytest.mark.long
def test_a_finished_run_evaluated_again_gives_the_numbers_it_recorded(tmp_path):
    evaluation = dataclasses.replace(TASK.evaluation, examples=20, samples=2)
    config = dataclasses.replace(TASK, evaluation=evaluation)
    assert train(config, tmp_path) == 0
    recorded = {split: read_last(tmp_path, f"{name}/") for split, name in SPLITS.items()}
    for split, expected in recorded.items():
        again = evaluate_run(tmp_path, split=split, samples=2, k=(2,), examples=20, step=1)
        assert again == {"step": 1, **expected}
        assert 0 < again["sampled_accuracy"] < 1
    for fields, rule in (
        ({"split": "dev"}, "split must be one of train, validation, test, got 'dev'"),
        ({"k": (3,)}, "pass@k needs k of at most samples=2, got k=3"),
        ({"step": 7}, "no checkpoint 7"),
    ):
        asked = dict(split="test", samples=2, k=(2,), examples=20, step=None) | fields
        with pytest.raises(ValueError, match=rule):
            evaluate_run(tmp_path, **asked)


SPLITS = {"validation": "eval", "test": "test"}  # how a run calls its metrics of a split


def read_last(workdir, prefix):
    """The last line of a run's metrics with names that begin with `prefix`, without it."""
    lines = [
        {name.removeprefix(prefix): x for name, x in line.items() if name.startswith(prefix)}
        for line in read_metrics(workdir)
    ]
    return [line for line in lines if line][-1]
