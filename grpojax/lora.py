"""LoRA (2106.09685): adapters beside frozen parameters, which they share with the reference.

Only the adapters are trained, differentiated and saved. Without adapters everything is trained and
nothing is frozen, by the same code.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import qwix
from jaxtyping import Array

from grpojax.architecture import ModelConfig
from grpojax.types import Params

LEAVES = ("lora_a", "lora_b")


def split(params: Params) -> tuple[Params, Params]:
    """Parameters as (trained, frozen): adapters and all else; or all, and nothing."""
    adapters = chosen(params, lambda name: name in LEAVES)
    return (adapters, without_adapters(params)) if adapters else (params, {})


def without_adapters(params: Params) -> Params:
    """The base alone."""
    return chosen(params, lambda name: name not in LEAVES)


def combine(frozen: Params, trained: Params) -> Params:
    """One tree of both; what stands in both is `trained`'s."""
    both = {name: (frozen[name], trained[name]) for name in frozen.keys() & trained.keys()}
    return (
        frozen
        | trained
        | {name: combine(*pair) for name, pair in both.items() if isinstance(pair[0], dict)}
    )


def freeze(frozen: Params, model: ModelConfig) -> Params:
    """The base in the dtype that it is kept in: cast, or its linear maps as int8 with scales.

    Each output of a linear map has a scale of its own. `frozen` is given up, a leaf at a time.
    """
    if model.base_dtype == "float32":
        return frozen

    def keep(path: tuple, leaf: Array) -> Any:
        names = [key.key for key in path]
        if model.base_dtype == "bfloat16":
            kept = leaf.astype(jnp.bfloat16)
        elif names[0] != "layers" or names[-1] != "kernel":
            return leaf
        else:
            inputs = 2 if names[-2] == "out" else 1  # after the axis of layers
            channels = (0, *range(1 + inputs, leaf.ndim))
            quantize = functools.partial(qwix.quantize, qtype=jnp.int8, channelwise_axes=channels)
            kept = jax.jit(quantize)(leaf)
        jax.block_until_ready(kept)
        leaf.delete()  # donation frees nothing where the dtype changes
        return kept

    return jax.tree.map_with_path(keep, frozen)


def merge(params: Params, model: ModelConfig) -> Params:
    """The parameters without adapters that compute the same: each kernel + a b * alpha / rank."""
    kept = {name: thawed(leaf, model) for name, leaf in params.items() if name not in LEAVES}
    rest = {k: merge(leaf, model) if isinstance(leaf, dict) else leaf for k, leaf in kept.items()}
    if LEAVES[0] in params:
        rest["kernel"] = merged_kernel(rest["kernel"], *(params[name] for name in LEAVES), model)
    return rest


def thawed(leaf: Any, model: ModelConfig) -> Any:
    """A leaf of the base in the dtype of what is trained; whatever is no leaf as it is."""
    if isinstance(leaf, dict):
        return leaf
    leaf = qwix.dequantize(leaf) if isinstance(leaf, qwix.QArray) else leaf
    return leaf.astype(model.param_dtype)


def merged_kernel(kernel: Array, a: Array, b: Array, model: ModelConfig) -> Array:
    """One kernel, its adapter added; all three may stack the layers in front."""

    def one(kernel, a, b):
        update = jnp.tensordot(a.astype(jnp.float32), b.astype(jnp.float32), axes=1)
        return (kernel + model.lora_scale * update).astype(kernel.dtype)

    stacked = a.ndim + b.ndim - 2 - kernel.ndim
    for _ in range(stacked):
        one = jax.vmap(one)
    return one(kernel, a, b)


def chosen(tree: Any, keep) -> Any:
    """The leaves whose name `keep` says yes to, in the tree's own shape, no dict empty."""
    found = {}
    for name, leaf in tree.items():
        if isinstance(leaf, dict):
            if inner := chosen(leaf, keep):
                found[name] = inner
        elif keep(name):
            found[name] = leaf
    return found
