"""The GRPO objective, written for one group; the caller lifts it over the batch with `jax.vmap`.

DeepSeekMath (2402.03300), equations 3 and 4, with the choices of later papers: `surrogates.py`,
`kl.py` and `advantages.py` hold them. The loss of a batch is sum(weights * token loss): every
normalisation is in the weights, which are made once over the whole batch, so that microbatches,
padding and meshes cannot change it. Group of G completions, T tokens each.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpojax.kl import k3, kl_losses
from grpojax.surrogates import Ratio, Surrogate, mismatch_weights, surrogates

Reduction = Literal["sequence_mean", "token_mean", "constant", "prompt_mean", "sequence_sum"]


def token_weights(
    mask: Bool[Array, "B G T"],
    valid: Bool[Array, "B G"],
    *,
    reduction: Reduction,
    completion_length: int,
) -> Float[Array, "B G T"]:
    """Weight of every token in the loss of the whole batch; 0 outside the mask and for completions
    that are not `valid`.

    sequence_mean: 1 / (completions * tokens of its completion) (eq. 3). token_mean: 1 / tokens of
    the batch (DAPO, 2503.14476). constant: 1 / (completions * `completion_length`) (Dr. GRPO,
    2503.20783). prompt_mean: 1 / (prompts * tokens of its prompt's completions) (ScaleRL,
    2510.13786). sequence_sum: 1 / completions (RLOO, 2402.14740). Only valid completions, and
    prompts that have one, are counted.
    """
    counted = mask & valid[..., None]
    lengths = counted.sum(-1, keepdims=True)
    completions = (lengths > 0).sum()
    of_prompt = lengths.sum(1, keepdims=True)
    divisor = {
        "sequence_mean": completions * lengths,
        "token_mean": lengths.sum(),
        "constant": completions * completion_length,
        "prompt_mean": (of_prompt > 0).sum() * of_prompt,
        "sequence_sum": completions,
    }[reduction]
    return counted / jnp.maximum(divisor, 1).astype(jnp.result_type(float))


def token_losses(
    logps: Float[Array, "G T"],
    old_logps: Float[Array, "G T"] | None,
    ref_logps: Float[Array, "G T"] | None,
    advantages: Float[Array, "G #T"],
    mask: Bool[Array, "G T"],
    sampled_logps: Float[Array, "G T"] | None = None,
    entropy: Float[Array, "G T"] | None = None,
    *,
    beta: float,
    clip_low: float,
    clip_high: float,
    ratio: Ratio = "token",
    surrogate: Surrogate = "clip",
    dual_clip: float = 0.0,
    tau_positive: float = 1.0,
    tau_negative: float = 1.05,
    kl: Literal["k3", "k3_weighted", "k2", "k1_reward"] = "k3",
    mismatch: Literal["none", "truncated", "masked"] = "none",
    mismatch_level: Literal["token", "sequence"] = "token",
    mismatch_low: float = 0.5,
    mismatch_high: float = 2.0,
    entropy_weight: float = 0.0,
) -> tuple[Float[Array, "G T"], dict[str, Float[Array, "G T"]]]:
    """Loss of every token of a group: the surrogate, negated, plus `beta` times the KL, minus
    `entropy_weight` times the entropy.

    `old_logps` None means on-policy: the ratio is exactly 1 and carries the gradient. `ref_logps`
    None leaves the KL out. `sampled_logps`, the sampler's, are read where a `mismatch` of it with
    π_old is weighed; `entropy` where `entropy_weight` is not 0. Tokens outside `mask` give 0
    whatever stands there, NaN too. See `surrogates`, `kl_losses` and `mismatch_weights`.

    Returns:
      the losses, and per token what is logged of them: kl (k3 whatever is in the loss), and 1.0
      where clipping removed gradient (clip_ratio/low_mean: advantage < 0 and ratio < 1 - clip_low;
      high_mean: advantage > 0 and ratio > 1 + clip_high, or the dual clip; region_mean: either).
    """

    def kept(values):
        return jnp.where(mask, values, 0.0)

    logps, advantages = kept(logps), kept(jnp.broadcast_to(advantages, mask.shape))
    old = jax.lax.stop_gradient(logps if old_logps is None else kept(old_logps))
    if mismatch != "none":
        advantages = advantages * mismatch_weights(
            old,
            kept(sampled_logps),
            mask,
            mismatch=mismatch,
            level=mismatch_level,
            low=mismatch_low,
            high=mismatch_high,
        )
    gained, low, high = surrogates(
        logps,
        old,
        advantages,
        mask,
        ratio=ratio,
        surrogate=surrogate,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        tau_positive=tau_positive,
        tau_negative=tau_negative,
    )
    losses, divergence = -gained, jnp.zeros_like(logps)
    if ref_logps is not None:
        ref_logps = kept(ref_logps)
        divergence = k3(logps, ref_logps)
        losses = losses + beta * kl_losses(logps, old, ref_logps, kl=kl)
    if entropy_weight:
        losses = losses - entropy_weight * kept(entropy)
    clipped = {"low_mean": low, "high_mean": high, "region_mean": low | high}
    logged = {"kl": divergence}
    logged |= {f"clip_ratio/{side}": hit.astype(logps.dtype) for side, hit in clipped.items()}
    return kept(losses), jax.tree.map(kept, logged)
