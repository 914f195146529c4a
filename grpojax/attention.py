"""Attention of one group: every completion attends to the prompt's shared keys and to its own.

The core is written for one completion and lifted by `jax.vmap`. Over the group the prompt's keys
are not mapped, so XLA sees one matrix product per group and a prompt is stored and read once,
whatever G is. Keys lie as [K, H, length] and values as [K, length, H]: the order in which decoding
reads them without a transposed copy.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpojax.types import KV

MASKED = -1e30  # finite, so that a row with nothing to attend to gives numbers and no NaN


def attend_one(
    queries: Float[Array, "S K R H"],
    own: KV,
    own_mask: Bool[Array, "S T"],
    prefix: KV | None,
    prefix_mask: Bool[Array, "#S P"] | None,
    scale: float,
    softcap: float,
) -> Float[Array, "S K R H"]:
    """Attention of one completion's S queries: one softmax over the prompt's keys and its own.

    The N = K * R query heads are grouped by the key head they share. Logits and weights are
    float32, multiplied by `scale`, then bounded by `softcap` (0: not).
    """
    queries = jnp.moveaxis(queries, 0, 2)  # as products read and write them, without a copy

    def score(kv: KV, mask: Array) -> Array:
        logits = jnp.einsum("krsh,kht->krst", queries, kv.keys, preferred_element_type=jnp.float32)
        return jnp.where(mask, soften(logits * scale, softcap), MASKED)

    parts = [(score(own, own_mask), own.values)]
    if prefix is not None:
        parts.append((score(prefix, prefix_mask), prefix.values))
    peak = parts[0][0].max(-1, keepdims=True)
    for logits, _ in parts[1:]:
        peak = jnp.maximum(peak, logits.max(-1, keepdims=True))
    peak = jax.lax.stop_gradient(peak)  # cancels in the quotient

    mixed, total = 0.0, 0.0
    for logits, values in parts:
        weights = jnp.exp(logits - peak)
        total += weights.sum(-1)
        mixed += jnp.einsum(
            "krst,kth->krsh",
            weights.astype(values.dtype),
            values,
            preferred_element_type=jnp.float32,
        )
    return jnp.moveaxis(mixed / total[..., None], 2, 0).astype(queries.dtype)


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
    """Attention of B groups of G completions; `own` has axes B, G in front, `prefix` only B."""
    heads = own.keys.shape[-3]
    grouped = queries.reshape(*queries.shape[:3], heads, -1, queries.shape[-1])  # N -> K, R
    one = functools.partial(attend_one, scale=scale, softcap=softcap)
    one_group = jax.vmap(one, in_axes=(0, 0, None, None, None))
    mixed = jax.vmap(one_group)(grouped, own, own_mask, prefix, prefix_mask)
    return mixed.reshape(queries.shape)


def soften(logits: Float[Array, "*s"], cap: float) -> Float[Array, "*s"]:
    """c tanh(logits / c): within ±`cap`, whose 0 means no bound (Gemma 2, 2408.00118)."""
    return cap * jnp.tanh(logits / cap) if cap else logits
