"""Weigher: advantages and token weights of a batch, from what its completions were judged to be.

All normalisation happens here, once, over the whole batch: the learner only sums.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpojax.advantages import (
    batch_advantages,
    has_spread,
    process_advantages,
    top_tokens,
    whitened,
)
from grpojax.config import GRPOConfig, PPOConfig
from grpojax.grpo import token_weights
from grpojax.ppo import generalized_advantages
from grpojax.types import Evidence


def make_weigher(
    config: GRPOConfig, *, completion_length: int, reward_weights: tuple[float, ...] = ()
) -> Callable[[Evidence, Array], tuple[Float[Array, "B G #T"], Float[Array, "B G T"]]]:
    """The jitted `weigher(evidence, mask) -> (advantages, weights)` of the whole batch."""

    @jax.jit
    def weigher(evidence: Evidence, mask: Bool[Array, "B G T"]):
        valid, scaling = evidence.valid, {"ddof": config.deviation_ddof}
        scaling["std_epsilon"] = config.std_epsilon
        if config.supervision == "process":
            by_process = functools.partial(process_advantages, **scaling)
            advantages = jax.vmap(by_process)(evidence.step_rewards, evidence.step_ends, valid)
        else:
            advantages = batch_advantages(
                evidence.rewards,
                valid,
                mask,
                evidence.by_name,
                kl_penalty(config, evidence),
                advantage=config.advantage,
                reward_weights=reward_weights,
                **scaling,
            )
        counted = valid
        if config.overlong == "mask":
            counted &= ~evidence.cut_off
        if config.zero_variance == "drop":
            counted &= jax.vmap(has_spread)(evidence.rewards, valid)[:, None]
        if config.top_entropy < 1:
            trained = mask & counted[..., None]
            kept = top_tokens(evidence.entropy, trained, config.top_entropy)
            advantages = jnp.where(kept, advantages, 0.0)
        weights = token_weights(
            mask, counted, reduction=config.reduction, completion_length=completion_length
        )
        return advantages, weights

    return weigher


def make_ppo_weigher(
    config: GRPOConfig, ppo: PPOConfig, *, completion_length: int
) -> Callable[..., tuple[Float[Array, "B G T"], Float[Array, "B G T"], Float[Array, "B G T"]]]:
    """The jitted `weigher(evidence, values, mask) -> (advantages, weights, returns)` of a batch.

    The reward stands at a completion's last token, the KL at each where the reward carries it.
    Advantages are whitened over the batch's valid tokens; returns are what the critic learns.
    """
    estimate = functools.partial(generalized_advantages, gamma=ppo.gamma, lam=ppo.lam)

    @jax.jit
    def weigher(evidence: Evidence, values: Float[Array, "B G T"], mask: Bool[Array, "B G T"]):
        rewards = jnp.where(evidence.valid, evidence.rewards, 0.0)[..., None]
        last = jnp.arange(mask.shape[-1]) == mask.sum(-1, keepdims=True) - 1
        by_token = jnp.where(last, rewards, 0.0)
        if (penalty := kl_penalty(config, evidence)) is not None:
            by_token -= penalty
        advantages, returns = jax.vmap(jax.vmap(estimate))(by_token, values, mask)
        counted = evidence.valid
        if config.overlong == "mask":
            counted &= ~evidence.cut_off
        weights = token_weights(
            mask, counted, reduction=config.reduction, completion_length=completion_length
        )
        return whitened(advantages, mask & evidence.valid[..., None]), weights, returns

    return weigher


def kl_penalty(config: GRPOConfig, evidence: Evidence) -> Float[Array, "B G T"] | None:
    """β times k1 of every token, where the reward carries the KL."""
    if config.kl != "k1_reward" or evidence.ref_logps is None:
        return None
    return config.beta * (evidence.sampled_logps - evidence.ref_logps)
