"""The critic's updates: what may not change them, what they refuse, and what they learn."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import first_devices
from test_scalar import MODEL, OPTIMIZER, with_head

from grpojax.critic import make_critic_update, make_valuer
from grpojax.grpo import token_weights
from grpojax.scalar import abstract_scalar_state, fresh_scalar_state
from grpojax.sharding import shard_batch, shardings_of, use_mesh
from grpojax.types import Prompts, ValueBatch

LENGTH, CLIP = 6, 0.2  # T, and the range of the value clipping
valuer = make_valuer(MODEL)


@pytest.fixture(scope="module")
def start_params(params):
    return jax.tree.map(lambda x: np.asarray(0.5 * x), with_head(params))


@pytest.fixture(scope="module")
def batch(start_params):
    """8 prompts with groups of 4; stale values on either side of the clip range; ragged ends."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(4, 50, (8, 7)).astype(np.int32)
    present = np.arange(7) >= 7 - rng.integers(1, 8, (8, 1))
    prompts = Prompts(tokens, present, np.arange(8, dtype=np.int32))
    tokens = rng.integers(4, 50, (8, 4, LENGTH)).astype(np.int32)
    mask = np.arange(LENGTH) < rng.integers(1, LENGTH + 1, (8, 4, 1))
    values = valuer(start_params, prompts, jnp.asarray(tokens))
    old, returns = (values + rng.normal(0, 0.2, values.shape).astype(np.float32) for _ in range(2))
    valid = jnp.asarray(rng.random((8, 4)) > 0.2)
    weights = token_weights(
        jnp.asarray(mask), valid, reduction="token_mean", completion_length=LENGTH
    )
    return jax.tree.map(np.asarray, ValueBatch(prompts, tokens, old, returns, weights))


@pytest.fixture(scope="module")
def begin(start_params):
    """`begin(mesh_shape, **options)`: mesh, fresh state and update; each update compiled once."""

    @functools.cache
    def build(mesh_shape, options):
        mesh = first_devices(*mesh_shape)
        like = abstract_scalar_state(MODEL, OPTIMIZER, mesh)
        once = {"epochs_per_batch": 1, "minibatches": 1, "microbatches": 1}
        return mesh, like, make_critic_update(
            MODEL, OPTIMIZER, like, clip=CLIP, **once | dict(options)
        )  # fmt: skip

    def begin(mesh_shape=(1, 1, 1), **options):
        mesh, like, update = build(mesh_shape, tuple(options.items()))
        with use_mesh(mesh):
            params = jax.tree.map(jnp.array, start_params)  # the state's are donated
            fresh = functools.partial(fresh_scalar_state, optimizer=OPTIMIZER)
            return mesh, jax.jit(fresh, out_shardings=shardings_of(like))(params), update

    return begin


@pytest.fixture(scope="module")
def run(begin):
    """`run(batches, ...)`: state and metrics on the host after updates on each of `batches`."""

    def run(batches, mesh_shape=(1, 1, 1), **options):
        mesh, state, update = begin(mesh_shape, **options)
        with use_mesh(mesh):
            for batch in batches:
                state, metrics = update(state, {}, shard_batch(batch, mesh))
            return jax.device_get((state, metrics))

    return run


@pytest.fixture(scope="module")
def plain(run, batch):
    return run([batch])


def test_the_loss_and_its_metrics_are_those_of_the_tokens_that_count(plain, batch, start_params):
    values = np.asarray(valuer(start_params, batch.prompts, jnp.asarray(batch.tokens)))
    bound = np.clip(values, batch.old_values - CLIP, batch.old_values + CLIP)
    free, bound = ((x - batch.returns) ** 2 for x in (values, bound))
    metrics, counted = plain[1], batch.weights > 0
    loss = 0.5 * np.maximum(free, bound)[counted].mean()
    np.testing.assert_allclose(metrics["critic/loss"], loss, rtol=1e-5)
    clipped = (bound > free)[counted].mean()
    np.testing.assert_allclose(metrics["critic/clip_ratio"], clipped, rtol=1e-5)
    assert 0.05 < clipped < 0.5
    old, returns = batch.old_values[counted], batch.returns[counted]
    explained = 1 - (returns - old).var() / returns.var()
    np.testing.assert_allclose(metrics["critic/explained_variance"], explained, rtol=1e-4)
    np.testing.assert_allclose(metrics["critic/value"], old.mean(), rtol=1e-5)


