"""Layers: what the blocks of the policy are made of, with the logical names of their parameters."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import qwix
from jaxtyping import Array

from grpojax.architecture import ModelConfig

ACTIVATIONS = {"silu": nn.silu, "gelu": functools.partial(nn.gelu, approximate=True)}


class Linear(nn.Module):
    """Product with one kernel, whose first axes `equation` contracts, plus an adapter if targeted.

    An adapter (LoRA, 2106.09685) adds (x a) b * alpha / rank: two thin products, and b starts at 0.
    """

    config: ModelConfig
    equation: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]  # logical names of the kernel's axes; None: on every device
    bias: bool = False
    dtype: jnp.dtype | None = None  # of the product, if not the compute dtype
    sum_dtype: jnp.dtype | None = None  # of the sums, if not the product's

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, dtype = self.config, self.dtype or jnp.dtype(self.config.compute_dtype)
        operands, result = self.equation.split("->")
        source, kernel = operands.split(",")
        inputs = sum(letter in source for letter in kernel)
        narrow = nn.initializers.normal(math.prod(self.shape[:inputs]) ** -0.5)
        zeros = nn.initializers.zeros

        def leaf(name: str, init: nn.initializers.Initializer, shape, axes) -> Array:
            value = self.param(name, nn.with_logical_partitioning(init, axes), shape)
            value = qwix.dequantize(value) if isinstance(value, qwix.QArray) else value
            return jnp.asarray(value, dtype)

        x = x.astype(dtype)
        weights = leaf("kernel", narrow, self.shape, self.axes)
        y = jnp.einsum(self.equation, x, weights, preferred_element_type=self.sum_dtype)
        if self.bias:
            y += leaf("bias", zeros, self.shape[inputs:], self.axes[inputs:])
        if c.lora_rank and self.name in c.lora_targets:
            rank = (c.lora_rank,)
            a = leaf("lora_a", narrow, self.shape[:inputs] + rank, (*self.axes[:inputs], "rank"))
            b = leaf("lora_b", zeros, rank + self.shape[inputs:], ("rank", *self.axes[inputs:]))
            low = jnp.einsum(f"{source},{kernel[:inputs]}r->{result[:3]}r", x, a)
            y += c.lora_scale * jnp.einsum(f"{result[:3]}r,r{kernel[inputs:]}->{result}", low, b)
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
        c = self.config
        shape, axes = (c.embed_dim, c.ffw_dim), ("embed", "ffw")
        gate = Linear(c, "bgsd,df->bgsf", shape, axes, name="gate")(x)
        up = Linear(c, "bgsd,df->bgsf", shape, axes, name="up")(x)
        hidden = ACTIVATIONS[c.activation](gate) * up
        return Linear(c, "bgsf,fd->bgsd", shape[::-1], axes[::-1], name="down")(hidden)
