"""LoRA (2106.09685): adapters beside frozen parameters, which they share with the reference.

Only the adapters are trained, differentiated and saved. Without adapters everything is trained and
nothing is frozen, by the same code.
"""

from typing import Any

import jax
import jax.numpy as jnp
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


def merge(params: Params, model: ModelConfig) -> Params:
    """The parameters without adapters that compute the same: each kernel + a b * alpha / rank."""
    kept = {name: leaf for name, leaf in params.items() if name not in LEAVES}
    rest = {k: merge(leaf, model) if isinstance(leaf, dict) else leaf for k, leaf in kept.items()}
    if LEAVES[0] in params:
        rest["kernel"] = merged_kernel(params["kernel"], *(params[name] for name in LEAVES), model)
    return rest


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
