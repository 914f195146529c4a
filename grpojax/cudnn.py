"""cuDNN: attention of whole completions in two fused calls, merged by their log-sum-exps.

No matrix of scores is held. One call has the queries of all G completions of a group against the
prompt's keys, the other each completion's queries against its own. The softmax over both is the
mean of theirs, each weighted by its share of the sum of exponentials.

jax's own rule for a fused call drops the gradient of its log-sum-exp, and so gives wrong gradients
of that mean. The backward pass here is the one of a single softmax: each part's is called with the
output and log-sum-exp of the whole, of which it makes the weights and row sums that the single
softmax has (FlashAttention-2, 2307.08691, algorithm 2, where blocks of keys are such parts).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

# jax.nn.dot_product_attention rounds the log-sum-exp to bfloat16, by up to 1.6 % of a part's weight
# for one of 4 to 8, and has no backward pass that takes one.
from jax._src.cudnn import fused_attention_stablehlo as fused
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from grpojax.types import KEPT, KV


class Calls(NamedTuple):
    """Attention of R rows of S queries and T keys, and its gradients.

    A row's queries see the first `lengths` of its keys, or, where that is None, those up to
    themselves. Log-sum-exps are float32, of the logits times `scale`.
    """

    # (queries [R S N H], keys and values [R T K H], lengths [R], scale) -> output, lse [R N S]
    forward: Callable[..., tuple[Array, Array]]
    # (the same, output, lse, gradient of the output) -> gradients of queries, keys and values
    backward: Callable[..., tuple[Array, Array, Array]]


def cudnn_forward(queries, keys, values, lengths, scale) -> tuple[Array, Array]:
    """See `Calls.forward`."""
    arguments, options = operands(queries, keys, values, lengths, scale)
    output, lse = fused._dot_product_attention_fwd_p_wrapper.bind(
        *arguments, is_training=True, **options
    )
    return output, lse


def cudnn_backward(
    queries, keys, values, lengths, scale, output, lse, gradient
) -> tuple[Array, Array, Array]:
    """See `Calls.backward`."""
    arguments, options = operands(queries, keys, values, lengths, scale)
    return tuple(
        fused._dot_product_attention_bwd_p_wrapper.bind(
            *arguments, lse, output, gradient, **options
        )
    )


def operands(queries, keys, values, lengths, scale) -> tuple[tuple[Array, ...], dict]:
    """What both calls take: without bias, dropout, windows, packing or pages."""
    mask, absent = fused.MaskType.CAUSAL, jnp.zeros(0, queries.dtype)
    seen = (absent, absent)
    if lengths is not None:
        mask = fused.MaskType.PADDING
        seen = (jnp.full(len(queries), queries.shape[1], jnp.int32), lengths)
    options = {
        "scale": scale,
        "mask_type": mask,
        "layout": fused.AttentionLayout.BTNH.value,
        "variadic_args": (False, False),
        "sliding_window_length": None,
        "dropout_rate": 0.0,
        "seed": 0,
    }
    return (queries, keys, values, absent, *seen, *(absent,) * 4), options


CUDNN = Calls(cudnn_forward, cudnn_backward)

Own = tuple[Float[Array, "B G S K H"], Float[Array, "B G S K H"]]
"""Keys and values of the completions."""
Shared = tuple[Float[Array, "B P K H"], Float[Array, "B P K H"], Int[Array, "B"]]
"""Keys and values of the prompts, right-padded, and their lengths."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def merged(
    calls: Calls,
    scale: float,
    queries: Float[Array, "B G S N H"],
    own: Own,
    shared: Shared | None,
) -> Float[Array, "B G S N H"]:
    """Causal attention of completions to themselves and to all of their prompts."""
    return merge(calls, scale, queries, own, shared)[0]


