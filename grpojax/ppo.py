"""What PPO has beside GRPO's objective: generalized advantages and the value loss, each written for
one completion.

Proximal Policy Optimization (1707.06347) with generalized advantage estimation (1506.02438). Value
t is of the state before token t is chosen, T tokens; after the last one there is nothing to come.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpojax.advantages import alike


def generalized_advantages(
    rewards: Float[Array, "T"],
    values: Float[Array, "T"],
    mask: Bool[Array, "T"],
    *,
    gamma: float,
    lam: float,
) -> tuple[Float[Array, "T"], Float[Array, "T"]]:
    """Advantages A_t = δ_t + γλ A_{t+1}, where δ_t = r_t + γ V_{t+1} - V_t, and returns A_t + V_t.

    1506.02438, equation 16. `mask` is True on the first tokens of the completion and False after
    its end, where advantages, returns and the value of the next state are 0, whatever stands there.
    γ (discount) and λ (0: one step ahead, 1: to the end) are in [0, 1].
    """
    rewards, values = (jnp.where(mask, x, 0.0) for x in (rewards, values))
    following = jnp.append(values[1:], 0.0)
    errors = rewards + gamma * following - values

    def step(later: Array, error: Array) -> tuple[Array, Array]:
        advantage = error + gamma * lam * later
        return advantage, advantage

    _, advantages = jax.lax.scan(step, jnp.zeros_like(errors[0]), errors, reverse=True)
    return advantages, advantages + values


def value_losses(
    values: Float[Array, "T"],
    old_values: Float[Array, "T"],
    returns: Float[Array, "T"],
    mask: Bool[Array, "T"],
    *,
    clip: float,
) -> tuple[Float[Array, "T"], Float[Array, "T"]]:
    """Half the squared error of every value, or of the value clipped to within `clip` of the old
    one, whichever is larger; and 1.0 where that clipping removed the gradient.

    The convention of OpenAI's code for PPO, which the paper does not have (2005.12729 discusses
    it); an infinite `clip` gives the plain squared error. Tokens outside `mask` give 0 whatever
    stands there, NaN too.
    """
    values, old, returns = (jnp.where(mask, x, 0.0) for x in (values, old_values, returns))
    free = jnp.square(values - returns)
    bound = jnp.square(jnp.clip(values, old - clip, old + clip) - returns)
    # `where`, not `maximum`: at a tie the latter would split the gradient between its arguments.
    clipped = bound > free
    return 0.5 * jnp.where(clipped, bound, free), clipped.astype(values.dtype)


def explained_variance(
    values: Float[Array, "*s"], returns: Float[Array, "*s"], mask: Bool[Array, "*s"]
) -> Float[Array, ""]:
    """1 - var(returns - values) / var(returns) over the tokens in `mask`: 1 is perfect, 0 no better
    than a constant, below 0 worse. 0 where all returns are equal."""

    def squares(x: Array) -> Array:
        mean = jnp.where(mask, x, 0.0).sum() / jnp.maximum(mask.sum(), 1)
        return jnp.square(jnp.where(mask, x - mean, 0.0)).sum()

    explained = 1 - squares(returns - values) / squares(returns)
    return jnp.where(alike(returns, mask), 0.0, explained)
