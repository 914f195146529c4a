"""Experts: the ragged path equals a dense loop, on any mesh, and no device sees another's."""

import dataclasses
import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import TINY, first_devices

from grpojax import experts
from grpojax.config import GRPOConfig
from grpojax.experts import Routing, balance_loss, mix, routing
from grpojax.learner import abstract_state, init_state, make_update
from grpojax.model import Policy, abstract_params, init_params
from grpojax.scoring import prefill, score
from grpojax.sharding import sharded_init, use_mesh
from grpojax.types import Completions, GroupBatch, Prompts

B, G, S, D, F, E, K = 4, 2, 3, 8, 5, 8, 3
MESHES = {  # data, fsdp, tensor, expert
    "1 device": (1, 1, 1, 1),
    "tensor": (1, 1, 4, 1),
    "data and tensor": (2, 1, 2, 1),
    "expert": (1, 1, 1, 4),
    "expert and tensor": (1, 1, 2, 2),
    "all": (1, 2, 2, 2),
}


@pytest.fixture(scope="module")
def inputs():
    """Tokens, their experts (expert 7 is never chosen, 0 by most) and weights, and the kernels."""
    random = np.random.default_rng(0)
    normal = lambda *shape: random.standard_normal(shape).astype(np.float32)  # noqa: E731
    chosen = np.stack([random.permutation(E - 1)[:K] for _ in range(B * G * S)])
    chosen[::2, 0], chosen[::2, 1:] = 0, [1, 2]
    stacks = tuple(0.3 * normal(E, *shape) for shape in ((D, F), (D, F), (F, D)))
    chosen = chosen.reshape(B, G, S, K).astype(np.int32)
    return jax.tree.map(
        jnp.asarray, (normal(B, G, S, D), chosen, np.abs(normal(B, G, S, K)), stacks)
    )


def dense(x, chosen, weights, stacks):
    """Every token through every expert, weighted by 0 where it did not choose it."""
    total = 0.0
    for e, (gate, up, down) in enumerate(zip(*stacks)):
        weight = jnp.where(chosen == e, weights, 0.0).sum(-1, keepdims=True)
        total += weight * ((jax.nn.silu(x @ gate) * (x @ up)) @ down)
    return total


def with_gradients(mixture, x, chosen, weights, stacks):
    def total(x, weights, stacks):
        y = mixture(x, chosen, weights, stacks)
        return (jnp.sin(y)).sum(), y

    return jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(x, weights, stacks)


def assert_equals_dense(sizes, *inputs):
    with use_mesh(first_devices(*sizes)):
        found = with_gradients(functools.partial(mix, activation="silu"), *inputs)
    expected = with_gradients(dense, *inputs)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())
    return found


@pytest.mark.parametrize("sizes", MESHES.values(), ids=MESHES)
def test_the_mixture_equals_a_dense_loop_in_value_and_gradient(inputs, sizes):
    found = assert_equals_dense(sizes, *inputs)
    assert not np.any(found[0][2][0][7]) and np.any(found[0][2][0][6])


@pytest.mark.parametrize("spare", [1, 2])
def test_a_device_with_more_than_its_share_of_the_assignments_drops_none(
    inputs, monkeypatch, spare
):
    """All 72 choose experts 0, 1 and 2, of which one of four devices has two: 48."""
    x, chosen, weights, stacks = inputs
    monkeypatch.setattr(experts, "FEW", 1)
    monkeypatch.setattr(experts, "SPARE", spare)
    lopsided = jnp.broadcast_to(jnp.arange(3, dtype=jnp.int32), chosen.shape)
    assert_equals_dense((1, 1, 2, 2), x, lopsided, weights, stacks)


MIXTURE = dataclasses.replace(
    TINY, vocab_size=48, num_kv_heads=4, num_experts=8, experts_per_token=2, family="qwen3_moe"
)


@pytest.mark.parametrize("sizes", [(1, 1, 4, 1), (1, 1, 2, 2)], ids=["tensor", "expert and tensor"])
def test_the_program_gathers_no_expert_of_another_device(prompts, sizes):
    """And of the routers' probabilities no other device's tokens."""
    mesh, policy = first_devices(*sizes), Policy(MIXTURE)
    tokens = np.zeros((4, 2, 5), np.int32)

    def total(params, prompts, tokens):
        scored = score(policy, params, prefill(policy, params, prompts), tokens, 1.0, tokens == 0)
        return scored.logps.sum() + balance_loss(scored.routing).sum()

    with use_mesh(mesh):
        like = abstract_params(policy, mesh)
        program = jax.jit(jax.grad(total)).lower(like, prompts, tokens).compile().as_text()
    assert "all-reduce" in program
    d, f = MIXTURE.embed_dim, MIXTURE.ffw_dim
    for line in re.findall(r".*= .*all-gather.*", program):
        assert not re.search(rf"\[(\d+,)*8,({d},{f}|{f},{d})\]", line), line
        assert not re.search(r"f32\[4,\d+,\d+,8\]", line), line


