"""Splash: attention of whole completions in one fused call on a TPU, under a mask of the group.

The queries of all completions of a group lie side by side, before the keys of all of them and of
the prompt. Of that rectangle the mask shows a completion its own tokens up to each query, and the
prompt. The kernel skips blocks of which nothing is shown, forwards and backwards, so the work is
that of the parts seen, the prompt is stored once, and the gradient is the kernel's own.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jaxtyping import Array, Bool, Float

from grpojax.types import KEPT, KV

LANES = 128  # of a TPU's vectors: blocks are multiples of it
BLOCK = 512  # queries or keys at a time


@dataclass(frozen=True)
class GroupMask(splash.Mask):
    """What `group` completions of `size` tokens each see of themselves and of a prompt of `prompt`
    tokens that stands after them, in `padded` queries and keys."""

    group: int
    size: int
    prompt: int
    padded: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        return self.padded

    def __getitem__(self, block: tuple[slice, slice]) -> np.ndarray:
        query, key = (np.arange(size)[part] for size, part in zip(self.padded, block))
        query, own = query[:, None], self.group * self.size
        same = query // self.size == key // self.size
        return (query < own) & np.where(key < own, same & (key <= query), key < own + self.prompt)


def attend_splash(
    queries: Float[Array, "B G S N H"],
    own: KV,
    own_exist: Bool[Array, "B S"] | None,
    prefix: KV | None,
    prefix_exist: Bool[Array, "B P"] | None,
    *,
    scale: float,
    interpret: bool = False,
) -> Float[Array, "B G S N H"]:
    """Causal attention of whole completions to a shared prefix and to themselves.

    `own` has axes B, G in front, `prefix` only B. Where tokens exist, if not everywhere, is stated
    by masks. `interpret` runs the kernel where there is no TPU.
    """
    batch, group, size, heads, _ = queries.shape
    keys, values = jnp.swapaxes(own.keys, -1, -2), own.values  # [B, G, K, S, H]
    keys, values = (side_by_side(x) for x in (keys, values))
    exist = jnp.ones((batch, size), bool) if own_exist is None else own_exist
    query_exist = key_exist = jnp.tile(exist, group)
    if prefix is not None:
        keys = jnp.concatenate([keys, jnp.swapaxes(prefix.keys, -1, -2)], axis=-2)
        values = jnp.concatenate([values, prefix.values], axis=-2)
        key_exist = jnp.concatenate([key_exist, prefix_exist], axis=-1)
    prompt = keys.shape[-2] - group * size
    (query_block, query_length), (key_block, key_length) = map(
        blocks, (group * size, group * size + prompt)
    )
    mask = GroupMask(group, size, prompt, (query_length, key_length))
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(
            block_q=query_block,
            block_kv=key_block,
            block_q_dkv=query_block,
            block_kv_dkv=key_block,
            block_q_dq=query_block,
            block_kv_dq=key_block,
        ),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=KEPT,
        interpret=interpret,
    )
    mixed = jax.vmap(kernel)(
        filled(side_by_side(queries.swapaxes(2, 3)) * scale, query_length),
        filled(keys, key_length),
        filled(values, key_length),
        # Only tokens of the same segment see each other: those that exist, and the others.
        splash.SegmentIds(
            filled(query_exist.astype(jnp.int32)[..., None], query_length)[..., 0],
            filled(key_exist.astype(jnp.int32)[..., None], key_length)[..., 0],
        ),
    )
    mixed = mixed[:, :, : group * size].reshape(batch, heads, group, size, -1)
    return jnp.moveaxis(mixed, 1, 3)


def blocks(length: int) -> tuple[int, int]:
    """The size of a block, and `length` filled up to whole blocks."""
    block = min(BLOCK, -(-length // LANES) * LANES)
    return block, -(-length // block) * block


def side_by_side(x: Float[Array, "B G K S H"]) -> Float[Array, "B K GS H"]:
    """The completions of a group one after the other."""
    x = x.swapaxes(1, 2)
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def filled(x: Array, length: int) -> Array:
    """[..., S, H] with zeros up to `length` in place of S."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, length - x.shape[-2]), (0, 0)])
