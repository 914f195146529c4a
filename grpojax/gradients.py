"""Gradients: of a batch computed in parts, and the update they make unless it is not finite.

A loss is a sum over rows with weights made for the whole batch, so the gradients of parts add up
and a microbatch changes memory, never the result.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from grpojax.types import Params

Optimizer = optax.GradientTransformation
Metrics = dict[str, Float[Array, ""]]


def split(tree: Any, parts: int) -> Any:
    """Arrays [B, ...] as [parts, B / parts, ...]. Part p takes rows p, p + parts, ...: each
    device's rows stay on it, whatever the mesh."""
    return jax.tree.map(
        lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1),
        tree,
    )


def summed_gradients(
    loss: Callable[[Params, Any], tuple[Float[Array, ""], tuple[Metrics, Metrics]]],
    params: Params,
    batch: Any,
    parts: int,
) -> tuple[Float[Array, ""], Metrics, Params, Metrics]:
    """Loss, sums, gradients and peaks of `batch`, computed in `parts`, one at a time.

    `loss(params, part) -> (loss, (sums, peaks))`: of the peaks the largest is kept, and all else is
    added up.
    """
    value_and_grad = jax.value_and_grad(loss, has_aux=True)

    def add(total, part):
        (value, (sums, peaks)), grads = value_and_grad(params, part)
        added = jax.tree.map(jnp.add, total[:3], (value, sums, grads))
        return (*added, jax.tree.map(jnp.maximum, total[3], peaks)), None

    pieces = split(batch, parts)
    first = jax.tree.map(lambda x: x[0], pieces)
    (value, (sums, peaks)), grads = jax.eval_shape(value_and_grad, params, first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (value, sums, grads, peaks))
    return jax.lax.scan(add, zeros, pieces)[0]


def descend(
    optimizer: Optimizer, state: Any, loss: Float[Array, ""], grads: Params
) -> tuple[Any, Metrics]:
    """The state after one optimizer update, or as it was if loss or gradients are not finite.

    `state` has the fields params, opt_state, update and skipped; a refused update is counted.
    """
    norm = optax.tree.norm(grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    taken = state.replace(
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
        update=state.update + 1,
        skipped=jnp.zeros_like(state.skipped),
    )
    refused = state.replace(skipped=state.skipped + 1)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), taken, refused)
    return state, {"loss": loss, "grad_norm": norm, "updates_refused": 1.0 - finite}
