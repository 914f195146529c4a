"""Training as a whole: refused and allowed changes, damage, rewards that fail, updates refused."""

import dataclasses
import json
import re
import shutil
import zlib

import jax
import numpy as np
import pytest
from flax.core import meta
from test_resume import assert_equal_runs

from grpojax.arithmetic import dry_run
from grpojax.checkpoint import restore_params
from grpojax.config import (
    CheckpointConfig,
    Config,
    EvaluationConfig,
    GRPOConfig,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    SamplingConfig,
)
from grpojax.metrics import read_groups, read_metrics
from grpojax.model import Policy, init_params
from grpojax.rewards.accuracy import exact_answer
from grpojax.run import open_run, start_run
from grpojax.task import Example, Task
from grpojax.train import train

CONFIG = Config(
    task="addition",
    rewards={"test_train:variety": 1.0},
    tokenizer="bytes",
    steps=4,
    seed=3,
    model=ModelConfig(
        vocab_size=264, embed_dim=16, ffw_dim=32, num_layers=1, num_heads=2, num_kv_heads=1,
        head_dim=8, max_length=32,
    ),
    sampling=SamplingConfig(prompt_length=8, completion_length=12),
    grpo=GRPOConfig(prompts_per_step=8, group_size=4, beta=0.05, reference="previous"),
    optimizer=OptimizerConfig(learning_rate=1e-2),
    evaluation=EvaluationConfig(every=0, examples=8, samples=2),
    checkpoint=CheckpointConfig(every=2, keep=2),
    logging=LoggingConfig(completions_every=1, tensorboard=False),
)  # fmt: skip


def variety(example, completion):
    return len(set(completion)) / 12


def squares(data) -> Task:
    """A task whose text has other characters than addition's."""
    examples = [Example(id=i, prompt=f"square of {i}:", answer=f"{i * i}") for i in range(30)]
    splits = {"train": examples[:20], "validation": examples[20:25], "test": examples[25:]}
    return Task(splits=splits, rewards={"accuracy": exact_answer})


def luck(completion: str) -> int:
    """0 to 3, as if at random."""
    return zlib.crc32(completion.encode()) % 4


def failing(example, completion):
    """A quarter raise, a quarter are NaN, a quarter are lists."""
    if luck(completion) == 0:
        raise RuntimeError("no opinion")
    return (1.0, float("nan"), [1.0])[luck(completion) - 1]


def raising(example, completion):
    raise RuntimeError("no opinion")


def huge(example, completion):
    """The sum of two is beyond float32, so a group's mean is not finite."""
    return 3e38 * (luck(completion) < 2)


def changed(**fields) -> Config:
    """CONFIG with other fields; dicts change those of a part."""
    parts = {
        name: dataclasses.replace(getattr(CONFIG, name), **value)
        if isinstance(value, dict) and name != "rewards"
        else value
        for name, value in fields.items()
    }
    return dataclasses.replace(CONFIG, **parts)


