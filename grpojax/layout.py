"""Layout: parameters and prompts as decoding reads them, made once before its loop.

A loop over tokens must neither slice stacked weights (XLA would copy each layer once a token), nor
gather what lies on other devices, nor cast. So each layer becomes a leaf of its own, in the dtype
it is multiplied in and whole in its width; heads, feed-forward, vocabulary and experts stay split.
"""

from typing import Any

import jax
import jax.numpy as jnp
import qwix
from jaxtyping import Array

from grpojax.model import Policy, head_dtype, init_params
from grpojax.sharding import constrain, is_box, names_of
from grpojax.types import KV, Params, Prefix


def in_compute_dtype(policy: Policy, params: Params) -> Params:
    """Parameters in the dtypes that they are multiplied in, where those are narrower. Norms stay,
    and int8 bases, which are cast where they are used."""
    config = policy.config
    head = "embed" if config.tied_embeddings else "head"

    def cast(path: tuple, leaf: Any) -> Any:
        names = [key.key for key in path]
        dtype = head_dtype(config) if names[0] == head else jnp.dtype(config.compute_dtype)
        kept = isinstance(leaf, qwix.QArray) or names[-1] == "scale"
        return leaf if kept or leaf.dtype.itemsize <= dtype.itemsize else leaf.astype(dtype)

    return jax.tree.map_with_path(cast, params, is_leaf=lambda x: isinstance(x, qwix.QArray))


def for_decoding(policy: Policy, params: Params, prefix: Prefix) -> tuple[Params, Prefix]:
    """Parameters and prefix as `Policy(unrolled=True)` reads them, each where the mesh in use wants
    it: one leaf a layer. `params` are those of `policy` (see `in_compute_dtype`)."""
    boxed = jax.eval_shape(lambda: init_params(policy, jax.random.key(0)))
    layers = policy.config.num_layers

    def place(leaf: Any, box: Any, layer: int | None = None) -> Any:
        names = names_of(box) if layer is None else names_of(box)[1:]

        def one(x: Array) -> Array:
            return constrain(x if layer is None else x[layer], names)

        return jax.tree.map(one, leaf)  # an int8 kernel has its scales beside it

    def place_all(params: Params, boxed: Params, layer: int | None = None) -> Params:
        return jax.tree.map(
            lambda box, leaf: place(leaf, box, layer), boxed, params, is_leaf=is_box
        )

    stacked, named = params["layers"], boxed["layers"]
    rest, boxes = ({k: v for k, v in tree.items() if k != "layers"} for tree in (params, boxed))
    leaves = place_all(rest, boxes)
    leaves |= {f"layers_{i}": place_all(stacked, named, i) for i in range(layers)}
    return leaves, prefix.replace(kv=tuple(prefix_of(prefix.kv, i) for i in range(layers)))


def prefix_of(kv: KV, layer: int) -> KV:
    """Keys and values of the prompts in one layer, split by prompts and heads."""
    names = ("batch", "kv_heads", None, None)
    return jax.tree.map(lambda x: constrain(x[layer], names), kv)
