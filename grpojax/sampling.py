"""Sampling: read each prompt once, then decode its G completions in loops that end with them.

Rows are left-padded, so the newest token of every row stands in the same column of the cache and is
written with one slice. The work follows the lengths that come, not the longest allowed: the cache
grows, and where enough of every group has ended the rest is decoded in fewer rows. What a row draws
is a function of seed, stream, step, example, member of the group and position alone.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from grpojax.drawing import draw, truncate
from grpojax.layout import for_decoding, in_compute_dtype
from grpojax.model import Policy
from grpojax.sharding import by_rows, constrain, on_each_device, split_among
from grpojax.slices import take_members
from grpojax.types import KV, Completions, Params, Prefix, Prompts

STREAMS = {"train": 0, "evaluate": 1, "sample": 2, "redraw": 3}
SHORTEST = 64  # columns of the smallest cache, unless completions are shorter
# Logical axes of a cache, in groups and while it decodes.
IN_GROUPS, IN_LOOP = ("batch", None, "kv_heads", None, None), ("batch", "kv_heads", None, None)
A_ROW = 128  # columns: reading so many costs about what the rest of a row does


def stream_key(
    seed: int, stream: Literal["train", "evaluate", "sample", "redraw"], step: int
) -> Key[Array, ""]:
    """The key of all draws of one step of one stream."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), STREAMS[stream]), step)


def row_keys(key: Key[Array, ""], ids: Int[Array, "B"], group_size: int) -> Key[Array, "B G"]:
    """A key per completion, from its example and its place in the group, never from its row."""
    fold = jax.random.fold_in
    members = jnp.arange(group_size)
    return jax.vmap(lambda i: jax.vmap(lambda m: fold(fold(key, i), m))(members))(ids)


Shape = tuple[int, int]
"""Rows of a group and columns of their caches."""


class Rows(NamedTuple):
    """What decoding carries of W completions of each of B prompts."""

    last: Int[Array, "B W"]  # tokens chosen last, not read yet
    live: Bool[Array, "B W"]
    keys: Key[Array, "B W"]
    most: Int[Array, "B W"]  # tokens after which each ends
    cache: tuple[KV, ...]  # one a layer
    found: Completions


def decode_shapes(completion_length: int, group_size: int) -> tuple[list[Shape], list[Shape]]:
    """The shapes that are decoded in, the cheapest first: while all completions are short, none or
    up to a quarter of the longest allowed, and then. The last of those holds everything."""
    whole = completion_length
    few = max(SHORTEST, math.ceil(whole / 16))
    # Rows fall away as columns come.
    short = (1, few), (3 / 4, 2 * few), (3 / 8, 4 * few), (1, whole / 4)
    long = (5 / 8, whole / 2), (1 / 2, whole * 3 / 4), (1 / 4, whole), (1, whole)
    shapes = {
        (math.ceil(share * group_size), min(max(SHORTEST, math.ceil(columns)), whole))
        for share, columns in (short + long if whole > 2 * SHORTEST else long[-1:])
    }
    ordered = sorted(shapes, key=lambda shape: (shape[0] * (shape[1] + A_ROW), shape))
    early = [shape for shape in ordered if 4 * shape[1] <= whole]
    return early, [shape for shape in ordered if shape not in early]


