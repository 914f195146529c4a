"""The arithmetic of a step, against abstract arrays and numbers that one can do by hand."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from grpojax.config import Config, GRPOConfig, MeshConfig, ModelConfig, SamplingConfig
from grpojax.forecast import (
    Device,
    boxed_params,
    decoding,
    forecast,
    parameters_each,
    state_bytes,
    weights_used,
)
from grpojax.learner import abstract_state
from grpojax.mesh import make_mesh
from grpojax.model import Policy, abstract_params
from grpojax.optimizer import make_optimizer
from grpojax.programs import abstract_arguments, each_bytes, held_bytes
from grpojax.roofline import Roofline
from grpojax.sharding import STORED, USED
from grpojax.work import Lengths

MODEL = ModelConfig(
    vocab_size=64,
    embed_dim=32,
    ffw_dim=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    tied_embeddings=False,
)
MIXTURE = dataclasses.replace(MODEL, num_experts=8, experts_per_token=2)
ADAPTED = dataclasses.replace(MODEL, lora_rank=4)
MESHES = [(8, 1, 1, 1), (2, 2, 1, 2), (1, 8, 1, 1), (1, 2, 2, 2), (1, 2, 4, 1)]
DEVICE = Device(Roofline(1e12, 1e11, False), 1e10, None)


def config_of(model=MODEL, **grpo):
    sizes = {"prompts_per_step": 16, "group_size": 4} | grpo
    return Config(
        model=model,
        init="base" if model.lora_rank else "",
        grpo=GRPOConfig(**sizes),
        sampling=SamplingConfig(prompt_length=16, completion_length=32),
    )


def sizes_of(*sizes):
    return dict(zip(("data", "fsdp", "expert", "tensor"), sizes))


@pytest.mark.parametrize(
    ("model", "sizes"),
    [(model, sizes) for model in (MODEL, ADAPTED) for sizes in MESHES if sizes[2] == 1]
    + [(MIXTURE, sizes) for sizes in MESHES],
    ids=lambda value: str(value) if isinstance(value, tuple) else None,
)
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_state_bytes_are_those_of_the_abstract_arrays(model, sizes, beta):
    config = config_of(model, beta=beta)
    mesh = make_mesh(MeshConfig(**sizes_of(*sizes)))
    held = held_bytes(config, Policy(model), mesh)
    assert state_bytes(config, sizes_of(*sizes)) == held["state"]


def test_moments_in_bfloat16_halve_one_of_three_copies():
    whole = config_of(beta=0.0)
    half = dataclasses.replace(
        whole, optimizer=dataclasses.replace(whole.optimizer, moment_dtype="bfloat16")
    )
    alone = sizes_of(1, 1, 1, 1)
    count = sum(math.prod(getattr(x, "value", x).shape) for _, x in boxed_params(MODEL))
    assert state_bytes(whole, alone) == 12 * count + 20
    assert state_bytes(half, alone) == 10 * count + 20


@pytest.mark.parametrize("sizes", MESHES[:3], ids=str)
def test_a_device_keeps_what_the_rules_say(sizes):
    mesh = make_mesh(MeshConfig(**sizes_of(*sizes)))
    kept = each_bytes(abstract_params(Policy(MODEL), mesh))
    assert parameters_each(MODEL, sizes_of(*sizes), STORED).all * 4 == kept


def test_where_they_are_used_parameters_are_split_over_tensor_and_experts_alone():
    whole = parameters_each(MIXTURE, sizes_of(1, 1, 1, 1), USED)
    assert parameters_each(MIXTURE, sizes_of(2, 4, 1, 1), USED) == whole
    split = parameters_each(MIXTURE, sizes_of(1, 1, 4, 2), USED)
    assert split.experts == whole.experts // 8


def test_a_step_without_reference_has_no_such_phase():
    alone = sizes_of(1, 1, 1, 1)
    assert set(forecast(config_of(beta=0.0), alone).phases) == {"sample", "update"}
    assert "reference" in forecast(config_of(beta=0.1), alone).phases


def test_one_device_receives_nothing_and_more_do():
    for phase in forecast(config_of(), sizes_of(1, 1, 1, 1)).phases.values():
        assert (phase.received, phase.collectives) == (0, 0)
    for sizes in MESHES[1:3]:
        told = forecast(config_of(), sizes_of(*sizes)).phases
        assert all(phase.received > 0 for phase in told.values())


def test_an_update_receives_gradients_of_every_part():
    """Twice what a device keeps, less its own eighth, of each of 2 parts and its prompts."""
    alone, split = sizes_of(1, 1, 1, 1), sizes_of(8, 1, 1, 1)
    weights = parameters_each(MODEL, alone, USED).all * 4
    told = forecast(config_of(microbatches=2), split)
    slices = 1  # all four members of a group are one
    assert told.phases["update"].received == 2 * (1 + slices) * 2 * (weights * 7 // 8)


def test_devices_along_tensor_receive_two_sums_a_layer_and_pass_and_the_logits():
    """A sum goes around twice: of two devices each receives it once. Parameters stay apart."""
    tokens = 16 * (16 + 4 * 32)
    a_pass = 2 * 2 * tokens * 32 * 4
    told = forecast(config_of(beta=0.1), sizes_of(1, 1, 1, 2)).phases
    assert told["reference"].received == a_pass
    assert told["sample"].received == a_pass + 32 * (16 * 4 * 64 * 4) // 4
    assert told["update"].received == 3 * a_pass
    again = forecast(config_of(dataclasses.replace(MODEL, remat=True)), sizes_of(1, 1, 1, 2))
    assert again.phases["update"].received == 4 * a_pass


def test_devices_along_expert_receive_tokens_and_no_experts():
    """The tokens of three others, and what became of its own from them, in each layer."""
    used = parameters_each(MIXTURE, sizes_of(1, 1, 4, 1), USED)
    tokens, plain = 4 * (16 + 4 * 32), (used.all - used.experts) * 4
    told = forecast(config_of(MIXTURE, beta=0.1), sizes_of(1, 1, 4, 1)).phases["reference"]
    assert told.received == 2 * (plain * 3 // 4) + 2 * 3 * 2 * tokens * 32 * 4


def test_heads_that_do_not_divide_are_computed_and_their_cache_read_by_all():
    odd = dataclasses.replace(MODEL, num_heads=9, num_kv_heads=3)
    alone, split = sizes_of(1, 1, 1, 1), sizes_of(1, 1, 1, 2)
    one, two = (
        forecast(config_of(odd), sizes).phases["update"].work.flops for sizes in (alone, split)
    )
    assert one / 2 < two < one
    lengths = Lengths(np.full(16, 16), np.full((16, 4), 32))
    weights = [weights_used(odd, sizes) for sizes in (alone, split)]
    read = [decoding(odd, lengths, sizes).bytes for sizes in (alone, split)]
    assert read[0] - read[1] == 32 * (weights[0] - weights[1])


def test_devices_share_the_work_of_a_batch():
    one = forecast(config_of(), sizes_of(1, 1, 1, 1)).phases["update"].work.flops
    for sizes in MESHES:
        assert forecast(config_of(), sizes_of(*sizes)).phases["update"].work.flops * 8 == one


def test_seconds_are_the_slower_of_computing_and_moving_and_then_what_is_received():
    phase = forecast(config_of(), sizes_of(1, 8, 1, 1)).phases["sample"]
    work = max(phase.work.flops / 1e12, phase.work.bytes / 1e11)
    links = phase.received / 1e10 + phase.collectives * 1e-6
    assert phase.seconds(DEVICE) == pytest.approx(work + links)


def test_the_cache_is_most_of_what_sampling_holds():
    """2 layers x 2 heads x (8 keys + 128 lanes of values) x 4 bytes, 3/2 of it while it grows."""
    told = forecast(config_of(), sizes_of(1, 1, 1, 1))
    token = 2 * 2 * (8 + 128) * 4
    cache = 16 * 4 * 32 * token * 3 // 2 + 16 * 16 * token
    weights = parameters_each(MODEL, sizes_of(1, 1, 1, 1), USED).all * 4
    assert told.sample - told.state == cache + weights + 16 * 4 * 64 * 8


def test_more_microbatches_need_less_memory():
    needs = [
        forecast(config_of(microbatches=parts, beta=0.0), sizes_of(1, 1, 1, 1)).update
        for parts in (1, 2, 4, 8, 16)
    ]
    assert needs == sorted(needs, reverse=True)
    assert needs[0] > needs[-1]


def test_the_programs_are_given_what_training_gives_them():
    config = config_of(beta=0.04, minibatches=2)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    policy = Policy(MODEL)
    given = abstract_arguments(config, policy, mesh)
    like = abstract_state(
        policy, make_optimizer(config.optimizer, config.updates), mesh, reference=True
    )
    assert jax.tree.map(lambda x: (x.shape, x.dtype), given.state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), like
    )
    assert given.batch.completions.tokens.shape == (16, 4, 32)
    assert given.batch.old_logps is not None  # two minibatches: the ratio is not 1
    assert given.batch.ref_logps is not None
    assert given.frozen == {}
