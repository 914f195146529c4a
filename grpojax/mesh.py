"""Mesh: the devices of a run along data, fsdp, expert and tensor, and what has to divide."""

import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import AxisType, Mesh

from grpojax.architecture import ModelConfig
from grpojax.checks import require, require_divisor, require_multiple
from grpojax.config import Config, MeshConfig
from grpojax.sharding import AXES, ROWS


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


def mesh_at_hand(config: MeshConfig, count: int) -> MeshConfig:
    """The mesh for `count` devices that only read what was trained on one of `config`: its axes as
    far as they divide, and the rest along data, or along the axis that was -1."""
    sizes = {axis: getattr(config, axis) for axis in reversed(AXES)}
    for axis, size in sizes.items():
        if size > 0:
            sizes[axis] = math.gcd(count, size)
            count //= sizes[axis]
    if -1 not in sizes.values():
        sizes["data"] = -1
    return MeshConfig(**sizes)


def make_sampling_mesh(config: MeshConfig, training: Mesh) -> Mesh:
    """The mesh over the devices that only sample; `training`, if there are none.

    Its parameters are split over expert and tensor as those of `training` are, and not over fsdp.

    Raises:
      ValueError: the devices do not divide by expert and tensor.
    """
    if not config.sampling:
        return training
    require(
        jax.process_count() == 1,
        f"mesh.sampling={config.sampling} needs all devices on one host; leave it at 0 on several",
    )
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
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    require(
        not (on_cpu and config.model.compute_dtype == "bfloat16"),
        "compute_dtype=bfloat16 needs an accelerator (on a CPU, XLA has no bfloat16 product with "
        "float32 sums); use float32",
    )
    check_sizes(mesh.shape, sampling.shape, config)


def check_sizes(mesh: Mapping[str, int], sampling: Mapping[str, int], config: Config) -> None:
    """The same of meshes of these sizes, on whatever devices."""
    grpo = config.grpo
    shards = math.prod(mesh[axis] for axis in ROWS)
    among = math.prod(sampling[axis] for axis in ROWS)
    parts = grpo.minibatches * grpo.microbatches * shards
    what = "minibatches * microbatches * the mesh's data * fsdp * expert"
    require_multiple("prompts_per_step", grpo.prompts_per_step, parts, what)
    what = "the devices that sample / the mesh's tensor"
    require_multiple("prompts_per_step", grpo.prompts_per_step, among, what)
    if config.reward_model.every:
        pairs, parts = config.reward_model.pairs_per_update, grpo.microbatches * shards
        what = "grpo.microbatches * the mesh's data * fsdp * expert"
        require_multiple("reward_model.pairs_per_update", pairs, parts, what)
    check_model_sizes(mesh, config.model)


def check_model_sizes(mesh: Mapping[str, int], model: ModelConfig) -> None:
    """Raises ValueError if the model does not divide over a mesh of these sizes."""
    expert, tensor = mesh["expert"], mesh["tensor"]
    require(
        expert == 1 or model.num_experts > 0,
        f"mesh.expert={expert} needs a mixture of experts (model.num_experts above 0); use fsdp",
    )
    width = mesh["fsdp"] * expert
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
