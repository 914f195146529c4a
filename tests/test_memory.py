"""Memory of the compiled update: what a group costs, what is given up, what is never held."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import pytest
from conftest import TINY

from grpojax import scoring, slices
from grpojax.config import GRPOConfig, MeshConfig, OptimizerConfig
from grpojax.learner import abstract_state, make_update
from grpojax.mesh import make_mesh
from grpojax.model import Policy
from grpojax.optimizer import make_optimizer
from grpojax.sharding import use_mesh
from grpojax.types import Completions, GroupBatch, Prompts

B, P, T, V = 2, 64, 64, 509  # a prime vocabulary tells logits from everything else


@functools.cache
def compiled(group):
    """The update of B groups, and the bytes of its state."""
    config = dataclasses.replace(TINY, vocab_size=V, max_length=P + T)
    optimizer, mesh = make_optimizer(OptimizerConfig(), 10), make_mesh(MeshConfig())

    def of(shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype)

    rows = (B, group, T)
    batch = GroupBatch(
        Prompts(of((B, P), jnp.int32), of((B, P), bool), of((B,), jnp.int32)),
        Completions(of(rows, jnp.int32), of(rows, bool), of(rows)),
        advantages=of((B, group, 1)),
        weights=of(rows),
        old_logps=None,
        ref_logps=of(rows),
    )
    with use_mesh(mesh):
        like = abstract_state(Policy(config), optimizer, mesh, reference=True)
        objective = GRPOConfig(prompts_per_step=B, group_size=16)
        update = make_update(Policy(config), optimizer, like, objective, temperature=1.0)
        program = update.lower(like, {}, batch).compile()
    return program, sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(like))


@pytest.fixture(autouse=True)
def chunked(monkeypatch):
    """Logits of a few tokens and a few members at a time, as with vocabularies and batches of any
    size."""
    monkeypatch.setattr(scoring, "CHUNK_ELEMENTS", 2**14)
    monkeypatch.setattr(slices, "SLICE_TOKENS", 2**9)


def test_temporaries_grow_with_the_tokens_that_are_read_and_not_with_repeated_prompts():
    one, sixteen = (compiled(group)[0].memory_analysis() for group in (1, 16))
    tokens = (P + 16 * T) / (P + T)
    assert sixteen.temp_size_in_bytes <= 1.05 * tokens * one.temp_size_in_bytes
    assert tokens < 0.6 * 16  # so 16 copies of the prompt would have been seen


def test_the_whole_state_is_updated_in_place():
    program, state_bytes = compiled(16)
    assert state_bytes <= program.memory_analysis().alias_size_in_bytes <= 1.01 * state_bytes + 64


def test_no_buffer_holds_the_logits_of_all_completions():
    text = compiled(16)[0].as_text()
    shapes = [tuple(map(int, dims.split(","))) for dims in re.findall(r"\[(\d[\d,]*)\]", text)]
    sizes = [functools.reduce(int.__mul__, shape) for shape in shapes if V in shape]
    assert V * TINY.embed_dim in sizes  # the embedding: logits would have been seen
    assert max(sizes) < B * 16 * T * V / 8