def merge(
    calls: Calls, scale: float, queries: Array, own: Own, shared: Shared | None
) -> tuple[Float[Array, "B G S N H"], Float[Array, "B G N S"]]:
    """The output of `merged`, and the log-sum-exp of all that each query sees."""
    batch, group, size, heads, _ = queries.shape
    mine, lse = calls.forward(rows(queries), rows(own[0]), rows(own[1]), None, scale)
    mine, lse = mine.reshape(queries.shape), lse.reshape(batch, group, heads, size)
    if shared is None:
        return mine, lse
    theirs, theirs_lse = calls.forward(side_by_side(queries), *shared, scale)
    theirs = theirs.reshape(queries.shape)
    theirs_lse = theirs_lse.reshape(batch, heads, group, size).swapaxes(1, 2)
    some = (shared[2] > 0)[:, None, None, None]  # a call has no say about a prompt of no tokens
    theirs = jnp.where(some[..., None], theirs, 0)
    theirs_lse = jnp.where(some, theirs_lse, -jnp.inf)
    both = jnp.logaddexp(lse, theirs_lse)

    def share(part: Array) -> Array:
        return jnp.exp(part - both).swapaxes(-1, -2)[..., None]

    mixed = share(lse) * mine + share(theirs_lse) * theirs  # float32, as the shares are
    return mixed.astype(queries.dtype), both


def merged_forward(calls: Calls, scale: float, queries: Array, own: Own, shared: Shared | None):
    mixed, lse = checkpoint_name(merge(calls, scale, queries, own, shared), KEPT)
    return mixed, (queries, own, shared, mixed, lse)


def merged_backward(calls: Calls, scale: float, kept, gradient: Float[Array, "B G S N H"]):
    queries, own, shared, mixed, lse = kept
    whole = rows(mixed), rows(lse), rows(gradient)
    of_queries, *of_own = calls.backward(
        rows(queries), rows(own[0]), rows(own[1]), None, scale, *whole
    )
    of_queries = of_queries.reshape(queries.shape)
    of_own = tuple(x.reshape(own[0].shape) for x in of_own)
    if shared is None:
        return of_queries, of_own, None
    beside = lse.swapaxes(1, 2)
    whole = side_by_side(mixed), beside.reshape(*beside.shape[:2], -1), side_by_side(gradient)
    found = calls.backward(side_by_side(queries), *shared, scale, *whole)
    some = (shared[2] > 0)[:, None, None, None]
    more, *of_shared = (jnp.where(some, x, 0) for x in found)
    more = more.reshape(queries.shape).astype(jnp.float32)
    of_queries = (of_queries.astype(jnp.float32) + more).astype(queries.dtype)
    return of_queries, of_own, (*of_shared, None)


merged.defvjp(merged_forward, merged_backward)


def rows(x: Array) -> Array:
    """[B, G, ...] as [B G, ...]: each completion by itself."""
    return x.reshape(-1, *x.shape[2:])


def side_by_side(x: Array) -> Array:
    """[B, G, S, ...] as [B, G S, ...]: the completions of a group one after the other."""
    return x.reshape(len(x), -1, *x.shape[3:])


def attend_cudnn(
    queries: Float[Array, "B G S N H"],
    own: KV,
    own_exist: Bool[Array, "B S"] | None,
    prefix: KV | None,
    prefix_exist: Bool[Array, "B P"] | None,
    *,
    scale: float,
    calls: Calls = CUDNN,
) -> Float[Array, "B G S N H"]:
    """Causal attention of whole completions to a shared prefix and to themselves.

    `own` has axes B, G in front, `prefix` only B. Where tokens exist, if not everywhere, is stated
    by left-padded masks; cuDNN wants those that exist in front, so padded rows are turned around.
    """
    mine = queries, jnp.moveaxis(own.keys, -1, 2), jnp.moveaxis(own.values, -2, 2)
    if own_exist is not None:
        missing = (~own_exist).sum(-1)
        mine = tuple(turned(x, -missing, axis=1) for x in mine)
    shared = None
    if prefix is not None:
        lengths = prefix_exist.sum(-1, dtype=jnp.int32)
        theirs = jnp.moveaxis(prefix.keys, -1, 1), jnp.moveaxis(prefix.values, -2, 1)
        missing = prefix_exist.shape[-1] - lengths
        shared = (*(turned(x, -missing, axis=0) for x in theirs), lengths)
    mixed = merged(calls, scale, mine[0], mine[1:], shared)
    return mixed if own_exist is None else turned(mixed, (~own_exist).sum(-1), axis=1)


def turned(x: Array, by: Int[Array, "B"], axis: int) -> Array:
    """Each row of x [B, ...] rolled along `axis` of the row, by a number of its own."""
    return jax.vmap(lambda row, n: jnp.roll(row, n, axis))(x, by)
