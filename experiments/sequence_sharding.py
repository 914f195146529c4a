"""Sequence sharding: do tokens of long rows, split over the mesh's tensor axis between layers, pay?

    pip install '.[plan]'
    python -m experiments.sequence_sharding

compiles the update of a small model for a v5e-8 that is not here (fsdp 2, tensor 4), with long
prompts and with long completions, whole and split, and prints a device's peak of memory and what it
receives in all collectives. Nothing is run; compiling takes minutes.

Result (2026-11-29): neither pays; LOG.md has the numbers.
"""

import jax
import jax.numpy as jnp

from grpojax import sharding
from grpojax.collectives import traffic_of
from grpojax.config import GRPOConfig, ModelConfig, OptimizerConfig
from grpojax.learner import abstract_state, make_update
from grpojax.mesh import mesh_of
from grpojax.model import Policy
from grpojax.optimizer import make_optimizer
from grpojax.topology import devices_of, parse_topology
from grpojax.types import Completions, GroupBatch, Prompts

B, G = 2, 4
LENGTHS = {"long prompts": (4096, 256), "long completions": (256, 2048)}  # P, T
MODEL = ModelConfig(
    vocab_size=1024, embed_dim=256, ffw_dim=768, num_layers=4, num_heads=8, num_kv_heads=4,
    head_dim=128, max_length=8192, remat=True, compute_dtype="bfloat16",
)  # fmt: skip


def compiled(prompt_length: int, completion_length: int):
    """The update of B groups of G completions of these lengths."""
    devices = devices_of(parse_topology("v5e-8"))
    mesh, policy = mesh_of(devices, fsdp=2, tensor=4), Policy(MODEL)

    def of(*shape, dtype=jnp.float32):
        rows = jax.sharding.PartitionSpec(sharding.ROWS)
        placed = jax.sharding.NamedSharding(mesh, rows)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=placed)

    tokens, mask = (of(B, prompt_length, dtype=dtype) for dtype in (jnp.int32, bool))
    drawn = [of(B, G, completion_length, dtype=d) for d in (jnp.int32, bool, jnp.float32)]
    batch = GroupBatch(
        Prompts(tokens, mask, of(B, dtype=jnp.int32)),
        Completions(*drawn),
        advantages=of(B, G, 1),
        weights=of(B, G, completion_length),
        old_logps=None,
        ref_logps=None,
    )
    with sharding.use_mesh(mesh):
        optimizer = make_optimizer(OptimizerConfig(), 10)
        like = abstract_state(policy, optimizer, mesh, reference=False)
        objective = GRPOConfig(prompts_per_step=B, group_size=G, beta=0.0)
        update = make_update(policy, optimizer, like, objective, temperature=1.0)
        return update.lower(like, {}, batch).compile()


def main():
    jax.config.update("jax_enable_compilation_cache", False)  # it would load what it finds
    for name, lengths in LENGTHS.items():
        for split in ((), ("tensor",)):
            sharding.USED["sequence"] = split
            program = compiled(*lengths)
            peak = program.memory_analysis().peak_memory_in_bytes
            received = traffic_of(program.as_text()).total().bytes
            how = "split" if split else "whole"
            print(f"{name:16}  {how}  peak {peak / 1e6:.0f} MB", end="  ")
            print(f"received {received / 1e6:.0f} MB", flush=True)


if __name__ == "__main__":
    main()
