"""Sampling on devices of its own: without a lag nothing changes; with one, what is drawn is of the
parameters a step ago, while the step before is under way, and a run still goes on bit for bit."""

import dataclasses
import itertools
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from test_resume import assert_equal_runs, state_of, without_times
from test_train import changed, params_at

from grpojax.config import (
    CheckpointConfig,
    JudgingConfig,
    MeshConfig,
    PPOConfig,
    RewardModelConfig,
)
from grpojax.data import make_batches
from grpojax.grpo import token_losses
from grpojax.learner import abstract_state, init_state
from grpojax.metrics import read_groups, read_metrics
from grpojax.optimization import OptimizerConfig
from grpojax.optimizer import make_optimizer
from grpojax.pipeline import make_pipeline
from grpojax.rewards import compute_rewards
from grpojax.run import initial_params, open_run
from grpojax.sampling import make_sampler, stream_key
from grpojax.sharding import shard_batch, use_mesh
from grpojax.summary import Laps
from grpojax.task import Example
from grpojax.tokenizer import decode_groups
from grpojax.train import train

STEPS, ROWS = 4, 32  # ROWS: completions of a step, so calls of the reward
OWN = MeshConfig(sampling=4)  # of eight devices
LAG = {"lag": 1, "mismatch": "truncated"}
ITERATED = changed(
    rewards={"test_pipeline:variety": 1.0},
    grpo={"reference": "initial", "minibatches": 2, "old_logps": "rescored", **LAG},
    mesh=OWN,
    checkpoint=CheckpointConfig(every=1, keep=STEPS),
    reward_model=RewardModelConfig(
        every=2, updates=1, pairs_per_update=8, optimizer=OptimizerConfig(learning_rate=1e-2)
    ),
)
calls, last_call = itertools.count(1), 0  # the number of the call that asks the run to end
second_batch = threading.Event()


