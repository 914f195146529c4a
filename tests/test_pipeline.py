"""Sampling on devices of its own: without a lag nothing changes; with one, what is drawn is of the
parameters a step ago, while the step before is under way, and a run still goes on bit for bit."""

import itertools
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from test_resume import assert_equal_runs, state_of
from test_train import changed

from grpojax.actor_critic import init_critic, with_abstract_critic
from grpojax.config import (
    CheckpointConfig,
    JudgingConfig,
    MeshConfig,
    OptimizerConfig,
    PPOConfig,
    RewardModelConfig,
)
from grpojax.data import make_batches
from grpojax.grpo import token_losses
from grpojax.learner import abstract_state, init_state
from grpojax.metrics import read_metrics
from grpojax.optimizer import make_optimizer
from grpojax.pipeline import make_pipeline
from grpojax.rewards import compute_rewards
from grpojax.run import initial_params, open_run
from grpojax.sampling import make_sampler, stream_key
from grpojax.sharding import shard_batch, shardings_of, use_mesh
from grpojax.summary import Laps
from grpojax.task import Example
from grpojax.tokenizer import decode_groups
from grpojax.train import make_step, train

ROWS = 32  # completions of a step, so calls of the reward
OWN = MeshConfig(sampling=4)  # of eight devices
LAG = {"lag": 1, "mismatch": "truncated"}
PPO = changed(
    rewards={"test_pipeline:variety": 1.0},
    algorithm="ppo",
    steps=3,
    grpo={"beta": 0.0, **LAG},
    ppo=PPOConfig(critic=OptimizerConfig(learning_rate=1e-2)),
    mesh=OWN,
)
PARTS = ("wait", "reference", "update", "summary")
calls, second_batch = itertools.count(1), threading.Event()


def variety(example, completion):
    if next(calls) > ROWS:
        second_batch.set()
    return len(set(completion)) / 12


def begun(run):
    """The programs of a run's steps, with a thread of their own, and the state before the first."""
    config, optimizer = run.config, make_optimizer(run.config.optimizer, run.config.updates)
    like = abstract_state(run.policy, optimizer, run.mesh, reference=config.grpo.beta > 0)
    trained, critic = initial_params(run, print), None
    if config.algorithm == "ppo":
        like = with_abstract_critic(like, run)
        critic = init_critic(like, trained, config)
    one_step = make_step(run, optimizer, like, None, ThreadPoolExecutor(1))
    return one_step, init_state(optimizer, like.replace(critic=None), trained).replace(
        critic=critic
    )


def all_steps(one_step, state, steps):
    """For each step the state before it, its metrics and its texts; and the state after the last.
    All states are on the host."""
    made = []
    for step in range(steps):
        before = jax.device_get(state)
        state, metrics, _, (groups, _) = one_step(state, {}, step)
        made.append((before, metrics, [group["texts"] for group in groups]))
    return made, state


@pytest.fixture(scope="module")
def lagging(tmp_path_factory):
    """A run of PPO, its programs, and what they made."""
    run = open_run(PPO, tmp_path_factory.mktemp("pipeline"))
    with use_mesh(run.mesh):
        one_step, state = begun(run)
        yield run, one_step, *all_steps(one_step, state, PPO.steps)


def batches_of(run):
    """As CONFIG says."""
    examples = run.task.splits["train"]
    return make_batches(examples, run.tokenizer, prompts_per_step=8, prompt_length=8, seed=3)


def test_completions_are_of_the_parameters_a_step_ago(lagging):
    run, _, made, _ = lagging
    sampler = make_sampler(
        run.policy, group_size=4, completion_length=12, stop_ids=run.stops,
        pad_id=run.tokenizer.pad_id,
    )  # fmt: skip

    def texts_of(params, step):
        params = jax.device_put(params, NamedSharding(run.sampling_mesh, PartitionSpec()))
        prompts = shard_batch(batches_of(run)(step)[1], run.sampling_mesh)
        with use_mesh(run.sampling_mesh):
            drawn = sampler(params, prompts, stream_key(3, "train", step))
        tokens, mask = jax.device_get((drawn.tokens, drawn.mask))
        return decode_groups(run.tokenizer, tokens, mask, run.stops)

    params = [before.params for before, *_ in made]
    for step, (_, metrics, texts) in enumerate(made):
        assert texts == texts_of(params[max(step - 1, 0)], step)
        assert step == 0 or texts != texts_of(params[step], step)
        assert metrics["sampling/lag"] == min(step, 1)
        # With one update a step, the lag is all that is between the sampler and what is trained.
        difference = metrics["sampling/sampling_logp_difference/mean"]
        assert difference < 1e-6 if step == 0 else difference > 1e-3
        assert sum(metrics[f"time/{part}"] for part in PARTS) == pytest.approx(metrics["step_time"])
        assert metrics["time/sample"] > 0 < metrics["time/reward"]


