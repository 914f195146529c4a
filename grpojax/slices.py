"""Slices: a few members of every group at a time, read to the lengths that came.

The members of each group are sorted by length, longest first, and cut into slices of as many
members each. One program reads them one after the other, each to the least of a few lengths that
holds it, against prompts that were read once. What is cut off is padding, so no number depends on
it, and no more than a slice is in memory.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

MOST_SLICES = 8  # of a group
SLICE_TOKENS = 2048  # a slice of fewer would leave a processor waiting
EIGHTHS = (1, 2, 4, 6, 8)  # of the longest: lengths a slice is read to; a program has code for each
SHORTEST = 64  # tokens: a smaller step is not worth the code


def slice_lengths(completion_length: int) -> tuple[int, ...]:
    """The lengths that a slice may be read to, shortest first."""
    step = max(SHORTEST, -(-completion_length // 8))
    return tuple(sorted({min(step * n, completion_length) for n in EIGHTHS}))


def members_of_slice(batch: int, group_size: int, completion_length: int) -> int:
    """Members of each group in a slice, on a device that has `batch` groups."""
    enough = -(-SLICE_TOKENS // (batch * completion_length))
    return min(max(-(-group_size // MOST_SLICES), enough), group_size)


def sliced(tree: Any, lengths: Int[Array, "B G"], members: int) -> tuple[Any, Int[Array, "B G"]]:
    """Arrays [B, G, ...] as [slices, B, `members`, ...], the longest members first, and where each
    member went: its place in the slices laid end to end.

    What is missing in the last slice is zeros.
    """
    order = jnp.argsort(-lengths, axis=-1, stable=True)
    missing = -lengths.shape[1] % members

    def cut(x: Array) -> Array:
        x = jnp.pad(take_members(x, order), [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(len(x), -1, members, *x.shape[2:]), 1, 0)

    return jax.tree.map(cut, tree), jnp.argsort(order, axis=-1)


def joined(x: Array, places: Int[Array, "B G"]) -> Array:
    """[B, G, ...] of [slices, B, members, ...]: the way back from `sliced`."""
    x = jnp.moveaxis(x, 0, 1)
    return take_members(x.reshape(len(x), -1, *x.shape[3:]), places)


def to_length(read: Callable[..., Any], tree: Any, longest: Int[Array, ""], *arguments: Any) -> Any:
    """`read(tree, *arguments)` with arrays [.., T] of `tree` cut to the least length that holds the
    `longest` completion; zeros, and nothing is read, where that is 0 tokens.

    What `read` returns may not depend on the length in its shape.
    """
    lengths = slice_lengths(max(x.shape[-1] for x in jax.tree.leaves(tree)))

    def branch(length: int) -> Callable[..., Any]:
        return lambda tree, *rest: read(jax.tree.map(lambda x: x[..., :length], tree), *rest)

    def least(tree: Any, *rest: Any) -> Any:
        which = sum((longest > length).astype(jnp.int32) for length in lengths[:-1])
        return jax.lax.switch(which, [branch(length) for length in lengths], tree, *rest)

    return where_some(longest > 0, least, tree, *arguments)


def where_some(some: Bool[Array, ""], read: Callable[..., Any], *arguments: Any) -> Any:
    """`read(*arguments)`, or zeros of its shapes and nothing read where there is not `some`."""
    result = jax.eval_shape(read, *arguments)

    def nothing(*_: Any) -> Any:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), result)

    return jax.lax.cond(some, read, nothing, *arguments)


def by_length(tree: Any, lengths: Int[Array, "B"], parts: int, shards: int) -> Any:
    """Arrays [B, ...] in an order of which `gradients.split` gives each part rows of like length,
    the longest first. Each of the `shards` of the rows keeps its own."""
    order = jnp.argsort(-lengths.reshape(shards, -1), axis=-1, stable=True)
    order = order.reshape(shards, parts, -1).swapaxes(1, 2).reshape(shards, -1)

    def arrange(x: Array) -> Array:
        return take_members(x.reshape(shards, -1, *x.shape[1:]), order).reshape(x.shape)

    return jax.tree.map(arrange, tree)


def take_members(x: Array, members: Int[Array, "B W"]) -> Array:
    """[B, W, ...] of [B, G, ...]: `members` of each group."""
    return jax.vmap(lambda of, at: of[at])(x, members)
