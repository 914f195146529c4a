"""Attention: the shared prefix and the own tokens make one softmax."""

import functools

import jax
import numpy as np
import pytest

from grpojax import attention
from grpojax.types import KV

B, G, S, P, H = 2, 3, 4, 5, 6
attend = jax.jit(functools.partial(attention.attend, scale=H**-0.5))


def inputs(heads: int, kv_heads: int, seed: int = 0):
    """Queries, own keys and values, those of a prefix, and masks: causal, and left padding."""
    normal = np.random.default_rng(seed).standard_normal
    own = KV(normal((B, G, kv_heads, H, S)), normal((B, G, kv_heads, S, H)))
    prefix = KV(normal((B, kv_heads, H, P)), normal((B, kv_heads, P, H)))
    own_mask = np.broadcast_to(np.tri(S, dtype=bool), (B, S, S))
    prefix_mask = np.arange(P) >= np.array([0, 3])[:, None, None]
    arrays = normal((B, G, S, heads, H)), own, own_mask, prefix, prefix_mask
    return jax.tree.map(lambda x: x if x.dtype == bool else x.astype(np.float32), arrays)


def one_query(query, keys, values):
    """Softmax attention of one head's query over all the keys it may see, in float64."""
    scores = keys @ query / np.sqrt(H)
    weights = np.exp(scores - scores.max())
    return weights / weights.sum() @ values


def plain(queries, own, own_mask, prefix, prefix_mask):
    """`attend` spelled out: for each query the visible keys are gathered into one list."""
    queries, own_keys, own_values, keys, values = (
        np.asarray(x, np.float64)
        for x in (queries, own.keys, own.values, prefix.keys, prefix.values)
    )
    out = np.zeros_like(queries)
    for b, g, s, n in np.ndindex(queries.shape[:4]):
        k = n // (queries.shape[3] // keys.shape[1])  # consecutive heads share a key head
        seen, mine = np.asarray(prefix_mask[b, 0]), np.asarray(own_mask[b, s])
        all_keys = np.concatenate([keys[b, k].T[seen], own_keys[b, g, k].T[mine]])
        all_values = np.concatenate([values[b, k][seen], own_values[b, g, k][mine]])
        out[b, g, s, n] = one_query(queries[b, g, s, n], all_keys, all_values)
    return out


@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (4, 2), (4, 1)], ids=["mha", "gqa", "mqa"])
def test_attention_is_one_softmax_over_the_prefix_and_the_own_tokens(heads, kv_heads):
    arguments = inputs(heads, kv_heads)
    np.testing.assert_allclose(attend(*arguments), plain(*arguments), rtol=1e-5, atol=1e-6)


def test_a_prefix_of_which_nothing_is_seen_is_no_prefix():
    queries, own, own_mask, prefix, prefix_mask = inputs(4, 2)
    alone = attend(queries, own, own_mask)
    np.testing.assert_array_equal(
        attend(queries, own, own_mask, prefix, np.zeros_like(prefix_mask)), alone
    )


def test_what_is_masked_changes_no_bit():
    queries, own, own_mask, prefix, prefix_mask = inputs(4, 2)
    hidden = ~prefix_mask[..., None]
    garbage = KV(
        np.where(np.moveaxis(hidden, -1, -2), np.float32(1e4), prefix.keys),
        np.where(hidden, np.float32(-1e4), prefix.values),
    )
    future = KV(own.keys.copy(), own.values.copy())
    future.keys[..., -1], future.values[..., -1, :] = 1e4, -1e4
    np.testing.assert_array_equal(
        attend(queries, future, own_mask, garbage, prefix_mask)[:, :, :-1],
        attend(queries, own, own_mask, prefix, prefix_mask)[:, :, :-1],
    )


@pytest.mark.parametrize("own_scale, prefix_scale", [(1e4, 1), (1, 1e4), (1e4, 1e4)])
def test_large_scores_on_either_side_stay_exact(own_scale, prefix_scale):
    queries, own, own_mask, prefix, prefix_mask = inputs(4, 2)
    arguments = (
        queries,
        own.replace(keys=own.keys * own_scale),
        own_mask,
        prefix.replace(keys=prefix.keys * prefix_scale),
        prefix_mask,
    )
    np.testing.assert_allclose(attend(*arguments), plain(*arguments), rtol=1e-4, atol=1e-5)


def test_a_query_that_sees_nothing_gives_numbers_and_finite_gradients():
    queries, own, own_mask, *_ = inputs(4, 2)
    blind = np.zeros_like(own_mask)
    total = jax.jit(jax.value_and_grad(lambda q: attend(q, own, blind).sum()))
    value, gradient = total(queries)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_members_of_a_group_do_not_see_each_other():
    queries, own, own_mask, prefix, prefix_mask = inputs(4, 2)
    other = KV(own.keys.copy(), own.values.copy())
    other.keys[:, 1] += 1
    other.values[:, 1] += 1
    before = np.asarray(attend(queries, own, own_mask, prefix, prefix_mask))
    after = np.asarray(attend(queries, other, own_mask, prefix, prefix_mask))
    np.testing.assert_array_equal(before[:, [0, 2]], after[:, [0, 2]])
    assert not np.allclose(before[:, 1], after[:, 1])
