"""Sampling: read each prompt once, then decode its G completions in one jitted loop that ends with
them.

Rows are left-padded, so the newest token of every row stands in the same column of the cache and is
written with one slice. What a row draws is a function of seed, stream, step, example, member of the
group and position alone.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt32

from grpojax.model import Policy, unstack
from grpojax.types import KV, Completions, Params, Prompts

STREAMS = {"train": 0, "evaluate": 1, "sample": 2, "redraw": 3}
BLOCK = 256  # tokens in a block of the two-level inverse CDF
BELOW_ONE = 1 - 2**-24  # the largest float32 below 1


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


def uniform(bits: UInt32[Array, "*s"]) -> Float[Array, "*s"]:
    """32 random bits as float32 in [0, 1): rounding must not reach 1."""
    return jnp.minimum(bits.astype(jnp.float32) * 2.0**-32, BELOW_ONE)


def invert(mass: Float[Array, "n"], u: Float[Array, ""]) -> Int[Array, ""]:
    """First index where the cumulative `mass` passes u of its total; never one of mass 0."""
    cumulative = jnp.cumsum(mass)
    # A parallel sum need not be monotone, so the total is that of an index which can be chosen.
    total = jnp.where(mass > 0, cumulative, 0.0).max()
    return jnp.argmax((cumulative > u * total) & (mass > 0))


def draw(
    logits: Float[Array, "V"], bits: UInt32[Array, "2"]
) -> tuple[Int[Array, ""], Float[Array, ""]]:
    """A token of softmax(`logits`) and its log-probability, by inverse CDF in two levels.

    32 of the bits choose a block of 256 tokens, 32 the token in it: one draw a row, where the usual
    Gumbel trick needs one for every entry of the vocabulary.
    """
    peak = logits.max()
    padded = jnp.pad(logits - peak, (0, -logits.size % BLOCK), constant_values=-jnp.inf)
    mass = jnp.exp(padded).reshape(-1, BLOCK)
    blocks = mass.sum(-1)
    u = uniform(bits)
    block = invert(blocks, u[0])
    token = block * BLOCK + invert(mass[block], u[1])
    return token, logits[token] - peak - jnp.log(blocks.sum())


def truncate(logits: Float[Array, "V"], top_k: int, top_p: float) -> Float[Array, "V"]:
    """Logits with -inf outside the `top_k` likeliest tokens (0: all), then outside the likeliest
    that hold `top_p` of what is left (1: all). Tokens that tie with the last one kept are kept."""
    if 0 < top_k < logits.size:
        logits = jnp.where(logits >= jax.lax.top_k(logits, top_k)[0][-1], logits, -jnp.inf)
    if top_p < 1:
        ordered = jnp.sort(logits, descending=True)
        probabilities = jax.nn.softmax(ordered)
        before = jnp.cumsum(probabilities) - probabilities
        least = jnp.where(before < top_p, ordered, jnp.inf).min()
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    return logits


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
) -> Callable[[Params, Prompts, Key[Array, ""]], Completions]:
    """The jitted `sampler(params, prompts, key) -> Completions` of `group_size` completions a
    prompt.

    Log-probabilities are those of the distribution that was drawn from: after temperature and
    truncation. Greedy takes the likeliest token and reports its probability without truncation.
    """
    layers, config = policy.config.num_layers, policy.config
    decoder = Policy(config, unrolled=True)
    stops = jnp.array(stop_ids, jnp.int32)

    def choose(logits: Float[Array, "V"], key: Key[Array, ""], position: Int[Array, ""]):
        logits = logits / temperature
        if greedy:
            token = jnp.argmax(logits)
            return token, jax.nn.log_softmax(logits)[token]
        bits = jax.random.bits(jax.random.fold_in(key, position), (2,), jnp.uint32)
        return draw(truncate(logits, top_k, top_p), bits)

    choose_all = jax.vmap(jax.vmap(choose, in_axes=(0, 0, None)), in_axes=(0, 0, None))

    @jax.jit
    def sampler(params: Params, prompts: Prompts, key: Key[Array, ""]) -> Completions:
        last, prefix = policy.apply(
            {"params": params}, prompts.tokens, prompts.mask, method="prefill"
        )
        leaves, prefix = unstack(params, prefix, layers)
        rows = (last.shape[0], group_size)
        keys = row_keys(key, prompts.ids, group_size)
        heads, size = config.num_kv_heads, config.head_dim
        cache = tuple(
            KV(
                jnp.zeros((*rows, heads, size, completion_length), config.compute_dtype),
                jnp.zeros((*rows, heads, completion_length, size), config.compute_dtype),
            )
            for _ in range(layers)
        )

        def decode(carry):
            t, hidden, cache, live, tokens, mask, logps = carry
            logits = decoder.apply({"params": leaves}, hidden, method="logits")[:, :, 0]
            token, logp = choose_all(logits, keys, t)
            token = jnp.where(live, token, pad_id).astype(jnp.int32)
            tokens = tokens.at[t].set(token)
            mask = mask.at[t].set(live)
            logps = logps.at[t].set(jnp.where(live, logp, 0.0))
            hidden, cache = decoder.apply(
                {"params": leaves}, token[..., None], prefix, cache, t, method="extend"
            )
            return t + 1, hidden, cache, live & ~jnp.isin(token, stops), tokens, mask, logps

        history = (completion_length, *rows)  # time first: a step writes one contiguous row
        carry = (
            jnp.int32(0),
            jnp.broadcast_to(last[:, None, None], (*rows, 1, last.shape[-1])),
            cache,
            jnp.ones(rows, bool),
            jnp.full(history, pad_id, jnp.int32),
            jnp.zeros(history, bool),
            jnp.zeros(history, jnp.float32),
        )
        *_, tokens, mask, logps = jax.lax.while_loop(
            lambda carry: (carry[0] < completion_length) & carry[3].any(), decode, carry
        )
        return Completions(*(jnp.moveaxis(x, 0, -1) for x in (tokens, mask, logps)))

    return sampler
