"""Sharding: a mesh of data, fsdp, expert and tensor, and rules from logical axes to its own.

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
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from grpojax.architecture import ModelConfig
from grpojax.checks import require, require_divisor, require_multiple
from grpojax.config import Config, MeshConfig

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
    **dict.fromkeys(("layers", "embed", "expert_embed", "head_dim", "norm", "rank"), ()),
}
# Of parameters, and what the optimizer has for each, where they are kept.
STORED: Rules = {**USED, "embed": ("fsdp", "expert"), "expert_embed": ("fsdp",)}


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over `devices` (default: all there are), without those that only sample.

    Raises:
      ValueError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    require(
        config.sampling < len(devices),
        f"mesh.sampling={config.sampling} must leave some of the {len(devices)} devices here "
        "to train; lower it",
    )
    sizes = dict(zip(AXES, (config.data, config.fsdp, config.expert, config.tensor)))
    count = len(devices) - config.sampling
    fixed = math.prod(size for size in sizes.values() if size > 0)
    given = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    sizes = {axis: count // fixed if size == -1 else size for axis, size in sizes.items()}
    require(
        math.prod(sizes.values()) == count,
        f"mesh {given} must multiply to the {count} devices here that train; one axis can be -1 "
        "for the rest",
    )
    return mesh_of(devices[:count], **sizes)


def make_sampling_mesh(config: MeshConfig, training: Mesh) -> Mesh:
    """The mesh over the devices that only sample; `training`, if there are none.

    Its parameters are split over expert and tensor as those of `training` are, and not over fsdp.

    Raises:
      ValueError: the devices do not divide by expert and tensor.
    """
    if not config.sampling:
        return training
    split = {axis: training.shape[axis] for axis in ("expert", "tensor")}
    parts = math.prod(split.values())
    require_multiple("mesh.sampling", config.sampling, parts, "the mesh's expert * tensor")
    devices = jax.devices()[-config.sampling :]
    return mesh_of(devices, data=config.sampling // parts, **split)


def mesh_of(
    devices: Sequence[jax.Device],
    *,
    data: int = 1,
    fsdp: int = 1,
    expert: int = 1,
    tensor: int = 1,
) -> Mesh:
    """A mesh of `devices` in these sizes."""
    # Auto, not the default Explicit: the policy states constraints and leaves the rest to XLA.
    types = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh((data, fsdp, expert, tensor), AXES, axis_types=types, devices=devices)


def check_mesh(mesh: Mesh, sampling: Mesh, config: Config) -> None:
    """Raises ValueError if the batch or the model does not fit the meshes of training and of
    sampling."""
    model, grpo = config.model, config.grpo
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    require(
        not (on_cpu and model.compute_dtype == "bfloat16"),
        "compute_dtype=bfloat16 needs an accelerator (on a CPU, XLA has no bfloat16 product with "
        "float32 sums); use float32",
    )
    shards = row_parts(mesh)
    parts = grpo.minibatches * grpo.microbatches * shards
    what = "minibatches * microbatches * the mesh's data * fsdp * expert"
    require_multiple("prompts_per_step", grpo.prompts_per_step, parts, what)
    among = "the devices that sample / the mesh's tensor"
    require_multiple("prompts_per_step", grpo.prompts_per_step, row_parts(sampling), among)
    what = "the mesh's data * fsdp * expert"
    require_multiple("examples_per_step", config.sft.examples_per_step, shards, what)
    if config.reward_model.every:
        pairs, parts = config.reward_model.pairs_per_update, grpo.microbatches * shards
        what = "grpo.microbatches * the mesh's data * fsdp * expert"
        require_multiple("reward_model.pairs_per_update", pairs, parts, what)
    expert, tensor = mesh.shape["expert"], mesh.shape["tensor"]
    require(
        expert == 1 or model.num_experts > 0,
        f"mesh.expert={expert} needs a mixture of experts (model.num_experts above 0); use fsdp",
    )
    width = mesh.shape["fsdp"] * expert
    require_divisor("embed_dim", model.embed_dim, width, "the mesh's fsdp * expert")
    require_divisor("vocab_size", model.vocab_size, tensor, "the mesh's tensor")
    if model.num_experts:
        what = "the mesh's expert * tensor"
        require_divisor("num_experts", model.num_experts, expert * tensor, what)
    else:
        require_divisor("ffw_dim", model.ffw_dim, tensor, "the mesh's tensor")


def mesh_notes(model: ModelConfig, mesh: Mesh) -> tuple[str, ...]:
    """What is done more than once because it does not divide, a line each."""
    tensor = mesh.shape["tensor"]
    heads = {"heads": model.num_heads, "key-value heads": model.num_kv_heads}
    return tuple(
        f"{count} {name} do not divide by the mesh's tensor={tensor}: each of its devices has all"
        for name, count in heads.items()
        if count % tensor
    )


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
    return jax.lax.with_sharding_constraint(x, spec_of(names, x.shape, mesh.shape, rules))


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


def on_each_device(
    run: Callable[..., Array], heads: tuple[int | None, ...], *arguments: Any
) -> Array:
    """`run(*arguments)` with each device given its part: what XLA cannot divide, such as a kernel.

    The first axis of every array is the batch; `heads` says which axis of each argument is of
    heads. The result lies as the first argument. A batch that does not divide, such as the one
    prompt that parameters are initialised with, is computed whole everywhere, and so are heads.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return run(*arguments)
    batch = ROWS if len(arguments[0]) % row_shards() == 0 else None
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


def rows_each(batch: int) -> int:
    """Rows of a batch that a device has, on the mesh in use."""
    return -(-batch // row_shards())


def logit_shards(vocab_size: int) -> int:
    """Among how many devices the logits of a batch are split, on the mesh in use."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return 1
    tensor = mesh.shape["tensor"]
    return row_parts(mesh) * (1 if vocab_size % tensor else tensor)


def shard_batch(tree: Any, mesh: Mesh) -> Any:
    """Host arrays on the devices, their first axis split over data, fsdp and expert."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(ROWS)))
