"""Scalar models: which state a number is of, what the trunk is, and what neither of them holds."""

import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, first_devices
from flax.core import meta
from test_model import draw_tokens, pad_left, sharp_params
from test_scoring import largest_logits, products

from grpojax import lora
from grpojax.config import OptimizerConfig
from grpojax.model import Policy, abstract_params, init_params
from grpojax.optimizer import make_optimizer
from grpojax.scalar import (
    ScalarModel,
    abstract_scalar_state,
    frozen_trunk,
    init_scalar,
    init_scalar_state,
    split,
    state_values,
)
from grpojax.sharding import shardings_of, use_mesh
from grpojax.types import Prompts

UNTIED = dataclasses.replace(TINY, tied_embeddings=False)
ADAPTED = dataclasses.replace(UNTIED, lora_rank=2)
MODEL = ScalarModel(TINY)
# An epsilon far above rounding makes Adam's update a smooth function of the gradient, yet learns.
OPTIMIZER = make_optimizer(
    OptimizerConfig(learning_rate=1e-2, adam_epsilon=1e-3, max_grad_norm=1e9), 100
)
fast_values = jax.jit(state_values, static_argnums=0)


def with_head(trunk, seed=0):
    """Scalar parameters on a policy's, the head far from 0."""
    kernel = np.random.default_rng(seed).normal(0, 0.3, TINY.embed_dim).astype(np.float32)
    return {"trunk": trunk, "head": {"kernel": jnp.asarray(kernel), "bias": jnp.float32(0.5)}}


@pytest.fixture(scope="module")
def scalar_params(params):
    return with_head(params)


def some(init):
    """Parameters of the shapes that `init` makes, all 0.1."""
    shapes = meta.unbox(jax.eval_shape(init))
    return jax.tree.map(lambda x: jnp.full(x.shape, 0.1, x.dtype), shapes)


def values_of(params, prompts, tokens, model=MODEL):
    return np.asarray(fast_values(model, params, prompts, jnp.asarray(tokens)))


def test_there_is_a_number_for_each_state_from_the_prompt_to_the_whole(scalar_params, prompts):
    tokens = draw_tokens()
    values = values_of(scalar_params, prompts, tokens)
    assert values.shape == (4, 3, 6) and values.dtype == np.float32
    policy, trunk = Policy(TINY), {"params": scalar_params["trunk"]}

    @jax.jit
    def states(prompts, tokens):
        last, prefix = policy.apply(trunk, prompts.tokens, prompts.mask, method="prefill")
        return last, policy.apply(trunk, tokens, prefix, method="extend")[0]

    last, hidden = states(prompts, tokens)
    kernel, bias = scalar_params["head"].values()
    np.testing.assert_allclose(values[..., 0], np.tile((last @ kernel + bias)[:, None], 3), 1e-5)
    np.testing.assert_allclose(values[..., 1:], hidden @ kernel + bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changed", [0, 2, 4])
def test_a_token_changes_the_numbers_of_the_states_after_it_only(changed, scalar_params, prompts):
    """Index t is before token t: the state after token t is t + 1, and its own has not seen it."""
    tokens = draw_tokens()
    other = tokens.copy()
    other[..., changed] = (other[..., changed] + 1) % TINY.vocab_size
    before, after = (values_of(scalar_params, prompts, x) for x in (tokens, other))
    np.testing.assert_array_equal(before[..., : changed + 1], after[..., : changed + 1])
    assert (before[..., changed + 1 :] != after[..., changed + 1 :]).all()


def test_the_first_number_is_of_the_prompt_alone_and_not_of_its_padding(scalar_params, prompts):
    first = values_of(scalar_params, prompts, draw_tokens())[..., 0]
    np.testing.assert_array_equal(first, first[:, :1] + np.zeros(3))
    assert len(np.unique(first[:, 0])) == 4
    other = values_of(scalar_params, prompts, draw_tokens(seed=9))[..., 0]
    np.testing.assert_array_equal(first, other)
    wider = values_of(scalar_params, pad_left(prompts, 3, token=7), draw_tokens())[..., 0]
    np.testing.assert_allclose(wider, first, rtol=0, atol=1e-5)


def weighted(values):
    """A sum in which no two numbers weigh alike."""
    return (values * np.cos(np.arange(values.size)).reshape(values.shape)).sum()


def gradient_of(model, params, prompts, tokens):
    return jax.grad(lambda p: weighted(state_values(model, p, prompts, tokens)))(params)


def test_gradients_of_recomputed_blocks_agree_with_finite_differences(scalar_params, prompts):
    remat, tokens = ScalarModel(dataclasses.replace(TINY, remat=True)), draw_tokens()
    gradient = jax.jit(gradient_of, static_argnums=0)(
        remat, scalar_params, prompts, jnp.asarray(tokens)
    )
    size = math.sqrt(sum((x**2).sum() for x in jax.tree.leaves(gradient)))

    def moved(length):  # straight up the slope
        params = jax.tree.map(lambda x, g: x + length / size * g, scalar_params, gradient)
        return weighted(np.float64(values_of(params, prompts, tokens)))

    slope = (moved(1e-3) - moved(-1e-3)) / 2e-3
    np.testing.assert_allclose(slope, size, rtol=2e-4)


@pytest.fixture(scope="module")
def mesh():
    return first_devices(2, 2, 2)


def start(model, trained, mesh):
    with use_mesh(mesh):
        like = abstract_scalar_state(model, OPTIMIZER, mesh)
        return like, init_scalar_state(OPTIMIZER, like, trained)


def test_at_the_start_the_head_is_zero_and_the_trunk_is_a_copy_of_the_policys(mesh):
    placed = shardings_of(abstract_params(Policy(UNTIED), mesh))
    params = jax.device_put(sharp_params(UNTIED), placed)  # where the critic's will lie
    model = ScalarModel(UNTIED)
    like, state = start(model, params, mesh)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, like)
    assert shardings_of(state) == shardings_of(like)
    assert state.params["trunk"]["layers"]["ffw"]["gate"]["kernel"].sharding.spec[1:] == (
        "fsdp",
        "tensor",
    )
    held = {name: leaf for name, leaf in params.items() if name != "head"}
    chex.assert_trees_all_equal(state.params["trunk"], held)
    assert not any(leaf.any() for leaf in state.params["head"].values())
    jax.tree.map(lambda x: x.delete(), (state.params, state.opt_state))
    chex.assert_tree_all_finite(params)  # still there: the critic's buffers are its own


