"""The GRPO objective, written for one group; the caller lifts it over the batch with `jax.vmap`.

DeepSeekMath (2402.03300), equations 3 and 4. The loss of a batch is sum(weights * token loss):
every normalisation is in the weights, which are made once over the whole batch, so that
microbatches, padding and meshes cannot change it. Group of G completions, T tokens each.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# e^20 is far beyond any useful ratio; clamping before `exp` keeps value and gradient finite.
MAX_LOG_RATIO = 20.0


def group_advantages(
    rewards: Float[Array, "G"],
    valid: Bool[Array, "G"],
    *,
    advantage: Literal["group", "mean"] = "group",
    std_epsilon: float = 1e-6,
) -> Float[Array, "G"]:
    """Rewards relative to their group: r - mean, over the deviation (ddof 1) + `std_epsilon` if
    "group".

    Statistics are over valid completions only. Exactly 0 for an invalid completion, for a group of
    equal rewards (the extremes are compared: in float32 the deviation of equal numbers need not be
    0) and for a group with fewer than 2 valid completions.
    """
    count = valid.sum()
    mean = jnp.where(valid, rewards, 0.0).sum() / jnp.maximum(count, 1)
    centred = jnp.where(valid, rewards - mean, 0.0)
    highest = jnp.where(valid, rewards, -jnp.inf).max()
    lowest = jnp.where(valid, rewards, jnp.inf).min()
    if advantage == "group":
        deviation = jnp.sqrt((centred**2).sum() / jnp.maximum(count - 1, 1))
        centred = centred / (deviation + std_epsilon)
    return jnp.where((count >= 2) & (highest > lowest), centred, 0.0)


def token_weights(
    mask: Bool[Array, "B G T"],
    valid: Bool[Array, "B G"],
    *,
    reduction: Literal["sequence_mean", "token_mean", "constant"],
    completion_length: int,
) -> Float[Array, "B G T"]:
    """Weight of every token in the loss of the whole batch; 0 outside the mask and for invalid
    completions.

    sequence_mean: 1 / (completions * tokens of its completion) (eq. 3). token_mean: 1 / tokens of
    the batch (DAPO, 2503.14476). constant: 1 / (completions * `completion_length`) (Dr. GRPO,
    2503.20783).
    """
    counted = mask & valid[..., None]
    lengths = counted.sum(-1, keepdims=True)
    completions = (lengths > 0).sum()
    divisor = {
        "sequence_mean": completions * lengths,
        "token_mean": lengths.sum(),
        "constant": completions * completion_length,
    }[reduction]
    return counted / jnp.maximum(divisor, 1).astype(jnp.result_type(float))


def token_losses(
    logps: Float[Array, "G T"],
    old_logps: Float[Array, "G T"] | None,
    ref_logps: Float[Array, "G T"] | None,
    advantages: Float[Array, "G"],
    mask: Bool[Array, "G T"],
    *,
    beta: float,
    clip_low: float,
    clip_high: float,
) -> tuple[Float[Array, "G T"], dict[str, Float[Array, "G T"]]]:
    """Loss of every token of a group: the clipped surrogate, negated, plus `beta` times the KL
    estimate.

    `old_logps` None means on-policy: the ratio is exactly 1 and carries the gradient. `ref_logps`
    None leaves the KL out. Tokens outside `mask` give 0 whatever stands there, NaN too.

    Returns:
      the losses, and per token what is logged of them: kl, and 1.0 where clipping removed the
      gradient (low: advantage < 0 and ratio < 1 - clip_low; high: advantage > 0 and ratio > 1 +
      clip_high).
    """
    logps = jnp.where(mask, logps, 0.0)
    old = jax.lax.stop_gradient(logps if old_logps is None else jnp.where(mask, old_logps, 0.0))
    ratio = jnp.exp(jnp.clip(logps - old, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    advantage = advantages[:, None]
    free, bound = ratio * advantage, jnp.clip(ratio, 1 - clip_low, 1 + clip_high) * advantage
    # `where`, not `minimum`: at a tie the latter would split the gradient between its arguments.
    losses = -jnp.where(free <= bound, free, bound)
    kl = jnp.zeros_like(logps)
    if ref_logps is not None:
        kl = k3(logps, jnp.where(mask, ref_logps, 0.0))
        losses = losses + beta * kl
    clipped = {
        "clip_ratio/low_mean": (advantage < 0) & (ratio < 1 - clip_low),
        "clip_ratio/high_mean": (advantage > 0) & (ratio > 1 + clip_high),
    }
    clipped["clip_ratio/region_mean"] = (
        clipped["clip_ratio/low_mean"] | clipped["clip_ratio/high_mean"]
    )
    logged = {"kl": kl} | {name: hit.astype(logps.dtype) for name, hit in clipped.items()}
    return jnp.where(mask, losses, 0.0), jax.tree.map(lambda x: jnp.where(mask, x, 0.0), logged)


def k3(logps: Float[Array, "*s"], ref_logps: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Schulman's estimate of KL(π_θ || π_ref) from tokens of π_θ: π_ref/π_θ - log(π_ref/π_θ) - 1
    (eq. 4).

    Never negative; `expm1` keeps it so where the two policies nearly agree.
    """
    difference = jnp.clip(ref_logps - logps, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    return jnp.expm1(difference) - difference
