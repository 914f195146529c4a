"""Sharding: a mesh with the axes data, fsdp and tensor, and rules from logical axes to them.

Prompts are split over data and fsdp, parameters and optimizer state over fsdp and tensor. The
program is the same on any mesh; XLA inserts the communication.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from grpojax.checks import require, require_multiple
from grpojax.config import Config, MeshConfig

RULES = (
    ("batch", ("data", "fsdp")),
    ("layers", None),
    ("vocab", "tensor"),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("head_dim", None),
    ("ffw", "tensor"),
    ("experts", "tensor"),
    ("norm", None),
    ("rank", None),
)


def make_mesh(config: MeshConfig) -> Mesh:
    """The mesh over all devices of this process, without those that only sample.

    Raises:
      ValueError: the axes do not multiply to the number of devices.
    """
    require(
        config.sampling < jax.device_count(),
        f"mesh.sampling={config.sampling} must leave some of the {jax.device_count()} devices here "
        "to train; lower it",
    )
    sizes, devices = [config.data, config.fsdp, config.tensor], jax.device_count() - config.sampling
    fixed = int(np.prod([size for size in sizes if size > 0]))
    sizes = [devices // fixed if size == -1 else size for size in sizes]
    require(
        int(np.prod(sizes)) == devices,
        f"mesh data={config.data}, fsdp={config.fsdp}, tensor={config.tensor} must multiply to the "
        f"{devices} devices here that train; one axis can be -1 for the rest",
    )
    return mesh_of(jax.devices()[:devices], sizes)


def make_sampling_mesh(config: MeshConfig, training: Mesh) -> Mesh:
    """The mesh over the devices that only sample; `training`, if there are none.

    Its parameters are split over tensor as those of `training` are, and not over fsdp: decoding
    would gather them for every token.

    Raises:
      ValueError: the devices do not divide by tensor.
    """
    if not config.sampling:
        return training
    tensor = training.shape["tensor"]
    require_multiple("mesh.sampling", config.sampling, tensor, "the mesh's tensor")
    return mesh_of(jax.devices()[-config.sampling :], [config.sampling // tensor, 1, tensor])


def mesh_of(devices: Sequence[jax.Device], sizes: Sequence[int]) -> Mesh:
    """A mesh of the three axes in these sizes."""
    # Auto, not the default Explicit: the policy states constraints and leaves the rest to XLA.
    types = (AxisType.Auto,) * 3
    return jax.make_mesh(sizes, ("data", "fsdp", "tensor"), axis_types=types, devices=devices)


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
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    parts = grpo.minibatches * grpo.microbatches * shards
    what = "minibatches * microbatches * the mesh's data * fsdp"
    require_multiple("prompts_per_step", grpo.prompts_per_step, parts, what)
    among = "the devices that sample / the mesh's tensor"
    require_multiple("prompts_per_step", grpo.prompts_per_step, sampling.shape["data"], among)
    require_multiple("examples_per_step", config.sft.examples_per_step, shards, "data * fsdp")
    if config.reward_model.every:
        pairs, parts = config.reward_model.pairs_per_update, grpo.microbatches * shards
        what = "grpo.microbatches * the mesh's data * fsdp"
        require_multiple("reward_model.pairs_per_update", pairs, parts, what)
    require_multiple("embed_dim", model.embed_dim, mesh.shape["fsdp"], "the mesh's fsdp")
    split = ("vocab_size", "num_kv_heads", "num_experts" if model.num_experts else "ffw_dim")
    for name in split:
        require_multiple(name, getattr(model, name), mesh.shape["tensor"], "the mesh's tensor")


@contextlib.contextmanager
def use_mesh(mesh: Mesh):
    """Traces inside see the mesh and the rules; without this, constraints in the policy do
    nothing."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield mesh


def on_each_device(
    run: Callable[..., Array], heads: tuple[int | None, ...], *arguments: Any
) -> Array:
    """`run(*arguments)` with each device given its part: what XLA cannot divide, such as a kernel.

    The first axis of every array is the batch; `heads` says which axis of each argument is of
    heads. The result lies as the first argument. A batch that does not divide, such as the one
    prompt that parameters are initialised with, is computed whole everywhere.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return run(*arguments)
    batch, over_heads = nn.logical_to_mesh_axes(("batch", "heads"), RULES)
    if len(arguments[0]) % int(np.prod([mesh.shape[name] for name in batch])):
        batch = None

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
    shardings = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, RULES)

    def is_box(leaf):
        return isinstance(leaf, nn.LogicallyPartitioned)

    def place(leaf, sharding):
        array = leaf.value if is_box(leaf) else leaf  # `unbox` would constrain what is no array yet
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

    return jax.tree.map(place, boxed, shardings, is_leaf=is_box)


def shardings_of(tree: Any) -> Any:
    """The sharding of every leaf."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def moved(sharding: NamedSharding, mesh: Mesh) -> NamedSharding:
    """The same split on another mesh."""
    return NamedSharding(mesh, sharding.spec)


def sharded_init(init: Callable[[], Any], like: Any) -> Any:
    """What `init` returns, unboxed and made in place on the mesh: no device ever holds it whole."""
    return jax.jit(lambda: nn.unbox(init()), out_shardings=shardings_of(like))()


def row_shards() -> int:
    """Among how many devices the rows of a batch are split, on the mesh in use."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape["data"] * mesh.shape["fsdp"]


def shard_batch(tree: Any, mesh: Mesh) -> Any:
    """Host arrays on the devices, their first axis split over data and fsdp."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