def make_sampler(
    policy: Policy,
    *,
    group_size: int,
    completion_length: int,
    stop_ids: tuple[int, ...],
    pad_id: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    greedy: bool = False,
) -> Callable[..., Completions]:
    """The jitted `sampler(params, prompts, key, most=None) -> Completions` of `group_size`
    completions a prompt.

    Log-probabilities are those of the distribution that was drawn from: after temperature and
    truncation. Greedy takes the likeliest token and reports its probability without truncation.
    `most` [B, G] ends each completion after so many tokens, from 1 to `completion_length`, if it
    has not ended before.
    """
    config = policy.config
    short, long = decode_shapes(completion_length, group_size)
    decoder = Policy(config, unrolled=True)
    stops = np.array(stop_ids, np.int32)

    def choose(logits: Float[Array, "V"], key: Key[Array, ""], position: Int[Array, ""]):
        logits = logits / temperature
        if greedy:
            token = jnp.argmax(logits).astype(jnp.int32)
            return token, jax.nn.log_softmax(logits)[token]
        bits = jax.random.bits(jax.random.fold_in(key, position), (2,), jnp.uint32)
        token, logp = draw(truncate(logits, top_k, top_p), bits)
        return token.astype(jnp.int32), logp

    choose_all = jax.vmap(jax.vmap(choose, in_axes=(0, 0, None)), in_axes=(0, 0, None))

    def goes_on(
        rows: Rows, token: Int[Array, "B W"], t: Int[Array, ""] | int
    ) -> Bool[Array, "B W"]:
        """Which of the rows that chose `token` at t choose another."""
        return by_rows(rows.live & ~jnp.isin(token, stops) & (t + 1 < rows.most))

    def fitting(shapes: list[Shape], t: Int[Array, ""], live: Bool[Array, "B W"]) -> Array:
        """Which shapes have a column for token t - 1 and a row for all that live."""
        widths, lengths = jnp.array(shapes).T
        return (t <= lengths) & (live.sum(-1).max() <= widths)

    def is_first(shapes: list[Shape], chosen: int, carry: tuple[Array, Rows]) -> Bool[Array, ""]:
        """Whether some row lives, and the chosen shape is the first to fit."""
        t, rows = carry
        fits = fitting(shapes, t, rows.live)
        return rows.live.any() & fits[chosen] & (jnp.argmax(fits) == chosen)

    def decode(
        shapes: list[Shape], chosen: int, leaves: Params, prefix: Prefix, t: Array, rows: Rows
    ) -> tuple[Int[Array, ""], Rows]:
        """Tokens t, t + 1, ... of all rows that live, while the chosen shape is the first to
        fit."""
        width, columns = shapes[chosen]

        def step(carry: tuple[Int[Array, ""], Rows]) -> tuple[Int[Array, ""], Rows]:
            t, rows = carry
            hidden, cache = decoder.apply(
                leaves, rows.last[..., None], prefix, rows.cache, t - 1, method="extend"
            )
            logits = decoder.apply(leaves, hidden, method="logits")[:, :, 0]
            # The vocabulary was split, the members are: each device draws for some of them.
            logits = constrain(logits, ("batch", "members", None))
            token, logp = by_rows(choose_all(logits, rows.keys, t))
            rows = rows._replace(cache=cache, found=with_token(rows, token, logp, t))
            return t + 1, rows._replace(last=token, live=goes_on(rows, token, t))

        members = jnp.argsort(by_rows(~rows.live), axis=-1, stable=True)[:, :width]
        few = take(rows, members, columns)
        # In the loop all completions lie along one axis, as attention reads them.
        few = with_cache(few, lambda x: constrain(x.reshape(-1, *x.shape[2:]), IN_LOOP))
        t, few = jax.lax.while_loop(functools.partial(is_first, shapes, chosen), step, (t, few))
        few = with_cache(few, lambda x: x.reshape(*members.shape, *x.shape[1:]))
        return t, put(rows, members, few)

    def decode_in(shapes: list[Shape], leaves: Params, prefix: Prefix, t: Array, rows: Rows):
        """As many tokens as fit some of these shapes, always in the first that fits."""

        def in_turn(carry: tuple[Array, Rows]) -> tuple[Array, Rows]:
            # Loops of one turn or none: through a `switch` XLA would carry a copy of every cache.
            for chosen in range(len(shapes)):
                turn = functools.partial(decode, shapes, chosen, leaves, prefix)
                holds = functools.partial(is_first, shapes, chosen)
                carry = jax.lax.while_loop(holds, lambda carry, turn=turn: turn(*carry), carry)
            return carry

        return jax.lax.while_loop(
            lambda carry: carry[1].live.any() & fitting(shapes, carry[0], carry[1].live).any(),
            in_turn,
            (t, rows),
        )

    @jax.jit
    def sampler(
        params: Params,
        prompts: Prompts,
        key: Key[Array, ""],
        most: Int[Array, "B G"] | None = None,
    ) -> Completions:
        params = in_compute_dtype(policy, params)
        hidden, prefix = policy.apply(
            {"params": params}, prompts.tokens, prompts.mask, method="prefill"
        )
        logits = policy.apply({"params": params}, hidden[:, None, None], method="logits")[:, 0, 0]
        logits = by_rows(logits)
        leaves, prefix = for_decoding(policy, params, prefix)
        shape = (len(prompts.ids), group_size)
        keys = row_keys(key, prompts.ids, group_size)
        choose_first = jax.vmap(jax.vmap(choose, in_axes=(None, 0, None)), in_axes=(0, 0, None))
        first, logp = choose_first(logits, keys, jnp.int32(0))
        columns, heads = completion_length, (*shape, config.num_kv_heads)
        first_columns = max((columns for _, columns in short), default=columns)
        empty = KV(
            jnp.zeros((*heads, config.head_dim, first_columns), config.compute_dtype),
            jnp.zeros((*heads, first_columns, config.head_dim), config.compute_dtype),
        )
        empty = jax.tree.map(lambda x: constrain(x, IN_GROUPS), empty)
        none = Completions(
            jnp.full((*shape, columns), pad_id, jnp.int32),
            jnp.zeros((*shape, columns), bool),
            jnp.zeros((*shape, columns), jnp.float32),
        )
        rows = Rows(
            last=first,
            live=by_rows(jnp.ones(shape, bool)),
            keys=keys,
            most=by_rows(jnp.full(shape, completion_length) if most is None else most),
            cache=(empty,) * config.num_layers,
            found=by_rows(none),
        )
        rows = rows._replace(found=with_token(rows, first, logp, 0))
        rows = rows._replace(live=goes_on(rows, first, 0))
        t, leaves = jnp.int32(1), {"params": leaves}
        if short:
            t, rows = decode_in(short, leaves, prefix, t, rows)
        return jax.lax.cond(
            rows.live.any(),
            lambda t, rows: decode_in(long, leaves, prefix, t, widened(rows, columns))[1].found,
            lambda t, rows: rows.found,
            *(t, rows),
        )

    return sampler


