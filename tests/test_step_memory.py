"""What one step of either algorithm holds: PPO is GRPO and a critic, and nothing is counted
twice."""

import dataclasses

import pytest
from conftest import TINY, first_devices

from experiments import peak_memory
from experiments.step_memory import compiled_bytes, configs, held, peak_of, step_programs
from grpojax.config import Config, GRPOConfig, SamplingConfig
from grpojax.sharding import use_mesh

MODEL = dataclasses.replace(TINY, tied_embeddings=False, num_layers=1)
# Embedding and head 50 x 32 each; norms of 32, two in the layer and one at the end; query and out
# 32 x 32, key and value 32 x 16, three maps 32 x 48.
HEAD = 50 * 32
POLICY = 2 * HEAD + 3 * 32 + 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48
CRITIC = POLICY - HEAD + 33  # no output head; a vector of 32 and a bias
# Bytes of 4 prompts of 6 tokens with masks and ids; and a number for each of 8 completions' 5
# tokens.
PROMPTS, NUMBERS = 4 * 6 * (4 + 1) + 4 * 4, 4 * 8 * 5
COUNTERS = 24  # most bytes of the numbers of steps, updates and refusals in a state


def tiny(algorithm: str, beta: float) -> Config:
    return Config(
        model=MODEL,
        sampling=SamplingConfig(prompt_length=6, completion_length=5),
        grpo=GRPOConfig(prompts_per_step=4, group_size=2, microbatches=2, beta=beta),
        algorithm=algorithm,
    )


@pytest.fixture(scope="module")
def mesh():
    """One device: what is compiled says what each device needs."""
    return first_devices()


@pytest.mark.parametrize("beta", [0.01, 0.0])
def test_ppo_holds_what_grpo_does_and_a_critic_of_the_trunk_and_one_vector(mesh, beta):
    grpo, ppo = (held(tiny(algorithm, beta), mesh) for algorithm in ("grpo", "ppo"))
    assert (grpo["trained"], ppo["trained"]) == (POLICY, POLICY + CRITIC)
    for found in (grpo, ppo):
        resident = found["resident"]
        assert resident["parameters"] == 4 * found["trained"]
        # Adam has two moments.
        assert 0 < resident["optimizer"] - 8 * found["trained"] <= COUNTERS
        assert resident["reference"] == (4 * POLICY if beta else 0)
        # One update at a time, and the policy's gradients are the larger.
        assert found["gradients"] == 4 * POLICY
    # Tokens, log-probabilities, weights and those of the reference; masks take a byte.
    batch = PROMPTS + (4 if beta else 3) * NUMBERS + NUMBERS // 4
    assert grpo["resident"]["batch"] == batch + 4 * 8  # one advantage a completion
    assert ppo["resident"]["batch"] == batch + 3 * NUMBERS  # advantages, values, returns


def test_updates_write_their_state_over_the_old_one_and_hold_gradients(mesh):
    config = tiny("ppo", 0.01)
    resident = held(config, mesh)["resident"]
    with use_mesh(mesh):
        lowered = step_programs(config, mesh)
        policy, critic = (compiled_bytes(lowered[name]) for name in ("update", "update critic"))
    state = sum(resident[name] for name in ("parameters", "optimizer", "reference"))
    # The critic's state is in the policy's, and the policy's update passes it on.
    for found, written in ((policy, state), (critic, 3 * 4 * CRITIC)):
        assert 0 < found["alias"] - written <= COUNTERS
        assert 0 < found["output"] - found["alias"] < 1000  # metrics
    assert policy["temp"] > 4 * POLICY
    assert critic["temp"] > 4 * CRITIC


def test_the_peak_is_what_stays_and_the_largest_temporaries():
    programs = {"sample": {"temp": 30, "output": 5}, "update": {"temp": 70, "output": 900}}
    assert peak_of({"parameters": 100, "batch": 8}, programs) == 178


def test_every_shape_has_both_algorithms_with_either_beta_at_one_batch():
    cases = [
        (name, config.grpo.beta, config.algorithm, config.grpo.prompts_per_step)
        for name, config in configs()
    ]
    shapes = ["quickstart", "smollm2_135m", "qwen2p5_0p5b", "qwen2p5_1p5b", "qwen2p5_7b"]
    assert cases == [(s, b, a, 8) for s in shapes for b in (0.01, 0.0) for a in ("grpo", "ppo")]


def test_measured_runs_differ_in_their_algorithm_alone():
    for shape in peak_memory.SHAPES:
        grpo, ppo = (peak_memory.measured_config(a, shape) for a in ("grpo", "ppo"))
        assert dataclasses.replace(ppo, algorithm="grpo") == grpo != ppo
