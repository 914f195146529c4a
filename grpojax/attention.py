"""Attention of groups: every completion attends to the prompt's shared keys and to its own.

Both the logits and the mixture of values are one product of a completion, lifted by `jax.vmap`.
Over a group the prompt's keys are not mapped, so XLA sees one matrix product per group and a prompt
is stored and read once, whatever G is. Keys lie as [K, H, length] and values as [K, length, H], and
what is a completion's own with all completions along one axis: the order in which products read
them, so that decoding copies nothing.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpojax.types import KV

MASKED = -1e30  # finite, so that a row with nothing to attend to gives numbers and no NaN


def product(x: Float[Array, "K R S C"], y: Float[Array, "K C D"]) -> Float[Array, "K R S D"]:
    """Of one completion: queries and keys, or weights and values, with R query heads to a key head;
    sums are float32."""
    return jnp.einsum("krsc,kcd->krsd", x, y, preferred_element_type=jnp.float32)


def of_own(x: Float[Array, "B G K R S C"], y: Float[Array, "BG K C D"]) -> Array:
    """The product of each completion with what is its own."""
    rows = jax.vmap(product)(x.reshape(-1, *x.shape[2:]), y)
    return rows.reshape(*x.shape[:2], *rows.shape[1:])


def of_shared(x: Float[Array, "B G K R S C"], y: Float[Array, "B K C D"]) -> Array:
    """The product of each completion with what its group shares."""
    return jax.vmap(jax.vmap(product, in_axes=(0, None)))(x, y)


def attend(
    queries: Float[Array, "B G S N H"],
    own: KV,
    own_mask: Bool[Array, "B S T"],
    prefix: KV | None = None,
    prefix_mask: Bool[Array, "B #S P"] | None = None,
    *,
    scale: float,
    softcap: float = 0.0,
) -> Float[Array, "B G S N H"]:
    """Attention of B groups of G completions, one softmax over the prompt's keys and their own;
    `own` has one axis of B * G in front, or two, and `prefix` one of B.

    The N = K * R query heads are grouped by the key head they share. Logits and weights are
    float32, multiplied by `scale`, then bounded by `softcap` (0: not).
    """
    own = jax.tree.map(lambda x: x.reshape(-1, *x.shape[-3:]), own)
    heads, shape = own.keys.shape[1], queries.shape
    grouped = queries.reshape(*shape[:3], heads, -1, shape[-1])  # N -> K, R
    grouped = jnp.moveaxis(grouped, 2, 4)  # [B G K R S H]

    def score(of: Callable, keys: Array, mask: Array) -> Float[Array, "B G K R S T"]:
        logits = soften(of(grouped, keys) * scale, softcap)
        return jnp.where(mask[:, None, None, None], logits, MASKED)

    parts = [(of_own, own, own_mask)]
    if prefix is not None:
        parts.append((of_shared, prefix, prefix_mask))
    scores = [score(of, kv.keys, mask) for of, kv, mask in parts]
    peaks = (logits.max(-1, keepdims=True) for logits in scores)
    peak = jax.lax.stop_gradient(functools.reduce(jnp.maximum, peaks))  # cancels in the quotient

    mixed, total = 0.0, 0.0
    for (of, kv, _), logits in zip(parts, scores):
        weights = jnp.exp(logits - peak)
        total += weights.sum(-1, keepdims=True)
        mixed += of(weights.astype(kv.values.dtype), kv.values)
    return jnp.moveaxis(mixed / total, 4, 2).reshape(shape).astype(queries.dtype)


def soften(logits: Float[Array, "*s"], cap: float) -> Float[Array, "*s"]:
    """c tanh(logits / c): within ±`cap`, whose 0 means no bound (Gemma 2, 2408.00118)."""
    return cap * jnp.tanh(logits / cap) if cap else logits
