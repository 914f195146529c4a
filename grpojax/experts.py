"""Experts: a feed-forward that is a mixture, each token going through a few of them.

Experts lie on the mesh's tensor axis. A device sorts the tokens that it holds by expert, multiplies
those of its own experts (`ragged_dot`), and the devices add up what they have. No device ever sees
another's experts. `ragged_dot` cannot be vmapped, so this acts on flat tokens.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from grpojax.architecture import ModelConfig
from grpojax.layers import ACTIVATIONS, Linear
from grpojax.types import KEPT


@struct.dataclass
class Routing:
    """What a router did with the counted tokens of each prompt's group."""

    load: Float[Array, "*L B E"]  # share of the assignments that went to each expert
    probability: Float[Array, "*L B E"]  # mean probability of each expert


class Experts(nn.Module):
    """A mixture of gated feed-forwards, of which each token takes the likeliest few (Qwen3-MoE)."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B G S D"], counted: Bool[Array, "B G S"] | None
    ) -> tuple[Float[Array, "B G S D"], Routing | None]:
        c, dtype = self.config, jnp.dtype(self.config.compute_dtype)
        shape, axes = (c.embed_dim, c.num_experts), ("embed", None)
        sums = jnp.dtype(jnp.float32)
        logits = Linear(c, shape, axes, sum_dtype=sums, name="router")(x)
        probabilities = jax.nn.softmax(logits)
        weights, chosen = jax.lax.top_k(probabilities, c.experts_per_token)
        if c.normalize_router:
            weights /= weights.sum(-1, keepdims=True)

        def kernels(name: str, inputs: int, outputs: int, axes: tuple[str | None, ...]) -> Array:
            init = nn.initializers.normal(inputs**-0.5)
            boxed = nn.with_logical_partitioning(init, ("experts", *axes))
            return jnp.asarray(self.param(name, boxed, (c.num_experts, inputs, outputs)), dtype)

        wide, narrow = ("embed", None), (None, "embed")
        stacks = (
            kernels("gate", c.embed_dim, c.ffw_dim, wide),
            kernels("up", c.embed_dim, c.ffw_dim, wide),
            kernels("down", c.ffw_dim, c.embed_dim, narrow),
        )
        mixed = mix(x.astype(dtype), chosen, weights.astype(dtype), stacks, c.activation)
        if counted is None:
            return mixed, None
        return mixed, routing(probabilities, chosen, counted)


def mix(
    x: Float[Array, "B G S D"],
    chosen: Int[Array, "B G S k"],
    weights: Float[Array, "B G S k"],
    stacks: tuple[Array, Array, Array],
    activation: str,
) -> Float[Array, "B G S D"]:
    """The weighted sum of what each token's chosen experts make of it, on any mesh."""
    one_device = functools.partial(mix_local, activation=activation)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return one_device(x, chosen, weights, *stacks, first=jnp.int32(0))

    def local(x, chosen, weights, *stacks):
        # Said aloud: left to itself, the gradient of a gather from x is not summed over devices.
        x, weights = jax.lax.pcast((x, weights), "tensor", to="varying")
        first = jax.lax.axis_index("tensor") * stacks[0].shape[0]
        return jax.lax.psum(one_device(x, chosen, weights, *stacks, first=first), "tensor")

    split = x.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0  # not so in `init`
    tokens = PartitionSpec(("data", "fsdp") if split else None)
    experts = PartitionSpec("tensor")
    specs = (tokens, tokens, tokens, experts, experts, experts)
    return jax.shard_map(local, in_specs=specs, out_specs=tokens)(x, chosen, weights, *stacks)


def mix_local(
    x: Float[Array, "B G S D"],
    chosen: Int[Array, "B G S k"],
    weights: Float[Array, "B G S k"],
    gate: Float[Array, "E D F"],
    up: Float[Array, "E D F"],
    down: Float[Array, "E F D"],
    *,
    first: Int[Array, ""],
    activation: str,
) -> Float[Array, "B G S D"]:
    """The part of the sum that the experts `first`, `first` + 1, ... make, which are held here."""
    tokens, taken = x.reshape(-1, x.shape[-1]), chosen.shape[-1]
    held = gate.shape[0]
    expert = chosen.reshape(-1) - first  # of each assignment; those of other devices come last
    expert = jnp.where((expert >= 0) & (expert < held), expert, held)
    order = jnp.argsort(expert, stable=True)
    sizes = jnp.bincount(expert, length=held + 1)[:held].astype(jnp.int32)
    ours = (expert[order] < held)[:, None]
    # `ragged_dot` leaves the rows after its last group undefined, in the gradient too.
    rows = jnp.where(ours, tokens[order // taken], 0.0)
    gate, up = (checkpoint_name(jax.lax.ragged_dot(rows, w, sizes), KEPT) for w in (gate, up))
    hidden = ACTIVATIONS[activation](gate) * up
    made = checkpoint_name(jax.lax.ragged_dot(hidden, down, sizes), KEPT)
    scaled = jnp.where(ours, made * weights.reshape(-1)[order][:, None], 0.0)
    return jnp.zeros_like(tokens).at[order // taken].add(scaled).reshape(x.shape)


def routing(
    probabilities: Float[Array, "B G S E"],
    chosen: Int[Array, "B G S k"],
    counted: Bool[Array, "B G S"],
) -> Routing:
    """Loads and mean probabilities over the counted tokens of each group."""
    some = jnp.maximum(counted.sum((1, 2)), 1)[:, None]
    hits = jax.nn.one_hot(chosen, probabilities.shape[-1]).sum(-2) / chosen.shape[-1]

    def mean(values: Float[Array, "B G S E"]) -> Float[Array, "B E"]:
        return jnp.where(counted[..., None], values, 0.0).sum((1, 2)) / some

    return Routing(jax.lax.stop_gradient(mean(hits)), mean(probabilities))


def joined_routing(parts: list[Routing | None], counts: list[Int[Array, "B"]]) -> Routing | None:
    """Of all tokens of each group, of which the parts counted so many."""
    if parts[0] is None:
        return None
    every = jnp.maximum(sum(counts), 1)

    def mean(*shares: Float[Array, "*L B E"]) -> Array:
        return sum(share * (n / every)[:, None] for share, n in zip(shares, counts))

    return jax.tree.map(mean, *parts)


def balance_loss(routing: Routing) -> Float[Array, "B"]:
    """E sum(load * probability), mean over layers: 1 where a group's load is even (2101.03961).

    It is of each group alone, so that parts of a batch add up.
    """
    experts = routing.load.shape[-1]
    return experts * (routing.load * routing.probability).sum(-1).mean(0)
