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
import numpy as np
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key

from grpojax.architecture import ModelConfig
from grpojax.attention import attend, soften
from grpojax.experts import Experts, Routing
from grpojax.kernels import KERNELS
from grpojax.layers import PRODUCTS, FeedForward, Linear, Norm
from grpojax.rotary import frequencies, rotate, turns
from grpojax.sharding import by_rows, constrain, gathered, on_each_device, with_shardings
from grpojax.types import KV, Params, Prefix

# The axes of heads in what a kernel takes: queries, own KV, mask, prefix, mask.
HEADS = (3, 2, None, 1, None)


@struct.dataclass
class Kind:
    """In what layers differ."""

    turn: Int[Array, "*L"]  # which of `Context.turns`
    window: Int[Array, "*L"]  # tokens that a query sees back, itself included


@struct.dataclass
class Context:
    """What every layer sees alike. A distance is from a key forward to a query, in tokens."""

    turns: Float[Array, "U 2 B S half"]  # of the tokens by their rotary positions
    own_mask: Bool[Array, "B S T"]  # own tokens that a query may see
    own_distance: Int[Array, "S T"]
    prefix_mask: Bool[Array, "B 1 P"] | None  # prompt tokens that exist
    prefix_distance: Int[Array, "B S P"] | None  # where some layer has a window
    exist: Bool[Array, "B S"] | None = None  # own tokens that are no padding; None: all
    column: Int[Array, ""] | None = None  # where in the cache the new tokens go
    counted: Bool[Array, "B G S"] | None = None  # tokens that the routers' statistics are about

    def visible(self, window: Int[Array, ""] | None) -> tuple[Array, Array | None]:
        """The masks of own tokens and of the prompt, in a layer with this window."""
        if window is None:
            return self.own_mask, self.prefix_mask
        own = self.own_mask & (self.own_distance < window)
        if self.prefix_mask is None:
            return own, None
        return own, self.prefix_mask & (self.prefix_distance < window)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions over a shared prefix and own tokens."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array, kv: tuple[KV | None, KV | None], kind: Kind, context: Context):
        c, dtype = self.config, jnp.dtype(self.config.compute_dtype)
        prefix, cache = kv
        shape, axes = (c.embed_dim, c.num_heads, c.head_dim), ("embed", "heads", "head_dim")
        kv_shape, kv_axes = (
            (c.embed_dim, c.num_kv_heads, c.head_dim),
            ("embed", "kv_heads", "head_dim"),
        )
        project = functools.partial(Linear, c, bias=c.qkv_bias)
        queries = project(shape, axes, name="query")(x)
        keys = project(kv_shape, kv_axes, name="key")(x)
        values = project(kv_shape, kv_axes, name="value")(x)
        if c.qk_norm != "none":
            over = {"head": 1, "all": 2}[c.qk_norm]
            queries = Norm(c, over, name="query_norm")(queries).astype(dtype)
            keys = Norm(c, over, name="key_norm")(keys).astype(dtype)
        turn = context.turns[kind.turn if len(context.turns) > 1 else 0]
        queries, keys = rotate(queries, turn), rotate(keys, turn)
        own = KV(jnp.moveaxis(keys, 2, -1), jnp.moveaxis(values, 2, -2))
        if cache is not None:
            new = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), own)  # as the cache lies
            at = context.column
            own = KV(
                jax.lax.dynamic_update_slice_in_dim(cache.keys, new.keys, at, axis=-1),
                jax.lax.dynamic_update_slice_in_dim(cache.values, new.values, at, axis=-2),
            )
        scale = (c.query_scale or c.head_dim) ** -0.5
        if cache is None and c.attention in KERNELS:
            kernel = functools.partial(KERNELS[c.attention], scale=scale)
            mask = None if prefix is None else context.prefix_mask[:, 0]
            mixed = on_each_device(kernel, HEADS, queries, own, context.exist, prefix, mask)
        else:
            own_mask, prefix_mask = context.visible(kind.window if c.sliding_window else None)
            mixed = attend(
                queries,
                own,
                own_mask,
                prefix,
                prefix_mask,
                scale=scale,
                softcap=c.attention_softcap,
            )
        shape, axes = shape[1:] + shape[:1], axes[1:] + axes[:1]
        return Linear(c, shape, axes, inputs=2, name="out")(mixed), own


