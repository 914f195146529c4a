"""Meshes: the same update and the same draws on every split of 1, 2, 4 and 8 devices, and what the
programs send."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, first_devices
from jax.sharding import PartitionSpec
from test_invariance import PARAMS, POLICY, assert_same_draws, sample, sample_on_mesh
from test_learner import (  # noqa: F401
    assert_same_update,
    begin,
    plain,
    record,
    run,
    sampler,
    start_params,
)

from grpojax.collectives import amount, traffic_of
from grpojax.config import Config, MeshConfig
from grpojax.mesh import check_mesh, make_mesh, mesh_at_hand, mesh_notes
from grpojax.model import Policy, abstract_params
from grpojax.sampling import make_sampler
from grpojax.sharding import use_mesh
from grpojax.types import Prompts

SIZES = (1, 2, 4, 8)
SPLITS = [
    (data, fsdp, tensor)
    for data in SIZES
    for fsdp in SIZES
    for tensor in SIZES
    if data * fsdp * tensor in SIZES
]


@pytest.mark.parametrize("mesh_shape", SPLITS, ids=str)
def test_the_update_does_not_depend_on_the_mesh(run, record, plain, mesh_shape):
    """Its two heads of keys and 50 tokens do not divide by tensor = 4 and 8."""
    assert_same_update(run([record()], mesh_shape), plain)


@pytest.fixture(scope="module")
def eight():
    """Eight left-padded prompts of 1 to 7 tokens."""
    tokens = np.random.default_rng(6).integers(4, 50, (8, 7)).astype(np.int32)
    mask = np.arange(7) >= 7 - np.array([2, 7, 4, 5, 1, 3, 6, 7])[:, None]
    return Prompts(tokens, mask, np.array([11, 5, 29, 8, 2, 3, 70, 41], np.int32))


@pytest.mark.parametrize("mesh_shape", SPLITS, ids=str)
def test_the_draws_do_not_depend_on_the_mesh(mesh_shape, eight):
    sampled = sample_on_mesh(mesh_shape, eight)
    expected = (eight, sample(eight), POLICY, PARAMS)
    assert_same_draws(expected, (eight, sampled, POLICY, PARAMS))


def compiled_sampler(mesh, **options):
    """Abstract parameters, and the text of the program that samples with them for four prompts."""
    policy = Policy(TINY)
    sampler = make_sampler(policy, **options, stop_ids=(3,), pad_id=0)
    prompts = Prompts(np.ones((4, 7), np.int32), np.ones((4, 7), bool), np.arange(4))
    with use_mesh(mesh):
        params = abstract_params(policy, mesh)
        return params, sampler.lower(params, prompts, jax.random.key(0)).compile().as_text()


def test_decoding_sends_no_parameter():
    """They are gathered once, before the loop over tokens."""
    params, program = compiled_sampler(first_devices(1, 2, 2), group_size=2, completion_length=8)
    kernels = [x.size for x in jax.tree.leaves(params["layers"]) if x.ndim > 2]
    smallest = min(kernels) // TINY.num_layers // 2  # the half of a device
    sent = {"decoding": [], "before": []}
    for line in re.findall(r".*= .*(?:all-gather|all-to-all|collective-permute)\(.*", program):
        when = "decoding" if "while/body/while/body" in line else "before"
        shapes = re.findall(r"\w+\[([\d,]*)\]", line.partition("(%")[0].partition("(f32[")[0])
        sent[when] += [math.prod(int(n) for n in shape.split(",") if n) for shape in shapes]
    assert max(sent["decoding"]) < smallest <= max(sent["before"])


def test_a_cache_stays_where_it_lies_when_its_shape_changes():
    group_size, length = 8, 256
    _, program = compiled_sampler(
        first_devices(1, 2, 2), group_size=group_size, completion_length=length
    )
    change = traffic_of(program).change
    a_layer = 2 * 2 * group_size * length * TINY.head_dim * 4  # of 2 prompts; of one of two heads
    assert change.keys() == {"all-gather", "all-reduce"} and amount(change).bytes < a_layer


def config_of(model: dict, **grpo) -> Config:
    config = Config()
    model = TINY.__class__(**{**vars(TINY), **model})
    return config.__class__(
        **{**vars(config), "model": model, "grpo": config.grpo.__class__(**grpo)}
    )


@pytest.mark.parametrize(
    ("mesh", "model", "said"),
    [
        ({"data": 1, "tensor": 8}, {}, "vocab_size=50 must divide by the mesh's tensor = 8; "
         "try a mesh of 10"),
        ({"data": 1, "tensor": 8}, {"vocab_size": 48, "ffw_dim": 36}, "ffw_dim=36 must divide by "
         "the mesh's tensor = 8; try a mesh of 9"),
        ({"data": 1, "fsdp": 8}, {"embed_dim": 36}, "embed_dim=36 must divide by the mesh's fsdp * "
         "expert = 8; try a mesh of 9"),
        ({"data": 1, "expert": 8}, {}, "mesh.expert=8 needs a mixture of experts"),
        ({"data": 1, "expert": 8}, {"num_experts": 12, "experts_per_token": 2}, "num_experts=12 "
         "must divide by the mesh's expert * tensor = 8; try a mesh of 6"),
    ],
)  # fmt: skip
def test_what_does_not_divide_is_refused_with_the_nearest_size(mesh, model, said):
    mesh, config = make_mesh(MeshConfig(**mesh)), config_of(model, prompts_per_step=16)
    with pytest.raises(ValueError, match=re.escape(said)):
        check_mesh(mesh, mesh, config)


@pytest.mark.parametrize(
    ("trained", "count", "read"),
    [
        ({}, 8, {"data": 8}),
        ({"data": 1, "fsdp": 16, "tensor": 4}, 1, {"data": 1}),
        ({"data": 1, "fsdp": 16, "tensor": 4}, 8, {"fsdp": 2, "tensor": 4}),
        ({"data": 2, "fsdp": 2, "tensor": 2}, 8, {"data": 2, "fsdp": 2, "tensor": 2}),
        ({"data": 1, "fsdp": 4, "expert": 8}, 4, {"expert": 4}),
        ({"data": 1, "fsdp": -1, "tensor": 3}, 8, {"fsdp": 8}),
        ({"data": 1, "fsdp": 2, "sampling": 2}, 8, {"data": 4, "fsdp": 2}),
    ],
)
def test_a_run_is_read_on_other_devices_than_it_was_trained_on(trained, count, read):
    mesh = make_mesh(mesh_at_hand(MeshConfig(**trained), count), jax.devices()[:count])
    assert {axis: size for axis, size in mesh.shape.items() if size > 1} == {
        axis: size for axis, size in read.items() if size > 1
    }


def test_prompts_that_do_not_divide_are_refused_with_the_nearest_number():
    mesh = first_devices(8)
    for prompts, near in ((11, 8), (12, 16), (3, 8)):
        with pytest.raises(ValueError, match=f"prompts_per_step={prompts} must .*; try {near}$"):
            check_mesh(mesh, mesh, config_of({}, prompts_per_step=prompts))


def test_heads_that_do_not_divide_are_whole_on_every_device_and_it_is_said():
    model = TINY.__class__(**{**vars(TINY), "num_heads": 9, "num_kv_heads": 3})
    mesh = first_devices(1, 1, 2)
    params = abstract_params(Policy(model), mesh)["layers"]["attention"]
    for name in ("query", "key", "value"):
        assert params[name]["kernel"].sharding.spec == PartitionSpec(None, None, None, None)
    assert mesh_notes(model, mesh) == (
        "9 heads do not divide by the mesh's tensor=2: each of its devices has all",
        "3 key-value heads do not divide by the mesh's tensor=2: each of its devices has all",
    )
    assert mesh_notes(model, first_devices(1, 1, 3)) == ()


def test_where_there_is_no_mesh_nothing_is_constrained(policy, params):
    logits = jax.jit(lambda p: policy.apply({"params": p}, jnp.ones((1, 3), jnp.int32)))(params)
    assert np.isfinite(logits).all()