def test_no_output_head_is_made_and_no_logits_are_held(prompts):
    config = dataclasses.replace(UNTIED, vocab_size=101)  # a prime that no other axis has
    model, tokens = ScalarModel(config), draw_tokens(length=16)
    params = some(lambda: init_scalar(model, jax.random.key(0)))
    assert [x.shape for x in jax.tree.leaves(params) if 101 in x.shape] == [(101, 32)]
    arguments = (params, prompts, jnp.asarray(tokens))
    largest = largest_logits(functools.partial(gradient_of, model), *arguments)
    assert largest == params["trunk"]["embed"]["embedding"].size < tokens.size * 101


def test_the_work_of_a_scalar_model_on_a_prompt_does_not_grow_with_the_group(scalar_params):
    def work(group, length=5):
        prompts = Prompts(np.ones((2, 7), np.int32), np.ones((2, 7), bool), np.arange(2))
        tokens = jnp.ones((2, group, length), jnp.int32)
        program = jax.make_jaxpr(functools.partial(state_values, MODEL))
        return products(program(scalar_params, prompts, tokens).jaxpr)

    one, two, five = work(1), work(2), work(5)
    assert five - two == 3 * (two - one)
    assert one - (two - one) > two - one  # what the group shares, prompts of 7 tokens against 5


def test_with_adapters_they_and_the_head_are_trained_on_the_policys_own_base(mesh):
    adapters, base = lora.split(some(lambda: init_params(Policy(ADAPTED), jax.random.key(0))))
    model = ScalarModel(ADAPTED)
    like, state = start(model, adapters, mesh)
    assert state.params.keys() == {"trunk", "head"}
    assert jax.tree.structure(state.params["trunk"]) == jax.tree.structure(adapters)
    whole = some(lambda: init_scalar(model, jax.random.key(0)))
    trained, frozen = split(whole)
    assert jax.tree.structure(trained) == jax.tree.structure(like.params)
    shared = frozen_trunk(base)
    assert jax.tree.structure(shared) == jax.tree.structure(frozen)
    assert shared["trunk"]["embed"]["embedding"] is base["embed"]["embedding"]
    chex.assert_trees_all_equal_structs(lora.combine(shared, state.params), whole)
    assert split(with_head(base))[1] == {}  # without adapters nothing is frozen
