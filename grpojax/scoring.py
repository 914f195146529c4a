"""Scoring: the log-probability of every completion token under any parameters.

The prompt is read once per group, and [.., T, V] is never held: the head works on a stretch of
tokens at a time and is recomputed in the backward pass.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grpojax.experts import Routing
from grpojax.model import Policy
from grpojax.types import Params, Prompts

CHUNK_ELEMENTS = 2**24  # most logits held at once: 64 MiB in float32


class Scored(NamedTuple):
    """Float32, past the end of a completion finite and without meaning."""

    logps: Float[Array, "B G T"]
    entropy: Float[Array, "B G T"]  # of the distribution that the token was drawn from
    routing: (
        Routing | None
    )  # of the tokens in `mask`, where the policy has experts and one is given


def score(
    policy: Policy,
    params: Params,
    prompts: Prompts,
    tokens: Int[Array, "B G T"],
    temperature: float,
    mask: Bool[Array, "B G T"] | None = None,
    *,
    entropy_gradient: bool = False,
) -> Scored:
    """Log-probability and entropy of each token of `tokens` after its prompt.

    Of the distribution with logits divided by `temperature`, as the sampler's. The entropy has a
    gradient only with `entropy_gradient`: it costs another pass over the vocabulary.
    """
    variables = {"params": params}
    last, prefix = policy.apply(variables, prompts.tokens, prompts.mask, method="prefill")
    hidden, routing = policy.apply(variables, tokens, prefix, counted=mask, method="extend")
    first = jnp.broadcast_to(last[:, None, None], hidden[:, :, :1].shape)
    hidden = jnp.concatenate([first, hidden[:, :, :-1]], axis=2)  # token t is predicted from t - 1

    def head(hidden: Float[Array, "B G C D"], tokens: Int[Array, "B G C"]) -> tuple[Array, Array]:
        logits = policy.apply(variables, hidden, method="logits") / temperature
        logps = jax.nn.log_softmax(logits)
        entropy = entropy_of(logps if entropy_gradient else jax.lax.stop_gradient(logps))
        return jnp.take_along_axis(logps, tokens[..., None], axis=-1)[..., 0], entropy

    batch, group, length = tokens.shape
    chunk = max(1, CHUNK_ELEMENTS // (batch * group * policy.config.vocab_size))
    if chunk >= length:
        return Scored(*head(hidden, tokens), routing)

    def split(x: Array) -> Array:  # [B, G, T, ...] -> [T / chunk, B, G, chunk, ...]
        x = jnp.pad(x, [(0, 0), (0, 0), (0, -length % chunk)] + [(0, 0)] * (x.ndim - 3))
        return jnp.moveaxis(x.reshape(batch, group, -1, chunk, *x.shape[3:]), 2, 0)

    parts = jax.lax.map(lambda part: jax.checkpoint(head)(*part), (split(hidden), split(tokens)))
    whole = (jnp.moveaxis(x, 0, 2).reshape(batch, group, -1)[..., :length] for x in parts)
    return Scored(*whole, routing)


def entropy_of(logps: Float[Array, "*s V"]) -> Float[Array, "*s"]:
    """Entropy in nats of distributions given by their log-probabilities."""
    return -(jnp.exp(logps) * logps).sum(-1)


def make_scorer(
    policy: Policy, *, temperature: float
) -> Callable[[Params, Prompts, Array], Float[Array, "B G T"]]:
    """The jitted `scorer(params, prompts, tokens) -> logps` for a reference or an old policy."""

    @jax.jit
    def scorer(params: Params, prompts: Prompts, tokens: Int[Array, "B G T"]) -> Array:
        return score(policy, params, prompts, tokens, temperature).logps

    return scorer


def make_entropies(
    policy: Policy, *, temperature: float
) -> Callable[[Params, Prompts, Array], Float[Array, "B G T"]]:
    """The jitted `entropies(params, prompts, tokens)` of the distribution of every token."""

    @jax.jit
    def entropies(params: Params, prompts: Prompts, tokens: Int[Array, "B G T"]) -> Array:
        return score(policy, params, prompts, tokens, temperature).entropy

    return entropies
