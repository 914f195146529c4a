"""Advantages: what a completion was worth beside the others, in the ways that papers take it.

For one group where a group is all that counts, for the batch where its deviation or its mean does.
Every function leaves out completions that are not valid and gives them exactly 0.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Advantage = Literal[
    "group", "mean", "rloo", "opo", "batch", "gdpo", "reinforce_pp", "reinforce_pp_baseline"
]
WHITEN_EPSILON = 1e-8  # added to the variance, as in OpenRLHF and verl


def group_advantages(
    rewards: Float[Array, "G"],
    valid: Bool[Array, "G"],
    lengths: Float[Array, "G"] | None = None,
    *,
    advantage: Literal["group", "mean", "rloo", "opo"] = "group",
    ddof: int = 1,
    std_epsilon: float = 1e-6,
) -> Float[Array, "G"]:
    """Rewards of one group, relative to it.

    group: (r - mean) / (deviation + `std_epsilon`), the deviation with divisor G - `ddof`
    (DeepSeekMath, 2402.03300, 4.1.2). mean: r - mean (Dr. GRPO, 2503.20783). rloo: r - mean of the
    others (2402.14740). opo: r - mean weighted by `lengths` (2505.23585).

    Statistics are over valid completions only. Exactly 0 for an invalid completion, for a group of
    equal rewards (the extremes are compared: in float32 the deviation of equal numbers need not be
    0) and for a group with fewer than 2 valid completions.
    """
    count = valid.sum()
    given = jnp.where(valid, rewards, 0.0)
    shares = valid if lengths is None or advantage != "opo" else jnp.where(valid, lengths, 0.0)
    mean = (shares * given).sum() / jnp.maximum(shares.sum(), 1)
    centred = jnp.where(valid, rewards - mean, 0.0)
    if advantage == "group":
        deviation = jnp.sqrt((centred**2).sum() / jnp.maximum(count - ddof, 1))
        centred = centred / (deviation + std_epsilon)
    if advantage == "rloo":
        centred = centred * count / jnp.maximum(count - 1, 1)
    return jnp.where(has_spread(rewards, valid), centred, 0.0)


def has_spread(rewards: Float[Array, "G"], valid: Bool[Array, "G"]) -> Bool[Array, ""]:
    """Whether at least two valid completions differ in reward."""
    return (valid.sum() >= 2) & ~alike(rewards, valid)


def batch_advantages(
    rewards: Float[Array, "B G"],
    valid: Bool[Array, "B G"],
    mask: Bool[Array, "B G T"],
    by_name: Float[Array, "B G R"] | None = None,
    penalty: Float[Array, "B G T"] | None = None,
    *,
    advantage: Advantage,
    ddof: int,
    std_epsilon: float,
    reward_weights: tuple[float, ...] = (),
) -> Float[Array, "B G #T"]:
    """Advantages of a batch: one for each completion, or one for each token where `advantage` has
    that.

    group, mean, rloo, opo: see `group_advantages`. batch: r - group mean, over the deviation of all
    rewards (Lite PPO, 2508.08221). gdpo: each of the R rewards `by_name` normalised within its
    group as "group" does, summed by `reward_weights`, then normalised over the batch (2601.05242).
    reinforce_pp: what is left of the reward from each token on, whitened over the batch's tokens
    (2501.03262). reinforce_pp_baseline: r - group mean, whitened over the batch's tokens.

    `penalty` is subtracted from the rewards: token by token where advantages are by token, as its
    sum over the completion elsewhere. A group of equal rewards gets exactly 0, also where whitening
    would move it, but for reinforce_pp, which knows no groups.
    """
    if penalty is not None:
        penalty = jnp.where(mask, penalty, 0.0)
    if advantage == "reinforce_pp":
        total = jnp.where(valid, rewards, 0.0)[..., None]
        to_go = 0.0 if penalty is None else penalty[..., ::-1].cumsum(-1)[..., ::-1]
        return whitened(jnp.where(mask, total - to_go, 0.0), mask & valid[..., None])
    if penalty is not None:
        rewards = rewards - penalty.sum(-1)

    def relative(rewards, advantage):
        def one(rewards, valid, lengths):
            return group_advantages(
                rewards, valid, lengths, advantage=advantage, ddof=ddof, std_epsilon=std_epsilon
            )

        return jax.vmap(one)(rewards, valid, mask.sum(-1).astype(rewards.dtype))

    if advantage in ("group", "mean", "rloo", "opo"):
        return relative(rewards, advantage)[..., None]
    spread = jax.vmap(has_spread)(rewards, valid)[:, None]
    if advantage == "gdpo":
        each = jax.vmap(lambda rewards: relative(rewards, "group"), in_axes=-1, out_axes=-1)(
            by_name
        )
        total = each @ jnp.asarray(reward_weights, each.dtype)
        mean, deviation = moments(total, valid, ddof)
        spread = (total != 0).any(-1, keepdims=True)
        scaled = jnp.where(valid & spread, (total - mean) / (deviation + std_epsilon), 0.0)
        return scaled[..., None]
    centred = relative(rewards, "mean")
    if advantage == "batch":
        _, deviation = moments(jnp.where(valid, rewards, 0.0), valid, ddof)
        return (centred / (deviation + std_epsilon))[..., None]
    by_token = jnp.broadcast_to(centred[..., None], mask.shape)
    return jnp.where(spread[..., None], whitened(by_token, mask & valid[..., None]), 0.0)


def whitened(values: Float[Array, "*s"], counted: Bool[Array, "*s"]) -> Float[Array, "*s"]:
    """Values with mean 0 and variance 1 (ddof 1) over the counted ones; 0 elsewhere, and everywhere
    if they are all equal."""
    mean, deviation = moments(values, counted, 1)
    scaled = (values - mean) / jnp.sqrt(deviation**2 + WHITEN_EPSILON)
    return jnp.where(counted & ~alike(values, counted), scaled, 0.0)


def alike(values: Float[Array, "*s"], counted: Bool[Array, "*s"]) -> Bool[Array, ""]:
    """Whether the counted values are all equal. Their extremes say it exactly, which a deviation
    in float32 need not; a NaN is not alike."""
    highest = jnp.where(counted, values, -jnp.inf).max()
    return highest <= jnp.where(counted, values, jnp.inf).min()


def moments(
    values: Float[Array, "*s"], counted: Bool[Array, "*s"], ddof: int
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean and deviation of the counted values."""
    count = counted.sum()
    mean = jnp.where(counted, values, 0.0).sum() / jnp.maximum(count, 1)
    squares = jnp.where(counted, (values - mean) ** 2, 0.0).sum()
    return mean, jnp.sqrt(squares / jnp.maximum(count - ddof, 1))


