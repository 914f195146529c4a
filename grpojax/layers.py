"""Layers: what the blocks of the policy are made of, with the logical names of their parameters."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import qwix
from jaxtyping import Array

from grpojax.architecture import ModelConfig
from grpojax.sharding import gathered
from grpojax.types import KEPT

ACTIVATIONS = {"silu": nn.silu, "gelu": functools.partial(nn.gelu, approximate=True)}
# What a backward pass finds of a block's forward pass: products with parameters, and what kernels
# made. The rest, attention's weights among it, is quicker computed again than stored.
PRODUCTS = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    jax.checkpoint_policies.save_only_these_names(KEPT),
)


class Linear(nn.Module):
    """Product of the last axes of x with a kernel, plus an adapter if targeted.

    An adapter (LoRA, 2106.09685) adds (x a) b * alpha / rank: two thin products, and b starts at 0.
    Each product is one of matrices, for which nothing has to be transposed.
    """

    config: ModelConfig
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]  # logical names of the kernel's axes; None: on every device
    inputs: int = 1  # how many of the axes, the first, x has too
    bias: bool = False
    dtype: jnp.dtype | None = None  # of the product, if not the compute dtype
    sum_dtype: jnp.dtype | None = None  # of the sums, if not the product's

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, dtype = self.config, self.dtype or jnp.dtype(self.config.compute_dtype)
        inputs, outputs = self.shape[: self.inputs], self.shape[self.inputs :]
        wide, rank = math.prod(inputs), c.lora_rank
        narrow, zeros = nn.initializers.normal(wide**-0.5), nn.initializers.zeros

        def leaf(name: str, init: nn.initializers.Initializer, shape, axes) -> Array:
            value = self.param(name, nn.with_logical_partitioning(init, axes), shape)
            value = qwix.dequantize(value) if isinstance(value, qwix.QArray) else value
            return gathered(jnp.asarray(value, dtype), tuple(axes))

        leading = x.shape[: x.ndim - self.inputs]
        x = x.astype(dtype).reshape(*leading, wide)
        kernel = leaf("kernel", narrow, self.shape, self.axes).reshape(wide, -1)
        y = jnp.matmul(x, kernel, preferred_element_type=self.sum_dtype)
        if self.bias:
            y += leaf("bias", zeros, outputs, self.axes[self.inputs :]).reshape(-1)
        if rank and self.name in c.lora_targets:
            of_inputs, of_outputs = self.axes[: self.inputs], self.axes[self.inputs :]
            a = leaf("lora_a", narrow, (*inputs, rank), (*of_inputs, "rank"))
            b = leaf("lora_b", zeros, (rank, *outputs), ("rank", *of_outputs))
            y += c.lora_scale * (x @ a.reshape(wide, rank)) @ b.reshape(rank, -1)
        return y.reshape(*leading, *outputs)


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
        gate = Linear(c, shape, axes, name="gate")(x)
        up = Linear(c, shape, axes, name="up")(x)
        hidden = ACTIVATIONS[c.activation](gate) * up
        return Linear(c, shape[::-1], axes[::-1], name="down")(hidden)
