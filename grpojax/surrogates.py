"""Surrogates: what is maximised in place of the expected advantage, for one group.

The ratio is π_θ / π_old of a token or of a whole completion; the surrogate bounds what it may gain.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpojax.kl import MAX_LOG_RATIO

Ratio = Literal["token", "sequence", "sequence_token", "geometric"]
Surrogate = Literal["clip", "cispo", "sapo", "policy_gradient"]


def log_ratios(
    logps: Float[Array, "G T"],
    old_logps: Float[Array, "G T"],
    mask: Bool[Array, "G T"],
    *,
    ratio: Literal["token", "sequence", "sequence_token"],
) -> Float[Array, "G T"]:
    """Log of the importance ratio of every token.

    token: log π_θ - log π_old. sequence: the mean of these over the completion (GSPO, 2507.18071,
    eq. 7). sequence_token: the same value with the token's own gradient (GSPO-token, eq. 14).
    """
    each = jnp.clip(logps - old_logps, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    if ratio == "token":
        return each
    mean = masked_mean(each, mask)
    if ratio == "sequence":
        return jnp.broadcast_to(mean, each.shape)
    return jax.lax.stop_gradient(mean) + logps - jax.lax.stop_gradient(logps)


def surrogates(
    logps: Float[Array, "G T"],
    old_logps: Float[Array, "G T"],
    advantages: Float[Array, "G T"],
    mask: Bool[Array, "G T"],
    *,
    ratio: Ratio,
    surrogate: Surrogate,
    clip_low: float,
    clip_high: float,
    dual_clip: float,
    tau_positive: float,
    tau_negative: float,
) -> tuple[Float[Array, "G T"], Bool[Array, "G T"], Bool[Array, "G T"]]:
    """The surrogate of every token, and where it was clipped, below and above.

    clip: min(ρA, clip(ρ, 1 - clip_low, 1 + clip_high) A) (PPO, 1707.06347), with one range for each
    side (DAPO, 2503.14476); where A < 0 the ratio counts for at most `dual_clip` if that is above 0
    (1912.09729), which is also the two-sided clipping of INTELLECT-2 (2505.07291). cispo: the
    clipped ratio, without its gradient, times A log π (2506.13585). sapo: 4/τ sigmoid(τ(ρ - 1)) A
    (2511.20347), τ by the sign of A. policy_gradient: A log π.

    The ratio "geometric" clips the logs of the tokens' ratios to [-clip_low, clip_high], on the
    side that "clip" would, and takes the exponential of their mean (GMPO, 2507.20673).
    """
    if ratio == "geometric":
        each = log_ratios(logps, old_logps, mask, ratio="token")
        low, high = clipped_sides(each, advantages, -clip_low, clip_high)
        bound = jnp.clip(each, -clip_low, clip_high)
        kept = jnp.where(low | high, bound, each)
        return jnp.exp(masked_mean(kept, mask)) * advantages, low, high
    rho = jnp.exp(log_ratios(logps, old_logps, mask, ratio=ratio))
    bound = jnp.clip(rho, 1 - clip_low, 1 + clip_high)
    if surrogate == "clip":
        low, high = clipped_sides(rho, advantages, 1 - clip_low, 1 + clip_high)
        # `where`, not `minimum`, which would split the gradient between its arguments at a tie.
        kept = jnp.where(low | high, bound, rho)
        if dual_clip > 0:
            capped = (advantages < 0) & (rho > dual_clip)
            kept, high = jnp.where(capped, dual_clip, kept), high | capped
        return kept * advantages, low, high
    never = jnp.zeros_like(mask)
    if surrogate == "cispo":
        weight = jax.lax.stop_gradient(bound)
        return weight * advantages * logps, rho < 1 - clip_low, rho > 1 + clip_high
    if surrogate == "sapo":
        tau = jnp.where(advantages > 0, tau_positive, tau_negative)
        return 4 / tau * jax.nn.sigmoid(tau * (rho - 1)) * advantages, never, never
    return advantages * logps, never, never


def clipped_sides(
    ratio: Float[Array, "G T"], advantages: Float[Array, "G T"], low: float, high: float
) -> tuple[Bool[Array, "G T"], Bool[Array, "G T"]]:
    """Where the minimum of PPO takes the bound: A < 0 below `low`, A > 0 above `high`."""
    return (advantages < 0) & (ratio < low), (advantages > 0) & (ratio > high)


def mismatch_weights(
    old_logps: Float[Array, "G T"],
    sampled_logps: Float[Array, "G T"],
    mask: Bool[Array, "G T"],
    *,
    mismatch: Literal["truncated", "masked"],
    level: Literal["token", "sequence"],
    low: float,
    high: float,
) -> Float[Array, "G T"]:
    """Weights w = π_old / π_sampler of the surrogate where the two are computed differently.

    Of every token, or the product over the completion. truncated: at most `high` (TIS). masked: 0
    outside [low, high] (IcePop). No gradient passes.
    """
    difference = jnp.where(mask, old_logps - sampled_logps, 0.0)
    if level == "sequence":
        difference = jnp.broadcast_to(difference.sum(-1, keepdims=True), difference.shape)
    weights = jnp.exp(jnp.clip(difference, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    if mismatch == "truncated":
        weights = jnp.minimum(weights, high)
    else:
        weights = jnp.where((weights >= low) & (weights <= high), weights, 0.0)
    return jax.lax.stop_gradient(weights)


def masked_mean(values: Float[Array, "G T"], mask: Bool[Array, "G T"]) -> Float[Array, "G 1"]:
    """The mean over a completion's tokens; 0 for a completion without any."""
    total = jnp.where(mask, values, 0.0).sum(-1, keepdims=True)
    return total / jnp.maximum(mask.sum(-1, keepdims=True), 1)