class Block(nn.Module):
    """Attention and feed-forward, each added to x, with norms where the family has them.

    Returns x and, where somebody needs it, what it stores; while training, what its router did.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array, kv: tuple[KV | None, KV | None], kind: Kind, context: Context):
        c = self.config
        before, after = c.norm_placement != "after", c.norm_placement != "before"
        x = constrain(x, ("batch", None, "sequence", None))
        y = Norm(c, name="attention_norm")(x) if before else x
        y, own = Attention(c, name="attention")(y, kv, kind, context)
        x += (Norm(c, name="attention_post_norm")(y) if after else y).astype(x.dtype)
        y = Norm(c, name="ffw_norm")(x) if before else x
        if c.num_experts:
            y, routed = Experts(c, name="ffw")(y, context.counted)
        else:
            y, routed = FeedForward(c, name="ffw")(y), None
        x += (Norm(c, name="ffw_post_norm")(y) if after else y).astype(x.dtype)
        prefix, cache = kv
        return x, own if prefix is None or cache is not None else routed


class Policy(nn.Module):
    """The language model. `unrolled` reads one leaf a layer (`layout`), which decoding wants."""

    config: ModelConfig
    unrolled: bool = False

    def setup(self):
        c = self.config
        init = nn.with_logical_partitioning(
            nn.initializers.normal(c.embed_dim**-0.5), ("vocab", "embed")
        )
        self.embed = nn.Embed(c.vocab_size, c.embed_dim, embedding_init=init)
        block = nn.remat(Block, prevent_cse=False, policy=None if c.remat else PRODUCTS)
        if self.unrolled:
            self.layers = [Block(c) for _ in range(c.num_layers)]
        else:
            self.layers = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(0, 0, nn.broadcast),
                length=c.num_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )(c)
        self.final_norm = Norm(c)
        # Angles are computed once for all layers that share them.
        self.frequencies, self.turn_of_layer = np.unique(
            frequencies(c), axis=0, return_inverse=True
        )
        if not c.tied_embeddings:
            shape, axes = (c.embed_dim, c.vocab_size), ("embed", "vocab")
            sums = jnp.dtype(jnp.float32)
            self.head = Linear(c, shape, axes, dtype=head_dtype(c), sum_dtype=sums)

    def __call__(self, tokens: Int[Array, "B P"]) -> Float[Array, "B 1 V"]:
        """Logits of the token after each prompt; what `init` traces."""
        hidden, _ = self.prefill(tokens, jnp.ones(tokens.shape, bool))
        return self.logits(hidden[:, None, None])[:, 0]

    def prefill(
        self, tokens: Int[Array, "B P"], mask: Bool[Array, "B P"]
    ) -> tuple[Float[Array, "B D"], Prefix]:
        """Reads left-padded prompts once: the hidden state that predicts completion token 0, and
        the prefix."""
        distance = distances(jnp.arange(tokens.shape[1]), jnp.arange(tokens.shape[1]))
        visible = (distance >= 0) & mask[:, None, :]
        turned = turns(positions_of(mask), self.frequencies)
        context = Context(turned, visible, distance, None, None, exist=mask)
        hidden, kv = self._run(tokens[:, None], None, None, context)
        alone = jax.tree.map(lambda a: jnp.squeeze(a, -4), kv)  # a group of one -> no group
        return hidden[:, 0, -1], Prefix(alone, mask, mask.sum(-1, dtype=jnp.int32))

    def extend(
        self,
        tokens: Int[Array, "B G S"],
        prefix: Prefix,
        cache: tuple[KV, ...] | None = None,
        column: Int[Array, ""] | None = None,
        counted: Bool[Array, "B G S"] | None = None,
    ) -> tuple[Float[Array, "B G S D"], tuple[KV, ...] | Routing | None]:
        """Reads completion tokens that share their prompts.

        Without a cache: all S tokens of a completion at once, from its first. With one, in which
        completions lie along one axis B * G: the S tokens at `column`, of which it holds those
        before. Returns hidden states that predict the tokens after them, and the cache with them
        added; without a cache, what the routers did with the tokens `counted`, if there are any.
        """
        batch, _, size = tokens.shape
        own = jnp.arange(size) + (0 if column is None else column)
        distance = distances(own, jnp.arange(size if cache is None else cache[0].keys.shape[-1]))
        positions = prefix.length[:, None] + own
        prefix_distance = None
        if self.config.sliding_window:
            prefix_distance = jax.vmap(distances)(positions, positions_of(prefix.mask))
        context = Context(
            turns=turns(positions, self.frequencies),
            own_mask=jnp.broadcast_to(distance >= 0, (batch, *distance.shape)),
            own_distance=distance,
            prefix_mask=prefix.mask[:, None],
            prefix_distance=prefix_distance,
            column=column,
            counted=counted,
        )
        return self._run(tokens, prefix.kv, cache, context)

    def logits(self, hidden: Float[Array, "B G S D"]) -> Float[Array, "B G S V"]:
        """Float32 logits of hidden states; reductions over them belong in float32 too."""
        c = self.config
        if c.tied_embeddings:
            dtype = head_dtype(c)
            logits = jnp.einsum(
                "bgsd,vd->bgsv",
                hidden.astype(dtype),
                self._table().astype(dtype),
                preferred_element_type=jnp.float32,
            )
        else:
            logits = self.head(hidden)
        logits = constrain(logits, ("batch", None, None, "vocab"))
        return soften(logits, c.logit_softcap)

    def _table(self) -> Float[Array, "V D"]:
        return gathered(self.embed.embedding, ("vocab", "embed"))

    def _run(self, tokens: Int[Array, "B G S"], prefix, cache, context: Context):
        c = self.config
        x = jnp.take(self._table(), by_rows(tokens), axis=0)
        x = by_rows(x).astype(jnp.dtype(c.compute_dtype))
        if c.scaled_embeddings:
            x *= jnp.asarray(c.embed_dim**0.5, x.dtype)
        window = np.full(c.num_layers, np.iinfo(np.int32).max, np.int32)
        window[list(c.local_layers)] = c.sliding_window
        kinds = Kind(jnp.asarray(self.turn_of_layer), jnp.asarray(window))
        if not self.unrolled:
            x, stored = self.layers(x, (prefix, cache), kinds, context)
            return self.final_norm(x), stored
        prefixes, caches = (kv or (None,) * c.num_layers for kv in (prefix, cache))
        stored = []
        for i, (layer, *kv) in enumerate(zip(self.layers, prefixes, caches)):
            x, own = layer(x, tuple(kv), jax.tree.map(lambda a, i=i: a[i], kinds), context)
            stored.append(own)
        return self.final_norm(x), tuple(stored)


def head_dtype(config: ModelConfig) -> jnp.dtype:
    """What the output head multiplies in."""
    same = config.head_dtype == "compute"
    return jnp.dtype(config.compute_dtype if same else config.head_dtype)


def distances(queries: Int[Array, "S"], keys: Int[Array, "T"]) -> Int[Array, "S T"]:
    """How far each query's position is past each key's; below 0 where the key comes later."""
    return queries[:, None] - keys


def positions_of(mask: Bool[Array, "B P"]) -> Int[Array, "B P"]:
    """Positions of left-padded tokens in their own sequence."""
    return jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0)


def init_params(policy: Policy, key: Key[Array, ""]) -> Params:
    """Random parameters, each boxed with the logical names of its axes (`sharding` unboxes
    them)."""
    params = policy.init(key, jnp.zeros((1, 1), jnp.int32))["params"]
    return jax.tree.map(lambda x: x.astype(policy.config.param_dtype), params)


def abstract_params(policy: Policy, mesh: Mesh) -> Params:
    """Shapes, dtypes and shardings of the parameters, without an array."""
    return with_shardings(jax.eval_shape(lambda: init_params(policy, jax.random.key(0))), mesh)