def with_token(
    rows: Rows, token: Int[Array, "B W"], logp: Float[Array, "B W"], t: Int[Array, ""] | int
) -> Completions:
    """What the rows have found, with the tokens chosen at t of those that live."""

    def write(into: Array, new: Array) -> Array:
        old = jax.lax.dynamic_index_in_dim(into, t, axis=-1, keepdims=False)
        new = jnp.where(rows.live, new, old)
        return jax.lax.dynamic_update_index_in_dim(into, new, t, axis=-1)

    return jax.tree.map(write, rows.found, Completions(token, rows.live, logp))


def with_cache(rows: Rows, change: Callable[[Array], Array]) -> Rows:
    """The rows with each array of their caches changed."""
    return rows._replace(cache=jax.tree.map(change, rows.cache))


def widened(rows: Rows, columns: int) -> Rows:
    """The rows with room in their caches for so many tokens."""

    def wide(x: Array, axis: int) -> Array:
        more = [(0, 0)] * x.ndim
        more[axis] = (0, columns - x.shape[axis])
        return jnp.pad(x, more)

    return rows._replace(
        cache=tuple(KV(wide(kv.keys, -1), wide(kv.values, -2)) for kv in rows.cache)
    )


def take(rows: Rows, members: Int[Array, "B W"], columns: int) -> Rows:
    """The rows of some members of each group, with the first columns of their caches."""
    cache = [KV(kv.keys[..., :columns], kv.values[..., :columns, :]) for kv in rows.cache]
    rows = rows._replace(cache=tuple(cache))
    if members.shape == rows.last.shape:
        return rows

    def some(tree: Any, members: Int[Array, "B W"]) -> Any:
        return jax.tree.map(lambda x: take_members(x, members), tree)

    cache = by_heads(some, rows.cache, members)
    return some(rows._replace(cache=()), members)._replace(cache=cache)


def put(into: Rows, members: Int[Array, "B W"], rows: Rows) -> Rows:
    """`into` with what `take` took of it, as it is now."""

    def back(into: Any, members: Int[Array, "B W"], rows: Any) -> Any:
        def one(into: Array, x: Array) -> Array:  # x [B, W, ...], shorter than `into` in some axis
            if members.shape == into.shape[:2]:
                return jax.lax.dynamic_update_slice(into, x, (0,) * into.ndim)
            begin = tuple(slice(0, size) for size in x.shape[2:])
            return jax.vmap(lambda into, at, x: into.at[(at, *begin)].set(x))(into, members, x)

        return jax.tree.map(one, into, rows)

    cache = by_heads(back, into.cache, members, rows.cache)
    last, live, found = back(
        (into.last, into.live, into.found), members, (rows.last, rows.live, rows.found)
    )
    return into._replace(last=last, live=live, cache=cache, found=found)


def by_heads(move: Callable[..., Any], cache: Any, members: Int[Array, "B W"], *more: Any) -> Any:
    """`move(cache, members, *more)` of caches in groups. Where their heads are split each device
    moves its own: XLA would bring all heads of some members to each, and send them back."""
    heads = IN_GROUPS.index("kv_heads")
    if split_among(("kv_heads",), (cache[0].keys.shape[heads],)) == 1:
        return move(cache, members, *more)
    return on_each_device(move, (heads, None, *[heads] * len(more)), cache, members, *more)
