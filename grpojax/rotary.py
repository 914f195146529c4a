"""Rotary positions (RoFormer, 2104.09864), with the two halves of a head as the pairs.

Layers may differ in their frequencies; a frequency of 0 leaves its pair as it is.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from grpojax.architecture import ModelConfig


def frequencies(config: ModelConfig) -> Float[np.ndarray, "L half"]:
    """Radians a position, of every pair in every layer."""
    exponents = np.arange(config.head_dim // 2) / (config.head_dim // 2)
    table = np.tile(scaled(config.rope_base**-exponents, config), (config.num_layers, 1))
    if config.local_rope_base:
        table[list(config.local_layers)] = config.local_rope_base**-exponents
    table[list(config.unrotated_layers)] = 0.0
    return table.astype(np.float32)


def scaled(table: Float[np.ndarray, "half"], config: ModelConfig) -> Float[np.ndarray, "half"]:
    """Frequencies stretched to a longer context: all of them, or as Llama 3.1 (2407.21783) does.

    Llama 3 divides those whose wavelength is long in the original context, keeps those whose is
    short, and goes from one to the other linearly in the number of turns.
    """
    stretched = table / config.rope_factor
    if config.rope_scaling == "linear":
        return stretched
    if config.rope_scaling == "none":
        return table
    turns = config.rope_original_length * table / (2 * np.pi)
    low, high = config.rope_low_factor, config.rope_high_factor
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return kept * table + (1 - kept) * stretched


def turns(
    positions: Int[Array, "B S"], frequencies: Float[np.ndarray, "U half"]
) -> Float[Array, "U 2 B S half"]:
    """Cosine and sine of position times frequency, in float32."""
    angles = positions[..., None] * frequencies[:, None, None]
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)


def rotate(
    x: Float[Array, "B G S heads H"], turn: Float[Array, "2 B S half"]
) -> Float[Array, "B G S heads H"]:
    """`x` with each pair turned by the angle of its position; computed in float32."""
    cos, sin = turn[:, :, None, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
