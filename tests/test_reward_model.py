"""The reward model: which state it reads, its loss by hand, and that it learns a preference."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import first_devices
from test_scalar import MODEL, OPTIMIZER, values_of, with_head

from grpojax.checkpoint import close, open_checkpoints, restore, restore_params, save
from grpojax.reward_model import (
    make_reward_scorer,
    make_reward_update,
    pair_accuracy,
    pair_loss,
    train_reward_model,
)
from grpojax.scalar import abstract_scalar_state, init_scalar_state
from grpojax.sharding import shard_batch, use_mesh
from grpojax.types import Pairs, Prompts

LENGTH, PAIRS, STEPS = 6, 20, 20  # T, pairs of an update, updates
scorer = make_reward_scorer(MODEL)


def draw_pairs(count, seed):
    """A made-up preference: the better completion has more tokens below 20, and a random length."""
    rng = np.random.default_rng(seed)
    prompts = rng.integers(4, 50, (count, 3)).astype(np.int32)
    lengths = rng.integers(3, LENGTH + 1, (count, 2, 1))
    mask = np.arange(LENGTH) < lengths
    tokens = rng.integers(4, 50, mask.shape)
    tokens[:, 0] = np.where(rng.random((count, LENGTH)) < 0.8, tokens[:, 0] % 16 + 4, tokens[:, 0])
    tokens[:, 1] = np.where(rng.random((count, LENGTH)) < 0.8, tokens[:, 1] % 30 + 20, tokens[:, 1])
    below = (mask & (tokens < 20)).sum(-1)
    kept = below[:, 0] > below[:, 1]
    prompts = Prompts(prompts, np.ones(prompts.shape, bool), np.arange(count))
    return jax.tree.map(lambda x: x[kept], Pairs(prompts, tokens.astype(np.int32), mask))


def scores_of(params, pairs):
    return scorer(params, pairs.prompts, jnp.asarray(pairs.tokens), jnp.asarray(pairs.mask))


@pytest.fixture(scope="module")
def pairs():
    return jax.tree.map(lambda x: x[:PAIRS], draw_pairs(30, 1))


@pytest.fixture(scope="module")
def begin(params):
    """`begin()`: the mesh, what the state is like, a fresh one, and the update, of 4 parts."""
    mesh = first_devices()
    like = abstract_scalar_state(MODEL, OPTIMIZER, mesh)
    update = make_reward_update(MODEL, OPTIMIZER, like, microbatches=4)
    start = jax.tree.map(lambda x: x / 3, params)

    def begin():
        with use_mesh(mesh):
            return mesh, like, init_scalar_state(OPTIMIZER, like, start), update

    return begin


def test_a_score_is_of_the_state_after_the_last_token_and_of_nothing_later(params, pairs):
    head = with_head(params)
    scores = np.asarray(scores_of(head, pairs))
    values = values_of(head, pairs.prompts, pairs.tokens)
    lengths = pairs.mask.sum(-1)
    assert len(np.unique(lengths)) > 1
    for index in np.ndindex(scores.shape):
        assert scores[index] == values[index][lengths[index]]
    spoilt = np.where(pairs.mask, pairs.tokens, 7).astype(np.int32)
    np.testing.assert_array_equal(scores_of(head, pairs.replace(tokens=spoilt)), scores)
    last = np.arange(LENGTH) == lengths[..., None] - 1
    other = np.where(last, (pairs.tokens + 1) % 50, pairs.tokens).astype(np.int32)
    assert (np.asarray(scores_of(head, pairs.replace(tokens=other))) != scores).all()


def test_the_loss_of_a_pair_and_its_gradient_by_hand():
    """σ(2 - .5) = .8175744762; the gradient is -(1 - σ), +(1 - σ)."""
    with jax.enable_x64(True):
        loss, gradient = jax.value_and_grad(pair_loss)(jnp.array([2.0, 0.5]))
        np.testing.assert_allclose(loss, -math.log(0.8175744761936437), rtol=0, atol=1e-12)
        np.testing.assert_allclose(gradient, [-0.1824255238, 0.1824255238], rtol=0, atol=1e-10)
        np.testing.assert_allclose(pair_loss(jnp.array([7.0, 7.0])), math.log(2), atol=1e-15)
        for scores, value in (([1e4, -1e4], 0), ([-1e4, 1e4], 2e4)):
            assert pair_loss(jnp.array(scores)) == value


def test_equal_scores_are_half_right():
    scores = jnp.array([[1.0, 0], [0, 1], [2, 2]])
    np.testing.assert_array_equal(jax.vmap(pair_accuracy)(scores), [1, 0, 0.5])


def test_parts_of_a_batch_add_up_to_the_mean_over_its_pairs(begin, pairs):
    mesh, _, state, update = begin()
    with use_mesh(mesh):
        state, first = update(state, {}, shard_batch(pairs, mesh))
        better, worse = np.asarray(scores_of(state.params, pairs)).T
        state, second = update(state, {}, shard_batch(pairs, mesh))
    np.testing.assert_allclose(first["reward_model/loss"], math.log(2), rtol=1e-6)  # the head is 0
    loss = np.log1p(np.exp(worse - better)).mean()
    np.testing.assert_allclose(second["reward_model/loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(second["reward_model/accuracy"], (better > worse).mean(), rtol=1e-6)
    assert 0 < second["reward_model/loss"] < first["reward_model/loss"]


def test_a_reward_update_that_is_not_finite_is_refused(begin, pairs):
    mesh, _, state, update = begin()
    bad = jax.device_put(jnp.float32(jnp.nan), state.params["head"]["bias"].sharding)
    head = state.params["head"] | {"bias": bad}
    state = state.replace(params=state.params | {"head": head})
    with use_mesh(mesh):
        state, metrics = update(state, {}, shard_batch(pairs, mesh))
    assert (metrics["reward_model/updates_refused"], state.skipped, state.update) == (1, 1, 0)
    assert not state.params["head"]["kernel"].any()


def train(update, state, pairs, history, mesh, steps):
    with use_mesh(mesh):
        return train_reward_model(
            update, state, {}, pairs, [history], mesh,
            steps=steps, pairs_per_step=PAIRS, share=0.1, seed=0,
        )  # fmt: skip


def test_a_tenth_of_the_pairs_are_earlier_ones_and_training_can_be_cut_anywhere(begin):
    pairs, history = draw_pairs(50, 2), draw_pairs(50, 3)
    history = history.replace(prompts=history.prompts.replace(ids=history.prompts.ids + 1000))
    ids = []
    mesh, _, state, update = begin()

    def watched(state, frozen, pairs):
        ids.append(np.asarray(pairs.prompts.ids))
        return update(state, frozen, pairs)

    whole, seen = train(watched, state, pairs, history, mesh, range(6))
    assert (np.array(ids) >= 1000).sum(-1).tolist() == [2] * 6  # of 20
    _, _, state, _ = begin()
    state, first = train(update, state, pairs, history, mesh, range(4))
    state, rest = train(update, state, pairs, history, mesh, range(4, 6))
    chex.assert_trees_all_equal((state, first + rest), (whole, seen))


def test_it_learns_to_prefer_and_is_saved_and_found_again(begin, tmp_path):
    mesh, like, state, update = begin()
    pairs, history, unseen = (draw_pairs(n, seed) for n, seed in ((250, 2), (50, 3), (250, 4)))

    def accuracy_of(params):
        return np.asarray(jax.vmap(pair_accuracy)(scores_of(params, unseen))).mean(dtype=float)

    assert accuracy_of(state.params) == 0.5
    state, seen = train(update, state, pairs, history, mesh, range(STEPS))
    accuracy = accuracy_of(state.params)
    assert accuracy > 0.9 and len(seen) == state.update == STEPS

    checkpoints = open_checkpoints(tmp_path, keep=1)
    save(checkpoints, STEPS, state, accuracy)
    restored, _ = restore(checkpoints, like, print)
    close(checkpoints)
    chex.assert_trees_all_equal(restored, state)
    params, _ = restore_params(tmp_path, like.params, print, "best")
    chex.assert_trees_all_equal(params, state.params)