def test_an_even_load_costs_one_and_a_lopsided_one_more():
    even = jnp.full((2, 3, 4), 0.25)
    np.testing.assert_allclose(balance_loss(Routing(even, even)), [1.0] * 3)
    lopsided = jnp.tile(jnp.array([1.0, 0, 0, 0]), (2, 3, 1))
    np.testing.assert_allclose(balance_loss(Routing(lopsided, lopsided)), [4.0] * 3)


def test_routing_counts_the_counted_tokens_of_each_group_alone():
    probabilities = jnp.array([[[[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], [[0.6, 0.3, 0.1]] * 2]])
    chosen = jnp.array([[[[0, 1], [2, 1]], [[0, 1]] * 2]])
    counted = jnp.array([[[True, True], [True, False]]])
    found = routing(probabilities, chosen, counted)
    np.testing.assert_allclose(found.load, [[2 / 6, 3 / 6, 1 / 6]], rtol=1e-6)
    np.testing.assert_allclose(found.probability, [[1.2 / 3, 0.8 / 3, 1 / 3]], rtol=1e-6)


def logps_of(policy, params, prompts, tokens):
    return score(policy, params, prefill(policy, params, prompts), tokens, 1.0).logps


def test_a_sharded_mixture_scores_as_one_device_does(prompts):
    policy, tokens = Policy(MIXTURE), jnp.arange(40, dtype=jnp.int32).reshape(4, 2, 5)
    scored = {}
    for name, sizes in MESHES.items():
        mesh = first_devices(*sizes)
        with use_mesh(mesh):
            init = functools.partial(init_params, policy, jax.random.key(0))
            params = sharded_init(init, abstract_params(policy, mesh))
            run = jax.jit(functools.partial(logps_of, policy))
            scored[name] = np.asarray(run(params, prompts, tokens))
    for logps in scored.values():
        np.testing.assert_allclose(logps, scored["1 device"], atol=1e-5)


@pytest.fixture(scope="module")
def batch():
    """Four groups of two completions, of mixed lengths."""
    random = np.random.default_rng(0)
    tokens = random.integers(4, 48, (4, 2, 5)).astype(np.int32)
    mask = np.arange(5) < random.integers(1, 6, (4, 2, 1))
    prompts = Prompts(random.integers(4, 48, (4, 7)).astype(np.int32), np.ones((4, 7), bool),
                      np.arange(4, dtype=np.int32))  # fmt: skip
    weights = mask / mask.sum()
    given = Completions(tokens, mask, np.zeros(mask.shape))
    advantages = random.normal(size=(4, 2))
    arrays = GroupBatch(prompts, given, advantages[..., None], weights, None, None)
    to_float32 = lambda x: np.float32(x) if x.dtype == np.float64 else x  # noqa: E731
    return jax.tree.map(lambda x: jnp.asarray(to_float32(x)), arrays)


def test_the_balance_loss_is_in_the_gradient_and_microbatches_do_not_change_it(batch):
    policy, mesh = Policy(MIXTURE), first_devices()
    optimizer = optax.sgd(0.1)
    like = abstract_state(policy, optimizer, mesh, reference=False)
    init = functools.partial(init_params, policy, jax.random.key(0))
    seen = {}
    with use_mesh(mesh):
        for name, weight, parts in (("none", 0.0, 1), ("whole", 1.0, 1), ("parts", 1.0, 2)):
            config = GRPOConfig(
                prompts_per_step=4, beta=0.0, router_weight=weight, microbatches=parts
            )
            update = make_update(policy, optimizer, like, config, temperature=1.0)
            state = init_state(optimizer, like, sharded_init(init, like.params))
            state, metrics = update(state, {}, batch)
            seen[name] = jax.device_get((state.params, metrics))
    chex.assert_trees_all_close(seen["parts"], seen["whole"], rtol=1e-5, atol=1e-6)
    router = [params["layers"]["ffw"]["router"]["kernel"] for params, _ in seen.values()]
    assert np.abs(router[1] - router[0]).max() > 1e-5
    _, metrics = seen["whole"]
    difference = metrics["loss"] - seen["none"][1]["loss"]
    np.testing.assert_allclose(difference, metrics["router/balance_loss"], rtol=1e-5)
    assert 1 <= metrics["router/max_load"] <= MIXTURE.num_experts
