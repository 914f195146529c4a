"""Scoring: the log-probability of every completion token under any parameters.

The prompt is read once per group, and [.., T, V] is never held: the head works on a stretch of
tokens at a time and is recomputed in the backward pass.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grpojax.model import Policy
from grpojax.types import Params, Prompts

CHUNK_ELEMENTS = 2**24  # most logits held at once: 64 MiB in float32


def score(
    policy: Policy,
    params: Params,
    prompts: Prompts,
    tokens: Int[Array, "B G T"],
    temperature: float,
) -> tuple[Float[Array, "B G T"], Float[Array, "B G T"]]:
    """Log-probability of each token of `tokens` after its prompt, and the entropy it was drawn
    with.

    Float32, of the distribution with logits divided by `temperature`, as the sampler's. The entropy
    carries no gradient. Entries past the end of a completion are finite and mean nothing.
    """
    variables = {"params": params}
    last, prefix = policy.apply(variables, prompts.tokens, prompts.mask, method="prefill")
    hidden, _ = policy.apply(variables, tokens, prefix, method="extend")
    first = jnp.broadcast_to(last[:, None, None], hidden[:, :, :1].shape)
    hidden = jnp.concatenate([first, hidden[:, :, :-1]], axis=2)  # token t is predicted from t - 1

    def head(hidden: Float[Array, "B G C D"], tokens: Int[Array, "B G C"]) -> tuple[Array, Array]:
        logits = policy.apply(variables, hidden, method="logits") / temperature
        logps = jax.nn.log_softmax(logits)
        fixed = jax.lax.stop_gradient(logps)
        entropy = -(jnp.exp(fixed) * fixed).sum(-1)
        return jnp.take_along_axis(logps, tokens[..., None], axis=-1)[..., 0], entropy

    batch, group, length = tokens.shape
    chunk = max(1, CHUNK_ELEMENTS // (batch * group * policy.config.vocab_size))
    if chunk >= length:
        return head(hidden, tokens)

    def split(x: Array) -> Array:  # [B, G, T, ...] -> [T / chunk, B, G, chunk, ...]
        x = jnp.pad(x, [(0, 0), (0, 0), (0, -length % chunk)] + [(0, 0)] * (x.ndim - 3))
        return jnp.moveaxis(x.reshape(batch, group, -1, chunk, *x.shape[3:]), 2, 0)

    parts = jax.lax.map(lambda part: jax.checkpoint(head)(*part), (split(hidden), split(tokens)))
    return jax.tree.map(
        lambda x: jnp.moveaxis(x, 0, 2).reshape(batch, group, -1)[..., :length], parts
    )


def make_scorer(
    policy: Policy, *, temperature: float
) -> Callable[[Params, Prompts, Array], Float[Array, "B G T"]]:
    """The jitted `scorer(params, prompts, tokens) -> logps` for a reference or an old policy."""

    @jax.jit
    def scorer(params: Params, prompts: Prompts, tokens: Int[Array, "B G T"]) -> Array:
        return score(policy, params, prompts, tokens, temperature)[0]

    return scorer
