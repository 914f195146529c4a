"""Sharding: rules from logical axes of arrays to those of the mesh, and what is done by them.

Prompts are split over data, fsdp and expert. A parameter is kept split over fsdp and expert (its
width) and tensor (heads, feed-forward, vocabulary), and whole in its width where it is multiplied;
an expert's are split by experts, over expert and tensor, and stay where they are. The program is
the same on any mesh; XLA inserts the communication.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

AXES = ("data", "fsdp", "expert", "tensor")
ROWS = ("data", "fsdp", "expert")
Rules = Mapping[str, tuple[str, ...]]
# Of arrays where they are used, by logical axis; () is whole on every device.
USED: Rules = {
    "batch": ROWS,
    "members": ("tensor",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "ffw": ("tensor",),
    "experts": ("expert", "tensor"),
    # Tokens of a row, between layers: splitting them over tensor does not pay
    # (experiments/sequence_sharding.py).
    "sequence": (),
    **dict.fromkeys(("layers", "embed", "expert_embed", "head_dim", "norm", "rank"), ()),
}
# Of parameters, and what the optimizer has for each, where they are kept.
STORED: Rules = {**USED, "embed": ("fsdp", "expert"), "expert_embed": ("fsdp",)}


@contextlib.contextmanager
def use_mesh(mesh: Mesh):
    """Traces inside see the mesh; without this, `constrain` does nothing."""
    with jax.set_mesh(mesh):
        yield mesh


def spec_of(
    names: Sequence[str | None], shape: Sequence[int], sizes: Mapping[str, int], rules: Rules
) -> PartitionSpec:
    """How an array with these logical axes is split over mesh axes of these sizes. An axis that
    does not divide among its devices is whole on each."""

    def split(name: str | None, size: int) -> tuple[str, ...] | str | None:
        axes = tuple(axis for axis in rules[name] if sizes[axis] > 1) if name else ()
        if not axes or size % math.prod(sizes[axis] for axis in axes):
            return None
        return axes if len(axes) > 1 else axes[0]

    return PartitionSpec(*(split(name, size) for name, size in zip(names, shape, strict=True)))


def constrain(x: Array, names: Sequence[str | None], rules: Rules = USED) -> Array:
    """`x`, split over the mesh in use as arrays with these logical axes are where they are used."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec_of(names, x.shape, sizes_here(mesh), rules))


def sizes_here(mesh: AbstractMesh) -> dict[str, int]:
    """Sizes of the mesh's axes, 1 of those that `by_row_shards` has taken apart."""
    return {axis: 1 if axis in mesh.manual_axes else n for axis, n in mesh.shape.items()}


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gathered(x: Array, names: tuple[str | None, ...]) -> Array:
    """A parameter as it is used; its gradient goes back to where the parameter is kept, and lies
    whole on no device."""
    return constrain(x, names)


gathered.defvjp(
    lambda x, names: (constrain(x, names), None),
    lambda names, _, gradient: (constrain(gradient, names, STORED),),
)


def by_rows(tree: Any) -> Any:
    """Arrays whose first axis is the batch, split by it and by no other axis."""
    return jax.tree.map(lambda x: constrain(x, ("batch", *[None] * (x.ndim - 1))), tree)