def params_at(workdir, step):
    """The parameters of a checkpoint of a run of CONFIG's model."""
    params = meta.unbox(init_params(Policy(CONFIG.model), jax.random.key(CONFIG.seed)))
    if step == 0:
        return params
    like = jax.eval_shape(lambda: params)
    return restore_params(workdir / "checkpoints", like, print, step)[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The directory of a finished run of CONFIG; tests that change it copy it."""
    workdir = tmp_path_factory.mktemp("train") / "run"
    assert train(CONFIG, workdir) == 0
    return workdir


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


def test_a_damaged_newest_checkpoint_is_named_and_the_run_goes_on_from_the_one_before(
    copy, finished, capsys
):
    largest = max((copy / "checkpoints" / "4").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    assert train(CONFIG, copy) == 0
    said = capsys.readouterr().out
    assert re.search(rf"checkpoint 4 in .* is damaged \(.*{largest.name}.*\); 2 is used", said)
    assert "step 3/4" in said
    assert_equal_runs(copy, finished)


def test_a_finished_run_started_again_stays_as_it_is(copy, finished):
    assert train(CONFIG, copy) == 0
    assert (copy / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()
    assert_equal_runs(copy, finished)


def test_a_changed_config_is_refused_with_the_difference_and_nothing_is_touched(copy):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    other = changed(steps=5, optimizer={"learning_rate": 0.5})
    with pytest.raises(ValueError, match="made with another config") as error:
        train(other, copy)
    assert "steps 4 -> 5; optimizer.learning_rate 0.01 -> 0.5;" in str(error.value)
    assert "\n" not in str(error.value)
    assert before == {path: path.stat().st_mtime_ns for path in copy.rglob("*")}


def test_a_reward_or_a_digest_that_comes_or_goes_is_a_changed_config(tmp_path):
    two = {"test_train:variety": 1.0, "accuracy": 0.5}
    start_run(open_run(changed(rewards=two), tmp_path), allow_config_change=False)
    other = changed(rewards={"accuracy": 0.5}, data={"sha256": {"a": "0" * 64}})
    with pytest.raises(ValueError, match="made with another config") as error:
        start_run(open_run(other, tmp_path), allow_config_change=False)
    assert "rewards.test_train:variety 1.0 -> none;" in str(error.value)
    assert f"data.sha256.a none -> {'0' * 64};" in str(error.value)


def test_a_changed_config_is_used_when_that_is_allowed(copy):
    other = changed(steps=5, optimizer={"learning_rate": 0.5})
    assert train(other, copy, allow_config_change=True) == 0
    lines = [line for line in read_metrics(copy) if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert [line["learning_rate"] for line in lines] == pytest.approx([0.01] * 4 + [0.5])
    assert json.loads((copy / "config.json").read_text())["config"]["steps"] == 5


def test_a_run_goes_on_with_the_tokenizer_it_began_with(tmp_path):
    """Even if the text that it was trained on has changed since, with the task or a library."""
    began = open_run(changed(tokenizer=""), tmp_path)
    start_run(began, allow_config_change=False)
    goes_on = open_run(changed(tokenizer="", task="test_train:squares"), tmp_path)
    fresh = open_run(changed(tokenizer="", task="test_train:squares"), tmp_path / "new")
    text = "<think>units 7+8=15"
    assert goes_on.tokenizer.encode(text) == began.tokenizer.encode(text)
    assert goes_on.tokenizer.encode("49") != fresh.tokenizer.encode("49")


def test_failing_rewards_make_completions_invalid_and_are_said_once(tmp_path, capsys):
    assert train(changed(rewards={"test_train:failing": 1.0}), tmp_path) == 0
    said = capsys.readouterr().out
    assert len(re.findall("its completion does not count", said)) == 1
    lines = [line for line in read_metrics(tmp_path) if "loss" in line]
    assert len(lines) == 4
    for line in lines:
        groups = read_groups(tmp_path, line["step"])
        good = [luck(text) == 1 for group in groups for text in group["texts"]]
        assert [v for group in groups for v in group["valid"]] == good
        assert line["completions/invalid"] == good.count(False) > 0
        assert line["reward"] == 1.0  # of the valid ones: a zero among them would lower it
        assert line["updates_refused"] == 0


def test_a_batch_without_a_valid_completion_leaves_the_parameters_unchanged(tmp_path):
    config = changed(rewards={"test_train:raising": 1.0}, steps=2)
    assert train(config, tmp_path) == 0
    lines = [line for line in read_metrics(tmp_path) if "loss" in line]
    assert [line["completions/invalid"] for line in lines] == [32, 32]
    assert [(line["loss"], line["grad_norm"]) for line in lines] == [(0, 0), (0, 0)]
    assert np.isnan(lines[0]["reward"])
    jax.tree.map(np.testing.assert_array_equal, params_at(tmp_path, 2), params_at(tmp_path, 0))


def test_three_updates_that_are_not_finite_end_the_run_with_the_batch_saved(copy, capsys):
    before = params_at(copy, 4)
    config = changed(rewards={"test_train:huge": 1.0}, steps=9)
    assert train(config, copy, allow_config_change=True) == 1
    assert "step 7: 3 updates in a row were not finite; gave up" in capsys.readouterr().out
    lines = [line for line in read_metrics(copy) if "loss" in line]
    assert [line["updates_refused"] for line in lines] == [0, 0, 0, 0, 1, 1, 1]
    with np.load(copy / "nonfinite_batch.npz", allow_pickle=False) as batch:
        assert batch["completions.tokens"].shape == (8, 4, 12)
        assert batch["prompts.tokens"].shape == (8, 8)
        assert not np.isfinite(batch["advantages"]).all()
        assert np.isfinite(batch["ref_logps"]).all()
    assert len(read_groups(copy, 7)) == 8
    jax.tree.map(np.testing.assert_array_equal, params_at(copy, 6), before)


def test_a_dry_run_lists_the_lengths_and_rows_that_are_compiled(tmp_path):
    model = dataclasses.replace(CONFIG.model, max_length=1024)
    sampling = dataclasses.replace(CONFIG.sampling, completion_length=512)
    page = dry_run(dataclasses.replace(CONFIG, model=model, sampling=sampling), tmp_path / "run")
    assert "in 3 x 128 or 4 x 64 or 4 x 128 or 1 x 512 or 2 x 256 or 2 x 384 or 3 x 256" in page
    assert "4 of a group at a time, to token 64 or 128 or 256 or 384 or 512" in page


def test_a_dry_run_counts_the_parameters_and_compiles_nothing(tmp_path, caplog):
    with jax.log_compiles():
        page = dry_run(CONFIG, tmp_path / "run")
        assert "ompil" not in caplog.text and list(tmp_path.iterdir()) == []
        jax.jit(lambda x: x + 1)(1)
        assert "Compiling" in caplog.text  # so it would have been seen
    rows = dict(re.split("  +", line, maxsplit=1) for line in page.splitlines())
    attention = 16 * 8 * (2 + 1 + 1 + 2)  # queries, keys, values, output
    assert rows["parameters"] == f"{264 * 16 + attention + 3 * 16 * 32 + 3 * 16:,}"
    assert "8 prompts x 4 x 12" in rows["tokens per step"]


@pytest.mark.parametrize(
    "fields",
    [
        {"grpo": {"prompts_per_step": 12}},
        {"tokenizer": "absent"},
        {"sampling": {"prompt_length": 3}},
        {"rewards": {"variety": 1.0}},
        {"model": {"vocab_size": 256}},
        {"grpo": {"prompts_per_step": 8000}},
        {"init": "absent"},
    ],
    ids=str,
)
def test_a_dry_run_refuses_what_training_refuses(fields, tmp_path):
    said = []
    for start in (dry_run, train):
        with pytest.raises(ValueError) as error:
            start(changed(**fields), tmp_path / "run")
        said.append(str(error.value))
    assert said[0] == said[1] and "\n" not in said[0]
    assert list(tmp_path.iterdir()) == []
