"""Weigher: advantages and token weights of a batch, from what its completions were judged to be.

All normalisation happens here, once, over the whole batch: the learner only sums.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpojax.advantages import batch_advantages, has_spread, process_advantages, top_tokens
from grpojax.config import GRPOConfig
from grpojax.grpo import token_weights
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
            penalty = None
            if config.kl == "k1_reward" and evidence.ref_logps is not None:
                penalty = config.beta * (evidence.sampled_logps - evidence.ref_logps)
            advantages = batch_advantages(
                evidence.rewards,
                valid,
                mask,
                evidence.by_name,
                penalty,
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