def variety(example, completion):
    call = next(calls)
    if call == last_call:
        os.kill(os.getpid(), signal.SIGTERM)
    if call > ROWS:
        second_batch.set()
    return len(set(completion)) / 12


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The directory of a run of ITERATED that nothing broke off."""
    workdir = tmp_path_factory.mktemp("pipeline") / "whole"
    assert train(ITERATED, workdir) == 0
    return workdir


def test_completions_are_those_of_the_parameters_a_step_ago(whole, tmp_path):
    run = open_run(ITERATED, tmp_path)
    sampling = ITERATED.sampling
    batch_of = make_batches(
        run.task.splits["train"], run.tokenizer, prompts_per_step=8, prompt_length=8, seed=3
    )
    sampler = make_sampler(
        run.policy, group_size=4, completion_length=sampling.completion_length,
        stop_ids=run.stops, pad_id=run.tokenizer.pad_id,
    )  # fmt: skip

    def texts_of(params, step):
        params = jax.device_put(params, NamedSharding(run.sampling_mesh, PartitionSpec()))
        prompts = shard_batch(batch_of(step)[1], run.sampling_mesh)
        with use_mesh(run.sampling_mesh):
            drawn = sampler(params, prompts, stream_key(3, "train", step))
        tokens, mask = jax.device_get((drawn.tokens, drawn.mask))
        return decode_groups(run.tokenizer, tokens, mask, run.stops)

    for step in range(STEPS):
        recorded = [group["texts"] for group in read_groups(whole, step + 1)]
        older, current = (params_at(whole, k) for k in (max(step - 1, 0), step))
        assert recorded == texts_of(older, step)
        assert step == 0 or recorded != texts_of(current, step)


def test_the_lag_is_recorded_and_seen_in_the_log_probabilities(whole):
    lines = [line for line in read_metrics(whole) if "loss" in line]
    assert [line["sampling/lag"] for line in lines] == [0, 1, 1, 1]
    # The first step has two updates too: its second minibatch is one update from the sampler.
    difference = [line["sampling/sampling_logp_difference/mean"] for line in lines]
    assert min(difference[1:]) > 2 * difference[0] > 0
    for line in lines:  # what ran beside the step is no part of it
        parts = (line[f"time/{part}"] for part in ("wait", "reference", "update", "summary"))
        assert sum(parts) == pytest.approx(line["step_time"], rel=1e-6)
        assert line["time/sample"] > 0 < line["time/reward"]


@pytest.fixture
def end_at(monkeypatch):
    """`end_at(call)`: the run is asked to end at this call of the reward; 0: never."""

    def set_call(call):
        monkeypatch.setitem(globals(), "calls", itertools.count(1))
        monkeypatch.setitem(globals(), "last_call", call)

    return set_call


def test_a_run_broken_off_with_a_batch_under_way_equals_the_whole_one(whole, tmp_path, end_at):
    end_at(2 * ROWS + 5)  # of the third batch, while the second is trained on, or the first
    assert train(ITERATED, tmp_path) == 75
    end_at(0)
    assert not (tmp_path / "checkpoints/4").exists()
    assert train(ITERATED, tmp_path) == 0
    assert_equal_runs(tmp_path, whole)
    assert any("older_params" in name for name in state_of(whole, ITERATED))


def test_a_batch_is_judged_while_the_step_before_is_under_way(tmp_path, end_at):
    end_at(0)
    second_batch.clear()
    config, seen = dataclasses.replace(ITERATED, steps=2), []
    run, optimizer = open_run(config, tmp_path), make_optimizer(config.optimizer, config.updates)
    batch_of = make_batches(
        run.task.splits["train"], run.tokenizer, prompts_per_step=8, prompt_length=8, seed=3
    )
    with use_mesh(run.mesh), ThreadPoolExecutor(1) as thread:
        like = abstract_state(run.policy, optimizer, run.mesh, reference=False)
        state = init_state(optimizer, like, initial_params(run, print))
        draw = make_pipeline(run, batch_of, thread)

        def meanwhile(completions):
            """The work of step 0, which does not end before the batch of step 1 is being judged."""
            seen.append(completions)
            assert second_batch.wait(60)

        drawn, older = draw(state, {}, *batch_of(0), 0, Laps(), meanwhile)
    assert jax.tree.leaves(older)[0].devices() == set(jax.devices()[4:])
    assert seen == [drawn.completions]
    assert drawn.completions.tokens.devices() == set(jax.devices()[:4])


def test_without_a_lag_devices_of_its_own_change_nothing_but_rounding(tmp_path):
    plain = changed(steps=3, mesh=MeshConfig(), checkpoint=CheckpointConfig(every=3))
    own = dataclasses.replace(plain, mesh=OWN)
    for name, config in (("plain", plain), ("own", own)):
        assert train(config, tmp_path / name) == 0
    for step in (1, 2, 3):
        ours, theirs = (read_groups(tmp_path / name, step) for name in ("plain", "own"))
        assert [group["texts"] for group in ours] == [group["texts"] for group in theirs]
    ours, theirs = (without_times(tmp_path / name) for name in ("plain", "own"))
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
    ours, theirs = (params_at(tmp_path / name, 3) for name in ("plain", "own"))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), ours, theirs)


def test_ppo_goes_on_bit_for_bit_with_a_lag(tmp_path, end_at):
    config = changed(
        rewards={"test_pipeline:variety": 1.0},
        algorithm="ppo",
        steps=3,
        grpo={"beta": 0.0, **LAG},
        ppo=PPOConfig(critic=OptimizerConfig(learning_rate=1e-2)),
        mesh=OWN,
        checkpoint=CheckpointConfig(every=1),
    )
    end_at(0)
    assert train(config, tmp_path / "whole") == 0
    end_at(ROWS + 5)
    assert train(config, tmp_path / "broken") == 75
    end_at(0)
    assert train(config, tmp_path / "broken") == 0
    assert_equal_runs(tmp_path / "broken", tmp_path / "whole")


def test_the_weight_of_a_lag_is_that_of_rescored_log_probabilities():
    """With one update a step π_old is π_θ, so that scoring it once more would change nothing."""
    noise = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    logps, sampled, advantages = -1 + 0.1 * noise[0], -1 + 0.5 * noise[1], noise[2]
    mask = np.ones((4, 5), bool)

    def loss(logps, old):
        losses, _ = token_losses(
            logps, old, None, advantages, mask, sampled,
            beta=0.0, clip_low=0.2, clip_high=0.2, mismatch="truncated",
        )  # fmt: skip
        return losses.sum()

    once, again = (jax.grad(loss)(logps, old) for old in (None, logps))
    np.testing.assert_array_equal(once, again)
    weights = np.minimum(np.exp(logps - sampled), 2.0)
    assert (weights == 2.0).any() and (weights < 1).any()
    np.testing.assert_allclose(once, -weights * advantages, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mesh": {"sampling": -1}}, "mesh.sampling must be 0 or more, got -1"),
        ({"grpo": LAG}, "set mesh.sampling to how many do, got 0"),
        ({"mesh": {"sampling": 8}}, "leave some of the 8 devices here to train"),
        ({"mesh": {"sampling": 4, "data": 8}}, "multiply to the 4 devices here that train"),
        ({"mesh": {"sampling": 3, "tensor": 5, "data": 1}}, "mesh.sampling=3 must divide by"),
        ({"mesh": {"sampling": 6}, "grpo": {"prompts_per_step": 8}}, "prompts_per_step=8 must .* 6"),
    ],
    ids=str,
)  # fmt: skip
def test_devices_that_do_not_fit_are_refused_in_one_line(fields, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        open_run(changed(**fields), tmp_path)
    assert "\n" not in str(error.value)


def test_two_batches_are_judged_one_after_the_other():
    """Threads, event loop and workers are the process's own, whoever asks."""
    judging, under_way, both = JudgingConfig(threads=2), set(), []

    def reward_of(name):
        def reward(examples, completions):
            under_way.add(name)
            time.sleep(0.05)
            both.append(len(under_way) > 1)
            under_way.discard(name)
            return [1.0] * len(completions)

        reward.kind = "batched"
        return {name: reward}

    examples, texts = [Example(id=0, prompt="", answer="")], [["a", "b"]]
    with ThreadPoolExecutor(2) as two:
        asked = [
            two.submit(compute_rewards, reward_of(name), [1.0], examples, texts, judging)
            for name in ("ahead", "evaluation")
        ]
        assert all(found.result().valid.all() for found in asked)
    assert both == [False, False]
