"""Objectives of papers, trained for a step by the command's own path: what is logged and moved."""

import dataclasses

import jax
import numpy as np
import pytest
from test_resume import state_of
from test_train import CONFIG

from grpojax.checkpoint import restore_params
from grpojax.config import CheckpointConfig, OptimizerConfig, PPOConfig
from grpojax.lora import split
from grpojax.metrics import read_groups, read_metrics
from grpojax.model import Policy, abstract_params
from grpojax.objective import GRPOConfig
from grpojax.run import open_run
from grpojax.train import train

SMALL = {"prompts_per_step": 8, "group_size": 4, "beta": 0.05}
OBJECTIVES = {
    "rloo": {"advantage": "rloo", "kl": "k1_reward", "reduction": "sequence_sum"},
    "gspo_rescored": {
        "prompts_per_step": 16, "minibatches": 2, "ratio": "sequence", "clip_low": 3e-4,
        "clip_high": 4e-4, "old_logps": "rescored", "mismatch": "masked", "kl": "k3_weighted",
    },
    "dapo": {
        "beta": 0.0, "clip_high": 0.28, "reduction": "prompt_mean", "overlong": "soft",
        "overlong_buffer": 4, "max_draws": 2, "zero_variance": "drop", "advantage": "gdpo",
    },
    "process": {
        "supervision": "process", "entropy_weight": 0.01, "top_entropy": 0.5, "overlong": "mask",
        "surrogate": "sapo",
    },
}  # fmt: skip


def digits(example, steps):
    """The share of each step's characters that are digits or letters."""
    return [sum(c.isalnum() for c in step) / len(step) for step in steps]


@pytest.fixture(scope="module", params=OBJECTIVES)
def run(request, tmp_path_factory):
    """The name of the objective, the run's folder after one step, and its config."""
    process = request.param == "process"
    config = dataclasses.replace(
        CONFIG,
        steps=1,
        grpo=GRPOConfig(**SMALL | OBJECTIVES[request.param]),
        step_reward="test_objectives_train:digits" if process else "",
        step_boundary="e",
    )
    workdir = tmp_path_factory.mktemp(request.param) / "run"
    assert train(config, workdir) == 0
    return request.param, workdir, config


def test_every_objective_moves_the_policy_and_logs_finite_numbers(run):
    name, workdir, config = run
    (line,) = (line for line in read_metrics(workdir) if "loss" in line)
    assert all(np.isfinite(value) for value in line.values()), line
    assert line["grad_norm"] > 0 and line["updates_refused"] == 0
    assert ("kl" in line) == (config.grpo.beta > 0)
    assert ("rewards/overlong/mean" in line) == (name == "dapo")
    assert ("completions/redrawn_groups" in line) == (name == "dapo")
    opened = open_run(config, workdir)
    like, _ = split(abstract_params(Policy(config.model), opened.mesh))
    after, step = restore_params(workdir / "checkpoints", like, print)
    assert step == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))


def test_recorded_advantages_sum_to_zero_where_the_group_is_the_baseline(run):
    name, workdir, _ = run
    groups = read_groups(workdir, 1)
    advantages = np.array([group["advantages"] for group in groups])
    assert np.abs(advantages).max() > 0.05
    if name in ("rloo", "gspo_rescored"):
        np.testing.assert_allclose(advantages.sum(1), 0, atol=1e-5)


def test_ppo_trains_a_critic_beside_the_policy_and_goes_on_bit_for_bit(tmp_path):
    whole, cut = (
        dataclasses.replace(
            CONFIG,
            algorithm="ppo",
            steps=steps,
            grpo=GRPOConfig(**SMALL, kl="k1_reward", reduction="token_mean"),
            ppo=PPOConfig(lam=0.95, critic=OptimizerConfig(learning_rate=1e-2)),
            checkpoint=CheckpointConfig(every=1),
        )
        for steps in (2, 1)
    )
    assert train(whole, tmp_path / "whole") == 0
    assert train(cut, tmp_path / "cut") == 0
    assert train(whole, tmp_path / "cut", allow_config_change=True) == 0
    ours, theirs = (state_of(tmp_path / name, whole) for name in ("whole", "cut"))
    assert any("critic" in name for name in ours)
    assert {k: v.tobytes() for k, v in ours.items()} == {k: v.tobytes() for k, v in theirs.items()}
    first, second = (line for line in read_metrics(tmp_path / "whole") if "loss" in line)
    assert first["critic/value"] == 0  # its head begins at 0
    assert second["critic/value"] != 0
    assert 0 < second["critic/loss"] < np.inf