def by_row_shards(run: Callable[..., Any], params: Any, *rows: Array) -> Any:
    """`run(params, *rows)` with each device given its rows of the batch, and all of `params`.

    What a loop in `run` adds up to the gradient of `params` is then summed over devices once, after
    the loop. Left to XLA it would be in each turn.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or row_shards() == 1 or len(rows[0]) % row_shards():
        return run(params, *rows)

    def apart(params: Any, *rows: Array) -> Any:
        return run(jax.tree.map(lambda x: jax.lax.pcast(x, ROWS, to="varying"), params), *rows)

    split = (PartitionSpec(), *[PartitionSpec(ROWS)] * len(rows))
    return jax.shard_map(
        apart, in_specs=split, out_specs=PartitionSpec(ROWS), axis_names=set(ROWS)
    )(params, *rows)


def on_each_device(run: Callable[..., Any], heads: tuple[int | None, ...], *arguments: Any) -> Any:
    """`run(*arguments)` with each device given its part: what XLA cannot divide, such as a kernel.

    The first axis of every array is the batch; `heads` says which axis of each argument is of
    heads. The result lies as the first argument. A batch that does not divide, such as the one
    prompt that parameters are initialised with, is computed whole everywhere, and so are heads.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return run(*arguments)
    batch = ROWS if len(jax.tree.leaves(arguments[0])[0]) % row_shards() == 0 else None
    counts = [
        jax.tree.leaves(argument)[0].shape[axis]
        for argument, axis in zip(arguments, heads)
        if axis is not None and argument is not None
    ]
    over_heads = None if any(count % mesh.shape["tensor"] for count in counts) else "tensor"

    def spec(axis: int | None) -> PartitionSpec:
        between = () if axis is None else (*[None] * (axis - 1), over_heads)
        return PartitionSpec(batch, *between)

    specs = tuple(spec(axis) for axis in heads)
    # The kernels do not say over which axes what they return varies, so that is not checked.
    return jax.shard_map(run, in_specs=specs, out_specs=specs[0], check_vma=False)(*arguments)


def with_shardings(boxed: Any, mesh: Mesh) -> Any:
    """Shapes, dtypes and shardings of a tree whose arrays carry logical axis names, unboxed.

    `boxed` is what `jax.eval_shape` makes of a function that calls a Flax `init`.
    """

    def place(leaf: Any) -> jax.ShapeDtypeStruct:
        # `unbox` would constrain what is no array yet.
        array = leaf.value if is_box(leaf) else leaf
        spec = spec_of(names_of(leaf), array.shape, mesh.shape, STORED)
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, boxed, is_leaf=is_box)


def is_box(leaf: Any) -> bool:
    """Whether a leaf is an array with the logical names of its axes."""
    return isinstance(leaf, nn.LogicallyPartitioned)


def names_of(leaf: Any) -> tuple[str | None, ...]:
    """Logical axes of a leaf; None are those of an array without names."""
    return tuple(leaf.names) if is_box(leaf) else (None,) * leaf.ndim


def unboxed(tree: Any) -> Any:
    """The arrays alone."""
    return jax.tree.map(lambda leaf: leaf.value if is_box(leaf) else leaf, tree, is_leaf=is_box)


def shardings_of(tree: Any) -> Any:
    """The sharding of every leaf."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def moved(sharding: NamedSharding, mesh: Mesh) -> NamedSharding:
    """The same split on another mesh."""
    return NamedSharding(mesh, sharding.spec)


def sharded_init(init: Callable[[], Any], like: Any) -> Any:
    """What `init` returns, unboxed and made in place on the mesh: no device ever holds it whole."""
    return jax.jit(lambda: unboxed(init()), out_shardings=shardings_of(like))()


def row_parts(mesh: Mesh | AbstractMesh) -> int:
    """Among how many devices the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in ROWS)


def row_shards() -> int:
    """The same, of the mesh in use."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else row_parts(mesh)


def split_among(names: Sequence[str], sizes: Sequence[int]) -> int:
    """Among how many devices an array with these logical axes is split, on the mesh in use."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return 1
    axes = jax.tree.leaves(tuple(spec_of(names, sizes, sizes_here(mesh), USED)))
    return math.prod(mesh.shape[axis] for axis in axes)


def rows_each(batch: int) -> int:
    """Rows of a batch that a device has, on the mesh in use."""
    return batch // split_among(("batch",), (batch,))


def shard_batch(tree: Any, mesh: Mesh) -> Any:
    """Host arrays on the devices, their first axis split over data, fsdp and expert."""
    sharding = NamedSharding(mesh, PartitionSpec(ROWS))

    def place(x: Any) -> Array:
        if isinstance(x, jax.Array):
            return jax.device_put(x, sharding)
        # Each host makes what lies on its devices, and does not compare it with the others.
        return jax.make_array_from_callback(x.shape, sharding, lambda at: x[at])

    return jax.tree.map(place, tree)
