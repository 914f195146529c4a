"""The policy: a decoder whose activations carry the group as an axis, in Flax Linen, used
statelessly.

`prefill` reads each prompt once; `extend` reads completions that share it. Decoding is `extend`
with one token and a cache, scoring and training are one `extend` over all tokens, so sampler and
trainer are the same code. Activations are [B, G, S, D] everywhere; a prompt is a group of one.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from grpojax.attention import attend, rotate
from grpojax.config import ModelConfig
from grpojax.types import KV, Params, Prefix


@struct.dataclass
class Context:
    """What every layer sees alike."""

    positions: Int[Array, "B G S"]  # of the tokens in their own sequence, padding not counted
    own_mask: Bool[Array, "B S T"]  # own tokens that a query may see
    prefix_mask: Bool[Array, "B P"] | None  # prompt tokens that exist
    column: Int[Array, ""] | None  # where in the cache the new tokens go


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


class Attention(nn.Module):
    """Grouped-query attention with rotary positions over a shared prefix and own tokens."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array, prefix: KV | None, cache: KV | None, context: Context):
        c, dtype = self.config, jnp.dtype(self.config.compute_dtype)
        project = functools.partial(
            Linear, "bgsd,dnh->bgsnh", fan_in=c.embed_dim, dtype=dtype, bias_axes=2 * c.qkv_bias
        )
        kv_shape, kv_axes = (
            (c.embed_dim, c.num_kv_heads, c.head_dim),
            ("embed", "kv_heads", "head_dim"),
        )
        q_shape = (c.embed_dim, c.num_heads, c.head_dim)
        queries = project(shape=q_shape, axes=("embed", "heads", "head_dim"), name="query")(x)
        keys = project(shape=kv_shape, axes=kv_axes, name="key")(x)
        values = project(shape=kv_shape, axes=kv_axes, name="value")(x)
        queries = rotate(queries, context.positions, c.rope_base)
        keys = rotate(keys, context.positions, c.rope_base)
        own = KV(jnp.moveaxis(keys, 2, -1), jnp.moveaxis(values, 2, -2))
        if cache is not None:
            at = context.column
            own = KV(
                jax.lax.dynamic_update_slice_in_dim(cache.keys, own.keys, at, axis=-1),
                jax.lax.dynamic_update_slice_in_dim(cache.values, own.values, at, axis=-2),
            )
        mixed = attend(queries, own, context.own_mask, prefix, context.prefix_mask)
        out_shape, out_axes = q_shape[1:] + q_shape[:1], ("heads", "head_dim", "embed")
        out = Linear(
            "bgsnh,nhd->bgsd", out_shape, out_axes, c.num_heads * c.head_dim, dtype, name="out"
        )
        return out(mixed), own


class FeedForward(nn.Module):
    """SwiGLU (2002.05202): down(silu(gate(x)) * up(x))."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, dtype = self.config, jnp.dtype(self.config.compute_dtype)
        widen = functools.partial(
            Linear, "bgsd,df->bgsf", (c.embed_dim, c.ffw_dim), ("embed", "ffw"), c.embed_dim, dtype
        )
        hidden = nn.silu(widen(name="gate")(x)) * widen(name="up")(x)
        narrow = Linear(
            "bgsf,fd->bgsd", (c.ffw_dim, c.embed_dim), ("ffw", "embed"), c.ffw_dim, dtype,
            name="down",
        )  # fmt: skip
        return narrow(hidden)


def norm(config: ModelConfig, name: str | None = None) -> nn.RMSNorm:
    """RMSNorm (1910.07467), in float32 whatever it is given."""
    scale = nn.with_logical_partitioning(nn.initializers.ones, ("norm",))
    return nn.RMSNorm(config.norm_epsilon, dtype=jnp.float32, scale_init=scale, name=name)


class Block(nn.Module):
    """Pre-norm block. Returns x and, where somebody needs it, what it stores: None while
    training."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array, kv: tuple[KV | None, KV | None], context: Context):
        prefix, cache = kv
        x = nn.with_logical_constraint(x, ("batch", None, None, None))
        mixed, own = Attention(self.config, name="attention")(
            norm(self.config, "attention_norm")(x), prefix, cache, context
        )
        x = x + mixed.astype(x.dtype)
        wide = FeedForward(self.config, name="ffw")(norm(self.config, "ffw_norm")(x))
        stored = own if prefix is None or cache is not None else None
        return x + wide.astype(x.dtype), stored


