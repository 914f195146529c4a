"""cuDNN's two calls, merged: one softmax forwards and backwards, whatever makes the calls; and what
XLA is asked for is cuDNN's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpojax.attention import attend
from grpojax.cudnn import Calls, attend_cudnn
from grpojax.types import KV

H, SCALE = 16, 0.25
# Of float32 arrays with values up to 10: of two orders of summation, about ten roundings.
BOUND = 1e-5


def forward(queries, keys, values, lengths, scale):
    """`Calls.forward` without cuDNN, by jax's own attention with its log-sum-exp."""
    output, lse = jax.nn.dot_product_attention(
        queries,
        keys,
        values,
        scale=scale,
        is_causal=lengths is None,
        key_value_seq_lengths=lengths,
        implementation="xla",
        return_residual=True,
    )
    return unknown((output, lse.swapaxes(1, 2)), lengths)


def backward(queries, keys, values, lengths, scale, output, lse, gradient):
    """`Calls.backward` without cuDNN: the same formulas, with the weights held."""
    shared = queries.shape[2] // keys.shape[2]
    of_head, values = (jnp.repeat(x, shared, axis=2) for x in (keys, values))
    logits = scale * jnp.einsum("rsnh,rtnh->rnst", queries, of_head)
    seen = jnp.tri(*logits.shape[-2:], dtype=bool)
    if lengths is not None:
        seen = (jnp.arange(keys.shape[1]) < lengths[:, None])[:, None, None]
    weights = jnp.where(seen, jnp.exp(logits - lse[..., None]), 0)
    of_weights = jnp.einsum("rsnh,rtnh->rnst", gradient, values)
    sums = jnp.einsum("rsnh,rsnh->rns", gradient, output)[..., None]
    of_logits = scale * weights * (of_weights - sums)
    of_keys = jnp.einsum("rnst,rsnh->rtnh", of_logits, queries)
    of_values = jnp.einsum("rnst,rsnh->rtnh", weights, gradient)
    split = (*keys.shape[:3], shared, keys.shape[3])
    of_queries = jnp.einsum("rnst,rtnh->rsnh", of_logits, of_head)
    found = of_queries, of_keys.reshape(split).sum(3), of_values.reshape(split).sum(3)
    return unknown(found, lengths)


def unknown(found, lengths):
    """`found`, but NaN in rows that see no key: nobody promises more."""
    if lengths is None:
        return found
    return tuple(jnp.where(lengths.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.nan) for x in found)


STAND_IN = Calls(forward, backward)
attend_merged = functools.partial(attend_cudnn, scale=SCALE, calls=STAND_IN)


def inputs(group, size, prompt, heads=(4, 2), batch=2):
    """Queries, own KV and prefix KV of groups, and a gradient of what attention makes."""
    normal, kv = np.random.default_rng(0).standard_normal, heads[1]
    own = KV(normal((batch, group, kv, H, size)), normal((batch, group, kv, size, H)))
    prefix = KV(normal((batch, kv, H, prompt)), normal((batch, kv, prompt, H)))
    queries, gradient = normal((2, batch, group, size, heads[0], H))
    return jax.tree.map(jnp.float32, ((queries, own, prefix), gradient))


def left_padded(length, *lengths):
    return jnp.arange(length) >= length - jnp.array(lengths)[:, None]


def with_gradients(function, arguments, gradient):
    """What `function` makes of `arguments`, and the gradients of them."""

    def run(arguments, gradient):
        output, back = jax.vjp(function, *arguments)
        return output, back(gradient)

    return jax.jit(run)(arguments, gradient)


def assert_attends_to_prompts(attention, group, size, prompt, heads=(4, 2), lengths=(5, 0)):
    """`attention` does as `attend`, forwards and backwards, where prompts have `lengths`."""
    arguments, gradient = inputs(group, size, prompt, heads)
    exist = left_padded(prompt, *lengths)
    causal = jnp.broadcast_to(jnp.tri(size, dtype=bool), (2, size, size))

    def plain(queries, own, prefix):
        return attend(queries, own, causal, prefix, exist[:, None], scale=SCALE)

    def fused(queries, own, prefix):
        return attention(queries, own, None, prefix, exist)

    found = with_gradients(fused, arguments, gradient)
    expected = with_gradients(plain, arguments, gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=BOUND), found, expected)


