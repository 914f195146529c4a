"""Scoring: the log-probability of every completion token under any parameters.

The prompt is read once per group, and [.., T, V] is never held: the head works on a stretch of
tokens at a time and is recomputed in the backward pass.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grpojax.experts import Routing
from grpojax.model import Policy
from grpojax.sharding import by_row_shards, rows_each, split_among
from grpojax.slices import joined, members_of_slice, sliced, to_length
from grpojax.types import Params, Prefix, Prompts

CHUNK_ELEMENTS = 2**24  # most logits that a device holds at once: 64 MiB in float32


class Scored(NamedTuple):
    """Float32, past the end of a completion finite and without meaning."""

    logps: Float[Array, "B G T"]
    entropy: Float[Array, "B G T"]  # of the distribution that the token was drawn from
    routing: (
        Routing | None
    )  # of the tokens in `mask`, where the policy has experts and one is given


def prefill(policy: Policy, params: Params, prompts: Prompts) -> tuple[Float[Array, "B D"], Prefix]:
    """The prompts, read once: what predicts their completions' token 0, and their prefix."""
    return policy.apply({"params": params}, prompts.tokens, prompts.mask, method="prefill")


def score(
    policy: Policy,
    params: Params,
    read: tuple[Float[Array, "B D"], Prefix],
    tokens: Int[Array, "B G T"],
    temperature: float,
    mask: Bool[Array, "B G T"] | None = None,
    *,
    entropy_gradient: bool = False,
) -> Scored:
    """Log-probability and entropy of each token of `tokens` after its prompt, of which `read` is
    the `prefill`.

    Of the distribution with logits divided by `temperature`, as the sampler's. The entropy has a
    gradient only with `entropy_gradient`: it costs another pass over the vocabulary.
    """
    last, prefix = read
    hidden, routing = policy.apply(
        {"params": params}, tokens, prefix, counted=mask, method="extend"
    )
    first = jnp.broadcast_to(last[:, None, None], hidden[:, :, :1].shape)
    hidden = jnp.concatenate([first, hidden[:, :, :-1]], axis=2)  # token t is told by t - 1
    found = score_hidden(
        policy, params, hidden, tokens, temperature, entropy_gradient=entropy_gradient
    )
    return Scored(*found, routing)


def score_hidden(
    policy: Policy,
    params: Params,
    hidden: Float[Array, "B G T D"],
    tokens: Int[Array, "B G T"],
    temperature: float,
    *,
    entropy_gradient: bool,
) -> tuple[Float[Array, "B G T"], Float[Array, "B G T"]]:
    """Log-probabilities and entropies of `tokens`, a stretch of them at a time."""
    head = functools.partial(
        score_stretches, policy, temperature=temperature, entropy_gradient=entropy_gradient
    )
    name = "embed" if policy.config.tied_embeddings else "head"
    return by_row_shards(head, {name: params[name]}, hidden, tokens)


def score_stretches(
    policy: Policy,
    params: Params,
    hidden: Float[Array, "B G T D"],
    tokens: Int[Array, "B G T"],
    *,
    temperature: float,
    entropy_gradient: bool,
) -> tuple[Float[Array, "B G T"], Float[Array, "B G T"]]:
    """The same, on one device."""

    def head(hidden: Float[Array, "B G C D"], tokens: Int[Array, "B G C"]) -> tuple[Array, Array]:
        logits = policy.apply({"params": params}, hidden, method="logits") / temperature
        logps = jax.nn.log_softmax(logits)
        entropy = entropy_of(logps if entropy_gradient else jax.lax.stop_gradient(logps))
        return jnp.take_along_axis(logps, tokens[..., None], axis=-1)[..., 0], entropy

    batch, group, length = tokens.shape
    vocabulary = policy.config.vocab_size
    logits = batch * group * vocabulary  # of one token of each completion
    devices = split_among(("batch", "vocab"), (batch, vocabulary))
    chunk = max(1, CHUNK_ELEMENTS * devices // logits)
    if chunk >= length:
        return head(hidden, tokens)

    def split(x: Array) -> Array:  # [B, G, T, ...] -> [T / chunk, B, G, chunk, ...]
        x = jnp.pad(x, [(0, 0), (0, 0), (0, -length % chunk)] + [(0, 0)] * (x.ndim - 3))
        return jnp.moveaxis(x.reshape(batch, group, -1, chunk, *x.shape[3:]), 2, 0)

    parts = jax.lax.map(lambda part: jax.checkpoint(head)(*part), (split(hidden), split(tokens)))
    logps, entropy = (jnp.moveaxis(x, 0, 2).reshape(batch, group, -1)[..., :length] for x in parts)
    return logps, entropy


def entropy_of(logps: Float[Array, "*s V"]) -> Float[Array, "*s"]:
    """Entropy in nats of distributions given by their log-probabilities."""
    return -jnp.vecdot(jnp.exp(logps), logps, precision=jax.lax.Precision.HIGHEST)


def score_slices(
    policy: Policy,
    params: Params,
    prompts: Prompts,
    tokens: Int[Array, "B G T"],
    mask: Bool[Array, "B G T"],
    temperature: float,
) -> tuple[Float[Array, "B G T"], Float[Array, "B G T"]]:
    """Log-probabilities and entropies of the tokens in `mask`, 0 elsewhere, a slice of the members
    at a time."""
    read = prefill(policy, params, prompts)

    def score_slice(piece: tuple[Int[Array, "B W S"], Bool[Array, "B W S"]]):
        part, seen = piece
        found = score(policy, params, read, part, temperature)
        more = [(0, 0), (0, 0), (0, tokens.shape[-1] - part.shape[-1])]
        return tuple(jnp.pad(jnp.where(seen, x, 0.0), more) for x in found[:2])

    members = members_of_slice(rows_each(len(tokens)), *tokens.shape[1:])
    pieces, places = sliced((tokens, mask), mask.sum(-1), members)
    found = jax.lax.map(lambda piece: to_length(score_slice, piece, piece[1].sum(-1).max()), pieces)
    logps, entropy = (joined(x, places) for x in found)
    return logps, entropy


def make_scorer(policy: Policy, *, temperature: float) -> Callable[..., Float[Array, "B G T"]]:
    """The jitted `scorer(params, prompts, tokens, mask) -> logps` for a reference or an old
    policy."""
    return jax.jit(lambda *given: score_slices(policy, *given, temperature)[0])


def make_entropies(policy: Policy, *, temperature: float) -> Callable[..., Float[Array, "B G T"]]:
    """The jitted `entropies(params, prompts, tokens, mask)` of the distribution of every token."""
    return jax.jit(lambda *given: score_slices(policy, *given, temperature)[1])
