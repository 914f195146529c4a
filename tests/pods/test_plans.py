"""Programs compiled for TPUs that are not here (`make test-plan`): the smallest table of the docs,
and what must hold of donation, the cache and experts."""

import dataclasses
import re
import sys
from pathlib import Path

import jax
import pytest

from grpojax.arguments import PlanArguments, parse_with_config
from grpojax.blueprint import describe_plan
from grpojax.collectives import traffic_of
from grpojax.config import Config, GRPOConfig, MeshConfig, ModelConfig, SamplingConfig
from grpojax.forecast import parameters_each
from grpojax.kernels import choose_attention
from grpojax.mesh import make_mesh
from grpojax.model import Policy
from grpojax.plan import make_plan
from grpojax.programs import held_bytes, lowered
from grpojax.sharding import USED
from grpojax.topology import devices_of, parse_topology

DOCS = Path(__file__).parents[2] / "docs"
MODEL = ModelConfig(
    vocab_size=2048,
    embed_dim=256,
    ffw_dim=384,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=128,
    compute_dtype="bfloat16",
    max_length=4096,
)
MIXTURE = dataclasses.replace(MODEL, num_experts=16, experts_per_token=2)
SLICE = "v5e-8"


def config_of(model, mesh, completion_length):
    return Config(
        model=model,
        mesh=mesh,
        grpo=GRPOConfig(prompts_per_step=32, group_size=8, beta=0.01),
        sampling=SamplingConfig(prompt_length=128, completion_length=completion_length),
    )


def programs_of(config):
    """Policy, mesh and compiled programs of a config on the slice."""
    jax.config.update("jax_enable_compilation_cache", False)  # as `make_plan`: none loads here
    mesh = make_mesh(config.mesh, devices_of(parse_topology(SLICE)))
    policy = Policy(choose_attention(config.model, mesh.devices.flat[0]))
    found = lowered(config, policy, mesh, stops=(3,))
    return policy, mesh, {name: lower().compile() for name, lower in found.items()}


@pytest.fixture(scope="module")
def dense():
    config = config_of(MODEL, MeshConfig(data=2, fsdp=2, tensor=2), 2048)
    return config, *programs_of(config)


def say(text):
    print(f"\n{text}", file=sys.stderr, flush=True)


def test_whole_completions_are_read_by_splash_attention(dense):
    _, policy, _, programs = dense
    assert policy.config.attention == "splash"
    for name in ("reference", "update"):
        assert "splash" in programs[name].as_text()


def test_the_update_takes_the_place_of_the_whole_state(dense):
    """What is put out beside it are metrics."""
    config, policy, mesh, programs = dense
    memory, state = programs["update"].memory_analysis(), held_bytes(config, policy, mesh)["state"]
    say(f"update: {memory.alias_size_in_bytes} bytes aliased of a state of {state}")
    assert memory.alias_size_in_bytes >= state  # in tiles, so small arrays take more
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes < 2**16


def test_the_cache_is_written_where_it_lies(dense):
    """While it grows, part of the old one is beside the new one, and never all of it."""
    config, policy, mesh, programs = dense
    grpo, rows = config.grpo, config.grpo.prompts_per_step // 4
    columns = config.sampling.completion_length
    cache = rows * grpo.group_size * columns * MODEL.num_layers * MODEL.num_kv_heads
    cache = cache // 2 * MODEL.head_dim * 2 * 2  # over tensor; keys and values, of 2 bytes
    weights = 2 * parameters_each(policy.config, dict(mesh.shape), USED).all
    memory = programs["sample"].memory_analysis()
    beside = memory.peak_memory_in_bytes - memory.argument_size_in_bytes - weights
    say(f"sampler: beside the weights there are {beside / cache:.2f} of a cache of {cache} bytes")
    assert cache <= beside < 1.5 * cache


def test_no_cache_is_sent_when_its_shape_changes(dense):
    change = traffic_of(dense[-1]["sample"].as_text()).change
    say(f"sampler: a change of shape sends {change}")
    assert not change.keys() & {"all-to-all", "collective-permute"}


@pytest.mark.parametrize("name", ["sample", "reference", "update"])
def test_no_experts_are_gathered(name, mixture):
    """A collective may hold a device's own experts, in which fsdp parts the width, but no more."""
    sent = [
        line
        for line in mixture[name].as_text().splitlines()
        if re.search(r" (all-gather|all-to-all|collective-permute)[\w-]*\(", line)
    ]
    experts, width, inner = MIXTURE.num_experts, MIXTURE.embed_dim, MIXTURE.ffw_dim
    shapes = re.compile(rf"\[(?:\d+,)?(\d+),(?:{width},{inner}|{inner},{width})\]")
    held = [int(count) for line in sent for count in shapes.findall(line.split(" = ")[1])]
    say(f"{name}: {len(sent)} gathers; of experts {sorted(set(held)) or 'none'}")
    assert all(count <= experts // 4 for count in held)


@pytest.fixture(scope="module")
def mixture():
    # Not long: libtpu takes minutes over a sort of many assignments.
    return programs_of(config_of(MIXTURE, MeshConfig(data=1, fsdp=2, expert=4), 128))[2]


def test_the_smallest_table_is_the_one_in_the_docs():
    text = "\n".join(path.read_text() for path in sorted(DOCS.glob("pods*.md")))
    command = re.search(r"grpojax plan (configs/gsm8k_qwen2p5_0p5b\.py(?:[^\n]*\\\n)*[^\n]*)", text)
    arguments = parse_with_config(PlanArguments, "plan", command[1].replace("\\\n", " ").split())
    plan = make_plan(arguments.config, parse_topology(arguments.topology), say)
    page = describe_plan(plan)
    say(page)
    assert plan.fits
    compiled = page[page.index("compiled ") : page.index("calculated ")]
    assert [line for line in compiled.splitlines() if line not in text] == []
    assert plan.programs["update"].aliased >= plan.forecast.state
    jax.clear_caches()