def test_from_its_state_alone_a_step_is_made_again_bit_for_bit(lagging):
    _, one_step, made, last = lagging
    before, metrics, texts = made[-1]
    state = jax.device_put(before, shardings_of(last))  # nothing is under way
    state, again, _, (groups, _) = one_step(state, {}, PPO.steps - 1)
    assert [group["texts"] for group in groups] == texts
    assert again["loss"] == metrics["loss"] and again["critic/loss"] == metrics["critic/loss"]
    jax.tree.map(np.testing.assert_array_equal, state, last)


def test_a_run_killed_with_a_batch_under_way_equals_the_whole_one(tmp_path):
    config = changed(
        steps=3,
        grpo={"reference": "initial", **LAG},
        mesh=OWN,
        checkpoint=CheckpointConfig(every=1, keep=3),
        reward_model=RewardModelConfig(every=1, updates=1, pairs_per_update=8),
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert train(config, whole) == 0
    shutil.copytree(whole, killed)
    for step in ("2", "3"):
        shutil.rmtree(killed / "checkpoints" / step)
    assert train(config, killed) == 0
    assert_equal_runs(killed, whole)
    assert any("older_params" in name for name in state_of(whole, config))
    lines = [line for line in read_metrics(whole) if "rewards/reward_model/mean" in line]
    assert [line["sampling/lag"] for line in lines] == [0, 1, 1]


def test_a_batch_is_judged_while_the_step_before_is_under_way(lagging, monkeypatch):
    run, _, made, last = lagging
    monkeypatch.setitem(globals(), "calls", itertools.count(1))
    second_batch.clear()
    batch_of, seen = batches_of(run), []
    state = jax.device_put(made[0][0], shardings_of(last.replace(older_params=None)))

    def meanwhile(completions):
        """The work of step 0, which does not end before the batch of step 1 is being judged."""
        seen.append(completions)
        assert second_batch.wait(60)

    with ThreadPoolExecutor(1) as thread:
        draw = make_pipeline(run, batch_of, thread)
        drawn, older = draw(state, {}, *batch_of(0), 0, Laps(), meanwhile)
    assert seen == [drawn.completions]
    assert drawn.completions.tokens.devices() == set(jax.devices()[:4])
    assert jax.tree.leaves(older)[0].devices() == set(jax.devices()[4:])


def test_without_a_lag_devices_of_its_own_change_nothing_but_rounding(tmp_path):
    found = []
    # So large an epsilon makes an update a smooth function of the gradient.
    smooth = OptimizerConfig(learning_rate=1.0, adam_epsilon=1.0)
    for mesh in (MeshConfig(), OWN):
        run = open_run(changed(mesh=mesh, optimizer=smooth), tmp_path)
        with use_mesh(run.mesh):
            found.append(all_steps(*begun(run), 2))
    (plain, after), (own, after_own) = found
    for (_, metrics, texts), (_, same, same_texts) in zip(plain, own):
        assert texts == same_texts
        assert metrics.keys() == same.keys()
        for name in metrics.keys() - {"step_time"}:
            if not name.startswith(("time/", "flops_per_second/", "bytes_per_second/")):
                assert metrics[name] == pytest.approx(same[name], rel=1e-4, abs=1e-6), name
    ours, theirs = jax.device_get((after.params, after_own.params))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), ours, theirs)


def test_the_weight_of_a_lag_is_that_of_rescored_log_probabilities():
    """With one update a step π_old is π_θ, so that scoring it once more would change nothing."""
    noise = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    logps, sampled, advantages = -1 + 0.1 * noise[0], -1 + noise[1], noise[2]
    mask = np.ones((4, 5), bool)

    def loss(logps, old):
        losses, _ = token_losses(
            logps, old, None, jnp.array(advantages), jnp.array(mask), jnp.array(sampled),
            beta=0.0, clip_low=0.2, clip_high=0.2, mismatch="truncated",
        )  # fmt: skip
        return losses.sum()

    once, again = (jax.grad(loss)(logps, old) for old in (None, jnp.array(logps)))
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
        ({"mesh": {"sampling": 6}, "grpo": {"prompts_per_step": 8}}, "step=8 must .* 6"),
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
