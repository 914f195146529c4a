"""The learner: what may not change an update, what an update refuses, and what it leaves alone."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import first_devices

from grpojax.config import GRPOConfig, OptimizerConfig
from grpojax.learner import (
    abstract_state,
    batch_gradients,
    fresh_state,
    init_state,
    make_update,
)
from grpojax.optimizer import make_optimizer
from grpojax.sampling import make_sampler, stream_key
from grpojax.scoring import make_scorer, prefill, score
from grpojax.sharding import shard_batch, shardings_of, use_mesh
from grpojax.types import Evidence, GroupBatch, Prompts
from grpojax.weigher import make_weigher

LENGTH = 6  # T
SMALL = {"prompts_per_step": 8, "group_size": 4, "beta": 0.04}
# So large an epsilon makes Adam's first update a smooth function of the gradient's size.
OPTIMIZER = make_optimizer(
    OptimizerConfig(learning_rate=1.0, adam_epsilon=1.0, max_grad_norm=1e9), 100
)


@pytest.fixture(scope="module")
def start_params(params):
    return jax.tree.map(lambda x: np.asarray(0.5 * x), params)


@pytest.fixture(scope="module")
def sampler(policy):
    return make_sampler(
        policy, group_size=4, completion_length=LENGTH, stop_ids=(2, 3), pad_id=2, temperature=1.0
    )


@pytest.fixture(scope="module")
def scorer(policy):
    return make_scorer(policy, temperature=1.0)


@pytest.fixture(scope="module")
def record(sampler, start_params):
    """`record(seed)`: a batch of 8 prompts from the real sampler, with a stale π_old and π_ref."""
    weigher = make_weigher(GRPOConfig(**SMALL), completion_length=LENGTH)

    @functools.cache
    def record(seed=0):
        rng = np.random.default_rng(seed)
        tokens = rng.integers(4, 50, (8, 7)).astype(np.int32)
        present = np.arange(7) >= 7 - rng.integers(1, 8, (8, 1))
        prompts = Prompts(tokens, present, rng.permutation(100)[:8].astype(np.int32))
        sampled = sampler(start_params, prompts, stream_key(0, "train", seed))
        valid = rng.random((8, 4)) > 0.2
        rewards = np.where(valid, rng.random((8, 4)), np.nan).astype(np.float32)
        advantages, weights = weigher(Evidence(rewards, valid), sampled.mask)
        old, ref = (
            sampled.logps + rng.normal(0, 0.2, sampled.logps.shape).astype(np.float32)
            for _ in range(2)
        )
        batch = GroupBatch(prompts, sampled, advantages, weights, old, ref)
        return jax.tree.map(np.asarray, batch)

    return record


@pytest.fixture(scope="module")
def begin(policy, start_params):
    """`begin(mesh_shape, **config)`: mesh, fresh state and update; each update compiled once."""

    @functools.cache
    def build(mesh_shape, options):
        mesh = first_devices(*mesh_shape)
        like = abstract_state(policy, OPTIMIZER, mesh, reference=True)
        config = GRPOConfig(**SMALL | dict(options))
        return mesh, like, make_update(policy, OPTIMIZER, like, config, temperature=1.0)

    def begin(mesh_shape=(1, 1, 1), **options):
        mesh, like, update = build(mesh_shape, tuple(options.items()))
        with use_mesh(mesh):
            copied = jax.tree.map(jnp.copy, start_params)  # the state's are donated
            placed = jax.device_put(copied, shardings_of(like.params))
            return mesh, init_state(OPTIMIZER, like, placed), update

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


def ids_of(batch):
    return batch.completions.tokens, batch.completions.mask


def snapshot(tree):
    """A copy on the host: a view would keep the buffer from being donated."""
    return jax.tree.map(np.array, tree)


def assert_same_update(actual, expected):
    """Metrics, and parameters after an update of the size of the gradient, up to rounding."""
    actual, expected = ((state.params, metrics) for state, metrics in (actual, expected))
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def plain(run, record):
    return run([record()])


@pytest.mark.parametrize("microbatches", [2, 4])
def test_the_result_does_not_depend_on_microbatches(run, record, plain, microbatches):
    assert_same_update(run([record()], microbatches=microbatches), plain)
    assert plain[1]["grad_norm"] > 0.01


def test_permuting_prompts_permutes_log_probabilities_and_leaves_the_update(
    run, record, plain, scorer, start_params
):
    order = np.random.default_rng(1).permutation(8)
    shuffled = jax.tree.map(lambda x: x[order], record())
    assert_same_update(run([shuffled]), plain)
    logps, mixed = (
        scorer(start_params, batch.prompts, *ids_of(batch)) for batch in (record(), shuffled)
    )
    np.testing.assert_allclose(mixed, np.asarray(logps)[order], rtol=0, atol=1e-5)


def test_what_stands_after_the_end_of_a_completion_never_matters(run, record, plain):
    batch, rng = record(), np.random.default_rng(2)
    ended = ~batch.completions.mask
    assert ended.any() and (batch.completions.tokens == 2)[batch.completions.mask].any()

    def spoil(x, poison):
        return np.where(ended, poison, x).astype(x.dtype)

    tokens = spoil(batch.completions.tokens, rng.integers(0, 50, ended.shape))
    dirty = batch.completions.replace(tokens=tokens, logps=spoil(batch.completions.logps, np.nan))
    dirty = batch.replace(
        completions=dirty,
        old_logps=spoil(batch.old_logps, 1e4),
        ref_logps=spoil(batch.ref_logps, np.nan),
    )
    chex.assert_trees_all_equal(run([dirty]), plain)


def test_on_policy_gradient_by_log_probability_is_minus_weights_times_advantages(
    policy, record, start_params
):
    batch = jax.tree.map(jnp.asarray, record().replace(old_logps=None, ref_logps=None))
    config = GRPOConfig(**SMALL | {"beta": 0.0})

    @jax.jit
    def both(params):
        def logps_of(params):
            read = prefill(policy, params, batch.prompts)
            return score(policy, params, read, batch.completions.tokens, 1.0).logps

        _, pull = jax.vjp(logps_of, params)
        (loss, _), gradient = batch_gradients(policy, params, {}, batch, config, 1.0)
        return loss, gradient, pull(-batch.weights * batch.advantages)[0]

    loss, gradient, expected = both(start_params)
    np.testing.assert_allclose(loss, -(batch.weights * batch.advantages).sum(), atol=1e-7)
    size = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    assert size > 0.01
    chex.assert_trees_all_close(gradient, expected, rtol=0, atol=1e-6 * size)


def test_at_the_first_update_nothing_is_clipped_and_the_kl_is_zero(
    run, record, scorer, start_params
):
    batch = record()
    ref_logps = scorer(start_params, batch.prompts, *ids_of(batch))
    first = batch.replace(old_logps=None, ref_logps=ref_logps)
    _, metrics = run([first], reference="initial")
    assert 0 <= metrics["kl"] < 1e-12  # two programs: the square of a rounding below 1e-6
    assert metrics["clip_ratio/region_mean"] == 0
    assert metrics["sampling/sampling_logp_difference/max"] < 1e-5
    value = -(batch.weights * batch.advantages).sum()
    np.testing.assert_allclose(metrics["loss"], value, atol=1e-7)


def test_epochs_and_minibatches_are_updates_in_a_row_against_frozen_old_log_probabilities(
    run, record
):
    batch = record()
    kept = batch.old_logps.copy()
    halves = [jax.tree.map(lambda x, p=p: x[p::2], batch) for p in range(2)]
    halves = [half.replace(weights=2 * half.weights) for half in halves]
    state, metrics = run([batch], epochs_per_batch=2, minibatches=2)
    one_by_one, _ = run([*halves, *halves])
    assert (state.step, state.update, one_by_one.step, one_by_one.update) == (1, 4, 4, 4)
    frozen = one_by_one.replace(step=state.step)
    chex.assert_trees_all_close(state, frozen, rtol=0, atol=1e-5)
    assert metrics["clip_ratio/region_mean"] > 0
    np.testing.assert_array_equal(batch.old_logps, kept)


@pytest.mark.parametrize(
    ("options", "reference_of_update"),  # after how many updates the reference of update k stood
    [
        ({"reference": "initial"}, [0, 0, 0, 0]),
        ({"reference": "previous"}, [0, 0, 1, 2]),
        ({"reference": "refreshed", "reference_every": 2}, [0, 0, 2, 2]),
    ],
)
def test_each_reference_is_the_parameters_of_its_update(
    begin, record, scorer, options, reference_of_update
):
    batches = [record(seed) for seed in range(4)]
    mesh, state, update = begin(**options)
    seen = []
    with use_mesh(mesh):
        for batch, expected in zip(batches, reference_of_update):
            seen.append(snapshot(state.params))
            chex.assert_trees_all_equal(snapshot(state.ref_params), seen[expected])
            ref_logps = scorer(state.ref_params, batch.prompts, *ids_of(batch))
            batch = batch.replace(old_logps=None, ref_logps=ref_logps)
            state, metrics = update(state, {}, shard_batch(batch, mesh))
            # Rounding of two programs apart, it is 0 where the two policies are the same.
            assert (metrics["kl"] < 1e-12) == (expected == len(seen) - 1)
    assert update._cache_size() == 1


@pytest.mark.parametrize("field", ["advantages", "weights", "old_logps"])
def test_an_update_that_is_not_finite_is_refused_and_the_next_good_one_is_taken(
    begin, record, field
):
    good = record()
    values = getattr(good, field).copy()
    values[np.unravel_index(good.weights.argmax(), good.weights.shape)[: values.ndim]] = np.nan
    bad = good.replace(**{field: values})
    mesh, state, update = begin()
    first = jax.device_get(state)
    with use_mesh(mesh):
        for times in (1, 2):
            state, metrics = update(state, {}, shard_batch(bad, mesh))
            assert metrics["updates_refused"] == 1
            expected = first.replace(step=np.int32(times), skipped=np.int32(times))
            chex.assert_trees_all_equal(jax.device_get(state), expected)
        state, metrics = update(state, {}, shard_batch(good, mesh))
    assert (metrics["updates_refused"], state.skipped, state.update, state.step) == (0, 0, 1, 3)


def test_a_batch_without_a_valid_completion_moves_nothing(run, record, start_params):
    nothing = np.zeros_like(record().advantages)
    empty = record().replace(advantages=nothing, weights=np.zeros_like(record().weights))
    state, metrics = run([empty])
    assert metrics["loss"] == metrics["grad_norm"] == metrics["updates_refused"] == 0
    assert all(np.isfinite(value) for value in metrics.values())
    chex.assert_trees_all_equal(state.params, start_params)


def test_a_donated_state_is_given_up_whole_and_no_two_leaves_share_a_buffer(begin, record):
    def shares_none(state):
        shards = [x.data for leaf in jax.tree.leaves(state) for x in leaf.addressable_shards]
        held = [shard.unsafe_buffer_pointer() for shard in shards]
        return len(set(held)) == len(held)

    assert shares_none(fresh_state({"embed": jnp.ones(3)}, OPTIMIZER, reference=True))
    batch = record()
    mesh, state, update = begin((2, 2, 2))
    with use_mesh(mesh):
        for _ in range(2):
            assert shares_none(state)
            before = jax.tree.leaves(state)
            state, _ = update(state, {}, shard_batch(batch, mesh))
            assert all(leaf.is_deleted() for leaf in before)
    assert update._cache_size() == 1
