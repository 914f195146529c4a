"""KL: estimates of KL(π_θ || π_ref) from tokens of π_θ, by their log-probabilities alone.

With r = π_ref / π_θ: k1 = -log r, k2 = (log r)² / 2, k3 = r - 1 - log r (Schulman). Which of them
has the gradient of the KL, once it stands in a loss, differs from which has its value.
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

# e^20 is far beyond any useful ratio; clamping before `exp` keeps value and gradient finite.
MAX_LOG_RATIO = 20.0


def k3(logps: Float[Array, "*s"], ref_logps: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """π_ref/π_θ - log(π_ref/π_θ) - 1 (DeepSeekMath, 2402.03300, eq. 4).

    Never negative; `expm1` keeps it so where the two policies nearly agree.
    """
    difference = jnp.clip(ref_logps - logps, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    return jnp.expm1(difference) - difference


def kl_losses(
    logps: Float[Array, "*s"],
    old_logps: Float[Array, "*s"],
    ref_logps: Float[Array, "*s"],
    *,
    kl: Literal["k3", "k3_weighted", "k2", "k1_reward"],
) -> Float[Array, "*s"]:
    """What the KL adds to the loss of a token, for β = 1.

    k3: as DeepSeekMath; the expectation of its gradient is that of KL(π_ref || π_θ). k3_weighted:
    the ratio π_θ / π_old times k3 (`old_logps` must carry no gradient), with the exact gradient of
    KL(π_θ || π_ref), off-policy too (DeepSeek-V3.2, 2512.02556). k2: the exact gradient, on-policy.
    k1_reward: nothing, as the reward carries it.
    """
    if kl == "k1_reward":
        return jnp.zeros_like(logps)
    if kl == "k2":
        return 0.5 * jnp.clip(ref_logps - logps, -MAX_LOG_RATIO, MAX_LOG_RATIO) ** 2
    if kl == "k3":
        return k3(logps, ref_logps)
    # The ratio is the token's own, whatever the surrogate takes, and carries its gradient.
    ratio = jnp.exp(jnp.clip(logps - old_logps, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    return ratio * k3(logps, ref_logps)