def test_where_nothing_is_clipped_the_gradient_by_value_is_weights_times_errors(
    batch, begin, start_params
):
    """Seen at the bias, which every value has in it; then Adam's first update."""
    values = valuer(start_params, batch.prompts, jnp.asarray(batch.tokens))
    gradient = (batch.weights * (values - batch.returns)).sum()
    mesh, state, update = begin()
    with use_mesh(mesh):
        state, metrics = update(state, {}, shard_batch(batch.replace(old_values=values), mesh))
    assert metrics["critic/clip_ratio"] == 0 and abs(gradient) > 1e-3
    moved = state.params["head"]["bias"] - start_params["head"]["bias"]
    np.testing.assert_allclose(moved, -0.01 * gradient / (abs(gradient) + 1e-3), rtol=1e-4)


def test_epochs_and_minibatches_are_updates_in_a_row_whatever_the_microbatches_and_the_mesh(
    run, begin, batch
):
    second = (np.arange(8) % 2).astype(np.float32)[:, None, None]  # rows of the second minibatch
    halves = [batch.replace(weights=2 * part * batch.weights) for part in (1 - second, second)]
    state, metrics = run([batch], (1, 2, 2), epochs_per_batch=2, minibatches=2, microbatches=2)
    mesh, expected, update = begin()
    seen = []
    with use_mesh(mesh):
        for half in [*halves, *halves]:
            expected, metrics_of_one = update(expected, {}, shard_batch(half, mesh))
            seen.append(metrics_of_one)
    assert state.update == 4
    chex.assert_trees_all_close(state, jax.device_get(expected), rtol=0, atol=1e-5)
    for name in ("critic/loss", "critic/grad_norm"):
        np.testing.assert_allclose(metrics[name], np.mean([x[name] for x in seen]), rtol=1e-5)


def test_what_stands_after_the_end_or_has_no_weight_never_matters(run, batch, plain):
    silent, rng = batch.weights == 0, np.random.default_rng(1)
    assert silent.any()
    dirty = batch.replace(
        tokens=np.where(silent, rng.integers(0, 50, silent.shape), batch.tokens).astype(np.int32),
        old_values=np.where(silent, np.float32(np.nan), batch.old_values),
        returns=np.where(silent, np.float32(np.inf), batch.returns),
    )
    chex.assert_trees_all_equal(run([dirty]), plain)


@pytest.mark.parametrize("field", ["returns", "old_values", "weights"])
def test_a_critic_update_that_is_not_finite_is_refused_and_the_next_good_one_is_taken(
    begin, batch, field
):
    values = getattr(batch, field).copy()
    values[np.unravel_index(batch.weights.argmax(), values.shape)] = np.nan
    mesh, state, update = begin()
    first = jax.device_get(jax.tree.map(jnp.copy, state))
    with use_mesh(mesh):
        state, metrics = update(state, {}, shard_batch(batch.replace(**{field: values}), mesh))
        assert metrics["critic/updates_refused"] == 1
        chex.assert_trees_all_equal(jax.device_get(state), first.replace(skipped=np.int32(1)))
        before = jax.tree.leaves(state)
        state, metrics = update(state, {}, shard_batch(batch, mesh))
    assert all(leaf.is_deleted() for leaf in before)
    assert (metrics["critic/updates_refused"], state.skipped, state.update) == (0, 0, 1)
    assert update._cache_size() == 1


def test_it_learns_what_a_state_is_worth(begin, batch):
    """A completion earns 1 if its first token is even: 1/2 before it is seen, known after."""
    rng, weights = np.random.default_rng(2), np.full(batch.weights.shape, 1 / batch.weights.size)
    mesh, state, update = begin()
    with use_mesh(mesh):
        for _ in range(100):
            tokens = rng.integers(4, 8, batch.tokens.shape).astype(np.int32)
            worth = ((tokens[..., :1] % 2 == 0) + np.zeros(LENGTH)).astype(np.float32)
            values = np.asarray(valuer(state.params, batch.prompts, jnp.asarray(tokens)))
            given = ValueBatch(batch.prompts, tokens, values, worth, weights.astype(np.float32))
            state, metrics = update(state, {}, shard_batch(given, mesh))
    errors = np.abs(values - worth).mean((0, 1))
    assert abs(values[..., 0].mean() - 0.5) < 0.1 and (errors[1:] < 0.1).all()
    # No value can know the first token before it is there: a sixth of the variance stays.
    np.testing.assert_allclose(metrics["critic/explained_variance"], 5 / 6, atol=0.1)