class Policy(nn.Module):
    """The language model. `unrolled` reads one leaf a layer (`unstack`), which decoding wants."""

    config: ModelConfig
    unrolled: bool = False

    def setup(self):
        c = self.config
        init = nn.with_logical_partitioning(
            nn.initializers.normal(c.embed_dim**-0.5), ("vocab", "embed")
        )
        self.embed = nn.Embed(c.vocab_size, c.embed_dim, embedding_init=init)
        block = nn.remat(Block, prevent_cse=False) if c.remat and not self.unrolled else Block
        if self.unrolled:
            self.layers = [block(c) for _ in range(c.num_layers)]
        else:
            self.layers = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(0, nn.broadcast),
                length=c.num_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )(c)
        self.final_norm = norm(c)
        if not c.tied_embeddings:
            self.head = Linear(
                "bgsd,dv->bgsv",
                (c.embed_dim, c.vocab_size),
                ("embed", "vocab"),
                c.embed_dim,
                jnp.dtype(c.compute_dtype),
                sum_dtype=jnp.dtype(jnp.float32),
            )

    def __call__(self, tokens: Int[Array, "B P"]) -> Float[Array, "B 1 V"]:
        """Logits of the token after each prompt; what `init` traces."""
        hidden, _ = self.prefill(tokens, jnp.ones(tokens.shape, bool))
        return self.logits(hidden[:, None, None])[:, 0]

    def prefill(
        self, tokens: Int[Array, "B P"], mask: Bool[Array, "B P"]
    ) -> tuple[Float[Array, "B D"], Prefix]:
        """Reads left-padded prompts once: the hidden state that predicts completion token 0, and
        the prefix."""
        positions = jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0)
        causal = jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))
        context = Context(positions[:, None], causal & mask[:, None, :], None, None)
        hidden, kv = self._run(tokens[:, None], None, None, context)
        alone = jax.tree.map(lambda a: jnp.squeeze(a, -4), kv)  # a group of one -> no group
        return hidden[:, 0, -1], Prefix(alone, mask, mask.sum(-1, dtype=jnp.int32))

    def extend(
        self,
        tokens: Int[Array, "B G S"],
        prefix: Prefix,
        cache: tuple[KV, ...] | None = None,
        column: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B G S D"], tuple[KV, ...] | None]:
        """Reads completion tokens that share their prompts.

        Without a cache: all S tokens of a completion at once, from its first. With one: the S
        tokens at `column`, of which the cache holds those before. Returns hidden states that
        predict the tokens after them, and the cache with them added.
        """
        batch, _, size = tokens.shape
        own = jnp.arange(size) + (0 if column is None else column)
        seen = jnp.arange(size if cache is None else cache[0].keys.shape[-1])
        own_mask = jnp.broadcast_to(seen <= own[:, None], (batch, size, seen.size))
        positions = jnp.broadcast_to(prefix.length[:, None, None] + own, tokens.shape)
        context = Context(positions, own_mask, prefix.mask, column)
        return self._run(tokens, prefix.kv, cache, context)

    def logits(self, hidden: Float[Array, "B G S D"]) -> Float[Array, "B G S V"]:
        """Float32 logits of hidden states; reductions over them belong in float32 too."""
        if not self.config.tied_embeddings:
            return self.head(hidden)
        dtype = jnp.dtype(self.config.compute_dtype)
        table = self.embed.embedding.astype(dtype)
        logits = jnp.einsum(
            "bgsd,vd->bgsv", hidden.astype(dtype), table, preferred_element_type=jnp.float32
        )
        return nn.with_logical_constraint(logits, ("batch", None, None, "vocab"))

    def _run(self, tokens: Int[Array, "B G S"], prefix, cache, context: Context):
        x = self.embed(tokens).astype(jnp.dtype(self.config.compute_dtype))
        if self.unrolled:
            prefixes = prefix or (None,) * len(self.layers)
            caches = cache or (None,) * len(self.layers)
            stored = []
            for layer, *kv in zip(self.layers, prefixes, caches):
                x, own = layer(x, tuple(kv), context)
                stored.append(own)
            stored = tuple(stored)
        else:
            x, stored = self.layers(x, (prefix, cache), context)
        return self.final_norm(x), stored


def init_params(policy: Policy, key: Key[Array, ""]) -> Params:
    """Random parameters, each boxed with the logical names of its axes (`sharding` unboxes
    them)."""
    return policy.init(key, jnp.zeros((1, 1), jnp.int32))["params"]


def unstack(params: Params, prefix: Prefix, layers: int) -> tuple[Params, Prefix]:
    """Parameters and prefix with one leaf a layer, as `Policy(unrolled=True)` reads them.

    A loop over decoded tokens must not slice stacked weights: XLA would copy each layer once a
    token.
    """

    def split(tree):
        return [jax.tree.map(lambda a, i=i: a[i], tree) for i in range(layers)]

    named = {f"layers_{i}": layer for i, layer in enumerate(split(params["layers"]))}
    rest = {name: value for name, value in params.items() if name != "layers"}
    return rest | named, prefix.replace(kv=tuple(split(prefix.kv)))