def process_advantages(
    step_rewards: Float[Array, "G T"],
    ends: Bool[Array, "G T"],
    valid: Bool[Array, "G"],
    *,
    ddof: int,
    std_epsilon: float,
) -> Float[Array, "G T"]:
    """Process supervision: a token's advantage is the sum of the normalised rewards of the steps
    that end at it or later (DeepSeekMath, 2402.03300, 4.1.3).

    `step_rewards` holds a step's reward at its last token, where `ends` is True. Mean and deviation
    are over all steps of the group. Exactly 0 if they are all equal or fewer than two.
    """
    counted = ends & valid[:, None]
    mean, deviation = moments(jnp.where(counted, step_rewards, 0.0), counted, ddof)
    spread = has_spread(step_rewards.ravel(), counted.ravel())
    scaled = jnp.where(counted & spread, (step_rewards - mean) / (deviation + std_epsilon), 0.0)
    return scaled[:, ::-1].cumsum(-1)[:, ::-1]


def top_tokens(
    entropy: Float[Array, "B G T"], counted: Bool[Array, "B G T"], share: float
) -> Bool[Array, "B G T"]:
    """The `share` of the counted tokens with the highest entropy, ties with the last one included
    (2506.01939 keeps 0.2)."""
    ordered = jnp.sort(jnp.where(counted, entropy, -jnp.inf).ravel(), descending=True)
    kept = jnp.ceil(share * counted.sum()).astype(int)
    return counted & (entropy >= ordered[jnp.maximum(kept - 1, 0)])
