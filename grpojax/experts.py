"""Experts: a feed-forward that is a mixture, each token going through a few of them.

Experts lie on the mesh's expert and tensor axes. The devices along expert show each other their
tokens; each sorts them by expert, multiplies those of its own experts (`ragged_dot`), and the
devices add up what they have. No device ever sees another's experts. `ragged_dot` cannot be
vmapped, so this acts on flat tokens.
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
from grpojax.sharding import ROWS, row_shards
from grpojax.types import KEPT

HOLDERS = ("expert", "tensor")  # axes of the mesh that experts are split over
SPARE = 2  # times its share of the assignments are what a device multiplies at once
FEW = 1024  # assignments that are not worth parting


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
        weights, chosen = likeliest(probabilities, c.experts_per_token)
        if c.normalize_router:
            weights /= weights.sum(-1, keepdims=True)

        def kernels(name: str, inputs: int, outputs: int, axes: tuple[str | None, ...]) -> Array:
            init = nn.initializers.normal(inputs**-0.5)
            boxed = nn.with_logical_partitioning(init, ("experts", *axes))
            return jnp.asarray(self.param(name, boxed, (c.num_experts, inputs, outputs)), dtype)

        wide, narrow = ("expert_embed", None), (None, "expert_embed")
        stacks = (
            kernels("gate", c.embed_dim, c.ffw_dim, wide),
            kernels("up", c.embed_dim, c.ffw_dim, wide),
            kernels("down", c.ffw_dim, c.embed_dim, narrow),
        )
        mixed = mix(x.astype(dtype), chosen, weights.astype(dtype), stacks, c.activation)
        if counted is None:
            return mixed, None
        return mixed, routing(probabilities, chosen, counted)


def likeliest(
    probabilities: Float[Array, "B G S E"], count: int
) -> tuple[Float[Array, "B G S k"], Int[Array, "B G S k"]]:
    """The `count` highest, and where they are; on a mesh each device sorts those of its rows."""

    def choose(probabilities: Float[Array, "B G S E"]) -> tuple[Array, Array]:
        return tuple(jax.lax.top_k(probabilities, count))

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or len(probabilities) % row_shards():
        return choose(probabilities)
    rows = PartitionSpec(ROWS)
    return jax.shard_map(choose, in_specs=rows, out_specs=rows)(probabilities)


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
    split = x.shape[0] % row_shards() == 0  # not so in `init`
    over = "tensor" if split else HOLDERS
    holders = mesh.shape["expert"] * mesh.shape["tensor"]

    def local(x, chosen, weights, *stacks):
        if split:  # tokens go to the experts
            gather = functools.partial(jax.lax.all_gather, axis_name="expert", tiled=True)
            x, chosen, weights = gather(x), gather(chosen), gather(weights)
        # Said aloud: left to itself, the gradient of a gather from x is not summed over devices.
        x, weights = jax.lax.pcast((x, weights), over, to="varying")
        first = jax.lax.axis_index(HOLDERS) * stacks[0].shape[0]
        mixed = one_device(x, chosen, weights, *stacks, first=first, holders=holders)
        if split:
            mixed = jax.lax.psum_scatter(mixed, "expert", tiled=True)
        return jax.lax.psum(mixed, over)

    tokens, experts = PartitionSpec(ROWS if split else None), PartitionSpec(HOLDERS)
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
    holders: int = 1,
) -> Float[Array, "B G S D"]:
    """The part of the sum that the experts `first`, `first` + 1, ... make, which are held here.

    Among `holders` devices each is ready for `SPARE` times its share of the assignments. If its
    experts have more, the rest follows in pieces of that size: no assignment is dropped.
    """
    tokens, taken = x.reshape(-1, x.shape[-1]), chosen.shape[-1]
    held = gate.shape[0]
    expert = chosen.reshape(-1) - first  # of each assignment; those of other devices come last
    expert = jnp.where((expert >= 0) & (expert < held), expert, held)
    order = jnp.argsort(expert, stable=True)
    sizes = jnp.bincount(expert, length=held + 1)[:held].astype(jnp.int32)
    ends, scales = jnp.cumsum(sizes), weights.reshape(-1)[order]
    share = min(len(order), max(FEW, -(-SPARE * len(order) // holders)))
    spare = -len(order) % share
    order, scales = jnp.pad(order, (0, spare)), jnp.pad(scales, (0, spare))

    def rows_of(begin: Int[Array, ""] | int) -> Int[Array, "R"]:
        return jax.lax.dynamic_slice_in_dim(order, begin, share) // taken

    def made_of(begin: Int[Array, ""] | int) -> Float[Array, "R D"]:
        """What the experts make of `share` assignments in their order."""
        inside = jnp.clip(ends - begin, 0, share) - jnp.clip(ends - sizes - begin, 0, share)
        ours = (begin + jnp.arange(share) < ends[-1])[:, None]
        # `ragged_dot` leaves the rows after its last group undefined, in the gradient too.
        rows = jnp.where(ours, tokens[rows_of(begin)], 0.0)
        dots = [checkpoint_name(jax.lax.ragged_dot(rows, w, inside), KEPT) for w in (gate, up)]
        hidden = ACTIVATIONS[activation](dots[0]) * dots[1]
        made = checkpoint_name(jax.lax.ragged_dot(hidden, down, inside), KEPT)
        scale = jax.lax.dynamic_slice_in_dim(scales, begin, share)
        return jnp.where(ours, made * scale[:, None], 0.0)

    none = jnp.where(False, tokens, 0.0)  # not `zeros_like`, which varies over no device
    mixed = none.at[rows_of(0)].add(made_of(0))
    if share < len(order):

        def add(total: Float[Array, "N D"], begin: Int[Array, ""]):
            return total.at[rows_of(begin)].add(jax.checkpoint(made_of)(begin)), None

        def rest() -> Float[Array, "N D"]:
            return jax.lax.scan(add, none, jnp.arange(share, len(order), share))[0]

        mixed += jax.lax.cond(ends[-1] > share, rest, lambda: none)
    return mixed.reshape(x.shape)


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