def assert_attends_to_itself(attention, size, lengths):
    """`attention` does as `attend` where left-padded prompts are read, at all tokens that exist."""
    (queries, own, _), gradient = inputs(1, size, 1)
    exist = left_padded(size, *lengths)
    causal = jnp.tri(size, dtype=bool) & exist[:, None]
    some = exist[:, None, :, None, None]

    def plain(queries, own):
        return jnp.where(some, attend(queries, own, causal, scale=SCALE), 0)

    def fused(queries, own):
        return jnp.where(some, attention(queries, own, exist, None, None), 0)

    found = with_gradients(fused, (queries, own), gradient)
    expected = with_gradients(plain, (queries, own), gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=BOUND), found, expected)


@pytest.mark.parametrize(
    "group, size, prompt, heads, lengths",
    [
        (3, 7, 5, (4, 2), (5, 2)),
        (1, 5, 9, (4, 4), (1, 9)),
        (4, 1, 6, (4, 1), (3, 0)),  # one token, one key head, and a prompt of no tokens
    ],
)
def test_two_calls_merged_are_one_softmax_forwards_and_backwards(
    group, size, prompt, heads, lengths
):
    assert_attends_to_prompts(attend_merged, group, size, prompt, heads, lengths)


def test_padded_prompts_that_read_themselves_are_turned_around_and_back():
    assert_attends_to_itself(attend_merged, 9, (9, 4))


def test_a_part_with_all_the_weight_leaves_nothing_to_the_other():
    (queries, own, prefix), _ = inputs(2, 3, 4)
    exist = left_padded(4, 4, 2)
    far = own.replace(keys=own.keys * 1e3), prefix.replace(keys=prefix.keys * 1e3)
    causal = jnp.broadcast_to(jnp.tri(3, dtype=bool), (2, 3, 3))
    plain = jax.jit(functools.partial(attend, scale=SCALE))
    expected = plain(queries, far[0], causal, far[1], exist[:, None])
    found = jax.jit(attend_merged)(queries, far[0], None, far[1], exist)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)  # logits have four digits left


def test_xla_is_asked_for_cudnns_calls_and_holds_no_scores():
    """Odd lengths, shared key heads, bfloat16. What runs on no GPU here is at least lowered."""
    kinds = (jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for x in jax.tree.leaves(inputs(3, 7, 5)))
    queries, keys, values, *prefix, gradient = kinds
    exist = jax.ShapeDtypeStruct((2, 5), bool)

    def both(queries, own, prefix, exist, gradient):
        run = functools.partial(attend_cudnn, scale=SCALE)
        output, back = jax.vjp(lambda *x: run(x[0], x[1], None, x[2], exist), queries, own, prefix)
        return output, back(gradient)

    arguments = queries, KV(keys, values), KV(*prefix), exist, gradient
    lowered = jax.jit(both).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    calls = [line.partition("custom_call @")[2] for line in lowered.splitlines()]
    calls = [line for line in calls if line.startswith("__cudnn$fmha")]
    names = [line.partition("(")[0].removeprefix("__cudnn$fmhaSoftmax") for line in calls]
    assert sorted(names) == ["", "", "Backward", "Backward"]
    causal = [r"mask_type\22: \22CAUSAL" in line for line in calls]
    assert causal.count(True) == 2 and sum(r"\22PADDING\22" in line for line in calls) == 2
    # Log-sum-exps are float32: of 2 x 3 completions, and of 2 groups with 3 x 7 queries.
    assert all("tensor<6x4x7xf32>" in line or "tensor<2x4x21xf32>" in line for line in calls)
    assert "dot_general" not in lowered
