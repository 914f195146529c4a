"""It learns: a random policy finds what is rewarded, and flees it when the sign is wrong."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import first_devices

from grpojax.config import GRPOConfig, ModelConfig, OptimizerConfig
from grpojax.learner import abstract_state, init_state, make_update
from grpojax.lora import combine, split
from grpojax.model import Policy, abstract_params, init_params
from grpojax.optimizer import make_optimizer
from grpojax.sampling import make_sampler, stream_key
from grpojax.scoring import make_scorer
from grpojax.sharding import sharded_init, use_mesh
from grpojax.types import Evidence, GroupBatch, Prompts
from grpojax.weigher import make_weigher

VOCAB, LENGTH, STEPS = 8, 3, 40
WANTED = np.arange(1, VOCAB)  # the last token of each prompt; 0 ends a completion
PROMPTS = Prompts(
    np.stack([np.zeros(7), WANTED], axis=-1).astype(np.int32),
    np.ones((7, 2), bool),
    np.arange(7, dtype=np.int32),
)
CONFIG = GRPOConfig(prompts_per_step=7, group_size=16, beta=0.0)
POLICY = Policy(
    ModelConfig(
        vocab_size=VOCAB, embed_dim=16, ffw_dim=32, num_layers=1, num_heads=2, num_kv_heads=1,
        head_dim=8, tied_embeddings=False,  # tied, the first policy would already repeat its prompt
    )
)  # fmt: skip


@pytest.fixture(scope="module")
def programs():
    return make_programs(POLICY, 0.01)


def make_programs(policy, learning_rate):
    """Mesh, frozen parameters, first state (of a fixed seed), sampler, weigher and update."""
    mesh = first_devices()
    optimizer = make_optimizer(OptimizerConfig(learning_rate=learning_rate), STEPS)
    like = abstract_state(policy, optimizer, mesh, reference=False)
    sampler = make_sampler(
        policy, group_size=16, completion_length=LENGTH, stop_ids=(0,), pad_id=0, temperature=1.0
    )
    weigher = make_weigher(CONFIG, completion_length=LENGTH)
    update = make_update(policy, optimizer, like, CONFIG, temperature=1.0)
    with use_mesh(mesh):
        init = functools.partial(init_params, policy, jax.random.key(0))
        trained, frozen = split(sharded_init(init, abstract_params(policy, mesh)))
        return mesh, frozen, init_state(optimizer, like, trained), sampler, weigher, update


def train(programs, steps, reward, sign=1):
    """Mean reward of every step, and the last parameters; `reward(tokens, mask)` gives [B, G]."""
    mesh, frozen, first, sampler, weigher, update = programs
    means, state = [], jax.tree.map(jnp.copy, first)
    with use_mesh(mesh):
        for step in range(steps):
            completions = sampler(
                combine(frozen, state.params), PROMPTS, stream_key(0, "train", step)
            )
            tokens, mask = np.asarray(completions.tokens), np.asarray(completions.mask)
            rewards = reward(tokens, mask).astype(np.float32)
            evidence = Evidence(rewards, np.ones(rewards.shape, bool))
            advantages, weights = weigher(evidence, mask)
            batch = GroupBatch(PROMPTS, completions, sign * advantages, weights, None, None)
            state, _ = update(state, frozen, batch)
            means.append(rewards.mean())
    return means, state.params


def share_of_wanted(tokens, mask):
    """Share of the `LENGTH` tokens that are the wanted one; ending early forgoes the rest."""
    return ((tokens == WANTED[:, None, None]) & mask).mean(-1)


def test_a_random_policy_learns_to_say_the_token_that_its_prompt_asks_for(programs):
    means, _ = train(programs, STEPS, share_of_wanted)
    assert np.mean(means[:2]) < 0.2
    assert np.mean(means[-5:]) > 0.95


def test_adapters_of_a_random_base_learn_it_too():
    adapted = dataclasses.replace(POLICY.config, lora_rank=8, lora_alpha=16.0)
    programs = make_programs(Policy(adapted), 0.01)
    means, params = train(programs, STEPS, share_of_wanted)
    assert np.mean(means[:2]) < 0.2
    assert np.mean(means[-5:]) > 0.7
    assert {key.key for path, _ in jax.tree.leaves_with_path(params) for key in path[-1:]} == {
        "lora_a", "lora_b",
    }  # fmt: skip


def test_with_the_sign_of_the_advantages_flipped_it_falls_below_where_it_started(programs):
    means, _ = train(programs, STEPS, share_of_wanted, sign=-1)
    assert np.mean(means[-5:]) < np.mean(means[:2]) / 10


@pytest.mark.parametrize("token", [0, 5])  # 0 ends the completion
def test_one_step_moves_probability_to_the_rewarded_token_and_back(programs, token):
    scorer = make_scorer(POLICY, temperature=1.0)
    first_token = np.full((7, 1, 1), token, np.int32)

    def reward(tokens, mask):
        return ((tokens == token) & mask)[..., 0].astype(float)

    def probability(params):
        return np.exp(scorer(params, PROMPTS, first_token, first_token >= 0)).mean()

    before = probability(programs[2].params)
    for sign in (1, -1):
        _, params = train(programs, 1, reward, sign)
        assert sign * (probability(params) - before) > 0.05


def test_every_step_runs_the_programs_that_the_first_one_compiled(programs):
    _, _, _, *jitted = programs
    train(programs, 3, share_of_wanted)
    assert [program._cache_size() for program in jitted] == [1, 1, 1]
