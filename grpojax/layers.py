"""Layers: what the blocks of the policy are made of, with the logical names of their parameters."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from grpojax.architecture import ModelConfig

ACTIVATIONS = {"silu": nn.silu, "gelu": functools.partial(nn.gelu, approximate=True)}


class Linear(nn.Module):
    """Product with one kernel over the axes that `equation` contracts, and an optional bias."""

    equation: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]  # logical names of the kernel's axes
    fan_in: int
    dtype: jnp.dtype
    bias_axes: int = 0  # the bias spans that many of the kernel's last axes; 0: no bias
    sum_dtype: jnp.dtype | None = None  # of the sums, if not `dtype`

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.normal(self.fan_in**-0.5)
        kernel = self.param("kernel", nn.with_logical_partitioning(init, self.axes), self.shape)
        y = jnp.einsum(
            self.equation,
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            preferred_element_type=self.sum_dtype,
        )
        if self.bias_axes:
            zeros = nn.with_logical_partitioning(
                nn.initializers.zeros, self.axes[-self.bias_axes :]
            )
            y += self.param("bias", zeros, self.shape[-self.bias_axes :]).astype(self.dtype)
        return y


class Norm(nn.Module):
    """RMSNorm (1910.07467) over the last `axes` axes, in float32 whatever it is given."""

    config: ModelConfig
    axes: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, x = self.config, x.astype(jnp.float32)
        init = nn.initializers.zeros if c.norm_offset else nn.initializers.ones
        names = ("heads", "head_dim") if self.axes == 2 else ("norm",)
        shape = x.shape[-self.axes :]
        scale = self.param("scale", nn.with_logical_partitioning(init, names), shape)
        squares = jnp.square(x).mean(range(-self.axes, 0), keepdims=True)
        return x * jax.lax.rsqrt(squares + c.norm_epsilon) * (scale + float(c.norm_offset))


class FeedForward(nn.Module):
    """A gated feed-forward (2002.05202): down(activation(gate(x)) * up(x))."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, dtype = self.config, jnp.dtype(self.config.compute_dtype)
        widen = functools.partial(
            Linear, "bgsd,df->bgsf", (c.embed_dim, c.ffw_dim), ("embed", "ffw"), c.embed_dim, dtype
        )
        hidden = ACTIVATIONS[c.activation](widen(name="gate")(x)) * widen(name="up")(x)
        narrow = Linear(
            "bgsf,fd->bgsd", (c.ffw_dim, c.embed_dim), ("ffw", "embed"), c.ffw_dim, dtype,
            name="down",
        )  # fmt: skip
        return narrow(hidden)
