"""Programs: what a step of a config runs on the devices, lowered for a mesh without an array.

They are those of `train`: the sampler, the scorer of the reference or of the old policy, and the
update, with the same shapes, shardings and donations.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from grpojax.config import Config
from grpojax.learner import abstract_state, make_update
from grpojax.lora import combine, split
from grpojax.model import Policy, abstract_params
from grpojax.optimizer import make_optimizer
from grpojax.sampling import make_sampler, stream_key
from grpojax.scoring import make_scorer
from grpojax.sharding import ROWS, use_mesh
from grpojax.types import Completions, GroupBatch, Params, Prompts, TrainState


class Arguments(NamedTuple):
    """What the programs of a step are given, without the arrays."""

    state: TrainState
    frozen: Params
    batch: GroupBatch


def abstract_arguments(config: Config, policy: Policy, mesh: Mesh) -> Arguments:
    """Of a step of `config`, as they lie on `mesh`."""
    grpo, sampling = config.grpo, config.sampling
    groups = grpo.prompts_per_step, grpo.group_size
    per_token = grpo.supervision == "process" or grpo.top_entropy < 1 or grpo.kl == "k1_reward"

    def rows(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(ROWS)))

    prompts = (grpo.prompts_per_step, sampling.prompt_length)
    tokens = (*groups, sampling.completion_length)
    logps = rows(tokens, jnp.float32)
    batch = GroupBatch(
        Prompts(rows(prompts, jnp.int32), rows(prompts, bool), rows(prompts[:1], jnp.int32)),
        Completions(rows(tokens, jnp.int32), rows(tokens, bool), logps),
        advantages=logps if per_token else rows((*groups, 1), jnp.float32),
        weights=logps,
        old_logps=None if grpo.on_policy else logps,
        ref_logps=logps if grpo.beta > 0 else None,
    )
    optimizer = make_optimizer(config.optimizer, config.updates)
    state = abstract_state(policy, optimizer, mesh, reference=grpo.beta > 0)
    _, frozen = split(abstract_params(policy, mesh))
    return Arguments(state, kept_frozen(frozen, config), batch)


def kept_frozen(frozen: Params, config: Config) -> Params:
    """The base of adapters in the dtype that it is kept in (`lora.freeze`)."""
    if config.model.base_dtype == "float32":
        return frozen
    return jax.tree.map(lambda x: x.update(dtype=jnp.dtype(config.model.base_dtype)), frozen)


def lowered(
    config: Config, policy: Policy, mesh: Mesh, stops: tuple[int, ...]
) -> dict[str, Callable[[], jax.stages.Lowered]]:
    """The programs by the name of their phase, each lowered when it is called."""
    given = abstract_arguments(config, policy, mesh)
    state, frozen, batch = given
    params = combine(frozen, state.params)
    grpo, sampling = config.grpo, config.sampling
    sampler = make_sampler(
        policy,
        group_size=grpo.group_size,
        completion_length=sampling.completion_length,
        stop_ids=stops,
        pad_id=0,
        temperature=sampling.temperature,
    )
    key = jax.eval_shape(lambda: stream_key(config.seed, "train", 0))
    programs = {"sample": (sampler, (params, batch.prompts, key))}
    if grpo.beta > 0 or (not grpo.on_policy and grpo.old_logps == "rescored"):
        scorer = make_scorer(policy, temperature=sampling.temperature)
        scored = params if state.ref_params is None else combine(frozen, state.ref_params)
        drawn = batch.completions.tokens, batch.completions.mask
        programs["reference"] = scorer, (scored, batch.prompts, *drawn)
    optimizer = make_optimizer(config.optimizer, config.updates)
    update = make_update(policy, optimizer, state, grpo, temperature=sampling.temperature)
    programs["update"] = update, given

    def lower(program: Callable, arguments: tuple) -> Callable[[], jax.stages.Lowered]:
        def on_mesh() -> jax.stages.Lowered:
            with use_mesh(mesh):
                return program.lower(*arguments)

        return on_mesh

    return {name: lower(*program) for name, program in programs.items()}


def held_bytes(config: Config, policy: Policy, mesh: Mesh) -> dict[str, int]:
    """Bytes on each device of the state, its frozen base and its parameters alone."""
    given = abstract_arguments(config, policy, mesh)
    return {
        "state": each_bytes(given.state) + each_bytes(given.frozen),
        "params": each_bytes(given.state.params) + each_bytes(given.frozen),
    }


def each_bytes(tree: Any) -> int:
    """Bytes of abstract arrays on each device; of scalars without a place, whole."""

    def one(x: jax.ShapeDtypeStruct) -> int:
        shape = x.sharding.shard_shape(x.shape) if x.sharding is not None else x.shape
        return math.prod(shape) * x.dtype.itemsize

    return sum(map(one, jax.tree.leaves(tree)))
