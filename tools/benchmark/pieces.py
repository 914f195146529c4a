"""Pieces: one thing computed in two ways, the one that grpojax takes and one that it does not.

    python -m tools.benchmark.pieces

Shapes are those of rows C and D. Both ways are compiled alone and must agree; they take turns, and
the least of the times of each is printed.
"""

import os
import time
from collections.abc import Callable
from typing import Any

os.sched_setaffinity(0, range(2))  # before jax counts the cores

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from grpojax.attention import attend  # noqa: E402
from grpojax.scoring import entropy_of  # noqa: E402
from grpojax.types import KV  # noqa: E402
from tools.benchmark.floor import model_of  # noqa: E402
from tools.benchmark.rows import ROWS  # noqa: E402

TURNS = 20
FILLED, COLUMNS = 250, 256  # tokens in row D's cache, and the smallest shape that holds them
BLOCK = 64  # columns read at a time

Way = Callable[..., jax.Array]
Piece = tuple[str, str, Way, Way, tuple[Any, ...]]
"""What it is, how the other way does it, the way taken, the other, what both are given."""


def normal(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(len(shape)), shape)


def entropy() -> Piece:
    """Of a chunk of the head, of one prompt."""
    logps = jax.nn.log_softmax(normal(1, 8, 42, model_of(ROWS["C"]).vocab_size))
    way = "a sum of products over the vocabulary instead of one product"
    return "entropy", way, entropy_of, lambda x: -(jnp.exp(x) * x).sum(-1), (logps,)


def norm_gradient() -> Piece:
    """Of the tokens of a step."""
    row = ROWS["C"]
    tokens = row.prompt_length + row.group_size * row.completion_length
    x, back = normal(2, tokens, model_of(row).embed_dim)

    def inverse(x: jax.Array) -> jax.Array:
        return jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5)

    def by_einsum(x: jax.Array) -> jax.Array:
        return jnp.einsum("sd,s->sd", x, inverse(x)[:, 0])

    def gradient(norm: Way) -> Way:
        return lambda x, back: jax.vjp(norm, x)[1](back)[0]

    way = "an einsum scales each token"
    return "norm, gradient", way, gradient(lambda x: x * inverse(x)), gradient(by_einsum), (x, back)


def weight_gradient() -> Piece:
    """Of the last product of a feed-forward."""
    row = ROWS["C"]
    model, tokens = model_of(row), row.group_size * row.completion_length
    gate, up = normal(2, tokens, model.ffw_dim)
    back = normal(tokens, model.embed_dim)

    def kept(gate: jax.Array, up: jax.Array, back: jax.Array) -> jax.Array:
        return (jax.nn.silu(gate) * up).T @ back

    def barred(gate: jax.Array, up: jax.Array, back: jax.Array) -> jax.Array:
        return jax.lax.optimization_barrier(jax.nn.silu(gate) * up).T @ back

    way = "a barrier keeps the activation from being fused into the product"
    return "weight gradient", way, kept, barred, (gate, up, back)


def decoding() -> Piece:
    """A token of each of row D's completions attends to those before."""
    row = ROWS["D"]
    model = model_of(row)
    rows, heads, width = row.prompts * row.group_size, model.num_kv_heads, model.head_dim
    queries = normal(row.prompts, row.group_size, 1, heads, width)
    keys, values = normal(rows, heads, width, COLUMNS), normal(rows, heads, COLUMNS, width)
    filled = jnp.int32(FILLED)

    def whole(queries, keys, values, filled):
        mask = jnp.broadcast_to(jnp.arange(COLUMNS) < filled, (row.prompts, 1, COLUMNS))
        return attend(queries, KV(keys, values), mask, scale=width**-0.5)

    def in_blocks(queries, keys, values, filled):
        flat = queries.reshape(rows, heads, width) * width**-0.5

        def block(i, carry):
            peak, total, mixed = carry
            some = jax.lax.dynamic_slice_in_dim(keys, i * BLOCK, BLOCK, axis=-1)
            mine = jax.lax.dynamic_slice_in_dim(values, i * BLOCK, BLOCK, axis=-2)
            logits = jnp.einsum("bkh,bkht->bkt", flat, some)
            logits = jnp.where(i * BLOCK + jnp.arange(BLOCK) < filled, logits, -1e30)
            top = jnp.maximum(peak, logits.max(-1, keepdims=True))
            shrink, weights = jnp.exp(peak - top), jnp.exp(logits - top)
            mixed = mixed * shrink + jnp.einsum("bkt,bkth->bkh", weights, mine)
            return top, total * shrink + weights.sum(-1, keepdims=True), mixed

        none = jnp.zeros((rows, heads, 1))
        begun = none - 1e30, none, jnp.zeros_like(flat)
        _, total, mixed = jax.lax.fori_loop(0, -(-filled // BLOCK), block, begun)
        return (mixed / total).reshape(queries.shape)

    way = f"blocks of {BLOCK} columns, as many as are filled, instead of the smallest cache"
    return "attention, decoding", way, whole, in_blocks, (queries, keys, values, filled)


def products() -> Piece:
    """All products of a decoded token of row C's completions."""
    row = ROWS["C"]
    model = model_of(row)
    own = model.num_kv_heads * model.head_dim, model.num_heads * model.head_dim
    into = 2 * (own[0],) + (own[1],) + 2 * (model.ffw_dim,)  # from a token's width
    back = own[1], model.ffw_dim  # to it
    shapes = [(model.embed_dim, n) for n in into] + [(n, model.embed_dim) for n in back]
    weights = [normal(*shape) for shape in shapes] * model.num_layers
    weights.append(normal(model.embed_dim, model.vocab_size))
    weights = [jnp.copy(each) for each in weights]  # each is read from memory of its own
    rows = {size: normal(row.group_size, size) for size in {each.shape[0] for each in weights}}

    def at_once(rows, weights):
        return jnp.stack([(rows[each.shape[0]] @ each).max() for each in weights])

    def one_by_one(rows, weights):
        def of_one(i):
            return at_once({size: x[i][None] for size, x in rows.items()}, weights)

        return jax.lax.map(of_one, jnp.arange(row.group_size)).max(0)

    way = f"{row.group_size} rows one after the other"
    return "products of a token", way, at_once, one_by_one, (rows, weights)


def milliseconds(ways: tuple[Way, Way], given: tuple[Any, ...]) -> list[float]:
    """The least of each, which agree."""
    compiled = [jax.jit(way) for way in ways]
    np.testing.assert_allclose(*(np.asarray(way(*given)) for way in compiled), rtol=1e-3, atol=1e-3)
    found: list[list[float]] = [[], []]
    for _ in range(TURNS):
        for way, times in zip(compiled, found):
            begin = time.perf_counter()
            way(*given).block_until_ready()
            times.append(1e3 * (time.perf_counter() - begin))
    return [min(times) for times in found]


def main() -> None:
    print("| piece | the other way | taken, ms | other, ms |\n|---|---|---|---|")
    for piece in (entropy, norm_gradient, weight_gradient, decoding, products):
        name, way, *ways, given = piece()
        kept, other = milliseconds(tuple(ways), given)
        print(f"| {name} | {way} | {kept:.3g} | {other:.3g} |", flush=True)


if __name__ == "__main__":
    main()
