"""Meshes and microbatches of a config: which there are, which is first, and what `auto` picks."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from grpojax.config import Config, GRPOConfig, MeshConfig, ModelConfig, SamplingConfig
from grpojax.forecast import Device, forecast
from grpojax.models import qwen2p5_7b, qwen3_30b_a3b
from grpojax.plan import device_of
from grpojax.roofline import Roofline
from grpojax.run import open_run, start_run
from grpojax.search import (
    MOST_TENSOR,
    Candidate,
    device_at_hand,
    meshes,
    order,
    part_counts,
    search,
    with_mesh,
)
from grpojax.sharding import AXES
from grpojax.topology import parse_topology
from tests.test_forecast import config_of

ROOMY = Device(Roofline(1e12, 1e11, False), 1e10, None)
LONG = SamplingConfig(prompt_length=1024, completion_length=4096)


def large(model, **grpo):
    sizes = {"prompts_per_step": 64, "group_size": 16, "beta": 0.0} | grpo
    model = dataclasses.replace(model, compute_dtype="bfloat16", remat=True)
    return Config(model=model, sampling=LONG, grpo=GRPOConfig(**sizes))


@pytest.mark.parametrize("devices", [1, 8, 12])
def test_meshes_are_all_ways_to_multiply_to_the_devices(devices):
    found = [tuple(sizes.values()) for sizes in meshes(devices)]
    assert len(set(found)) == len(found)
    numbers = range(1, devices + 1)
    whole = [
        (a, b, c, d)
        for a in numbers
        for b in numbers
        for c in numbers
        for d in numbers
        if a * b * c * d == devices
    ]
    assert set(found) == set(whole)
    assert max(sizes["tensor"] for sizes in meshes(128)) == MOST_TENSOR


def test_microbatches_leave_each_device_whole_prompts():
    config = config_of(prompts_per_step=24, minibatches=2)
    sizes = {"data": 2, "fsdp": 2, "expert": 1, "tensor": 2}
    assert part_counts(config, sizes) == [1, 3]
    assert part_counts(config, {**sizes, "data": 16}) == []


def test_what_is_found_a_run_would_take():
    for each in search(config_of(), 8, ROOMY):
        assert np.prod(list(each.sizes.values())) == 8
        assert each.sizes["expert"] == 1  # no mixture
        assert each.forecast == forecast(each.config, each.sizes)


def test_what_fits_comes_first_and_then_the_quickest():
    v5e = parse_topology("v5e-64")
    found = search(large(qwen2p5_7b()), v5e.devices, device_of(v5e))
    fits = [each.fits for each in found]
    assert fits == sorted(fits, reverse=True)
    assert True in fits
    assert False in fits
    seconds = [float(f"{each.seconds:.2g}") for each in found if each.fits]
    assert seconds == sorted(seconds)
    # 12 bytes a parameter of 7.6 billion, on devices of 16 GiB: never whole.
    assert all(each.sizes["fsdp"] * each.sizes["tensor"] >= 8 for each in found if each.fits)


def test_of_meshes_as_quick_the_plainest_is_first():
    told = forecast(config_of(), {"data": 8, "fsdp": 1, "expert": 1, "tensor": 1})
    found = [
        Candidate(config_of(microbatches=parts), dict(zip(AXES, sizes)), told, 1.0, True)
        for sizes in ((8, 1, 1, 1), (2, 4, 1, 1), (4, 1, 1, 2))
        for parts in (1, 2)
    ]
    assert sorted(reversed(found), key=order) == found


def test_more_memory_lets_more_fit():
    v5e, v5p = parse_topology("v5e-8"), parse_topology("v5p-16")
    few, many = (
        sum(each.fits for each in search(large(qwen2p5_7b()), t.devices, device_of(t)))
        for t in (v5e, v5p)
    )
    assert few == 0 < many


def test_devices_that_only_sample_divide_by_the_axes_that_they_share():
    config = dataclasses.replace(config_of(), mesh=MeshConfig(sampling=2))
    found = search(config, 4, ROOMY)
    assert {each.sizes["tensor"] for each in found} == {1, 2}


def test_experts_are_split_where_there_are_many():
    v5p = parse_topology("v5p-64")
    config = large(qwen3_30b_a3b(), microbatches=2)
    best = search(config, v5p.devices, device_of(v5p), microbatches=False)[0]
    assert best.fits
    assert best.sizes["expert"] > 1


def test_a_mesh_that_is_named_is_left_alone():
    config = config_of()
    assert with_mesh(config, jax.devices()) == (config, ())


def test_auto_takes_the_first_that_is_found_and_says_by_which_rates():
    config = dataclasses.replace(config_of(), mesh=MeshConfig(auto=True))
    picked, (note,) = with_mesh(config, jax.devices())
    best = search(config, 8, device_at_hand(jax.devices()[0]), microbatches=False)[0]
    assert picked.mesh == dataclasses.replace(config.mesh, **best.sizes)
    assert picked.grpo == config.grpo
    assert "rates taken as usual" in note  # a CPU's are not published
    assert with_mesh(picked, jax.devices())[0] == picked  # so a run that goes on has the same


def test_auto_refuses_a_batch_that_no_mesh_divides():
    config = dataclasses.replace(config_of(prompts_per_step=3), mesh=MeshConfig(auto=True))
    model = ModelConfig(vocab_size=5, embed_dim=3, num_kv_heads=1, ffw_dim=7)
    with pytest.raises(ValueError, match=r"mesh\.auto finds no mesh of 8 devices"):
        with_mesh(dataclasses.replace(config, model=model), jax.devices())


def test_a_run_writes_the_mesh_that_was_picked(tmp_path):
    model = ModelConfig(vocab_size=264, embed_dim=16, ffw_dim=16, num_layers=1)
    config = dataclasses.replace(
        config_of(model), tokenizer="bytes", mesh=MeshConfig(auto=True), sampling=SamplingConfig()
    )
    run = open_run(config, tmp_path / "run")
    start_run(run, allow_config_change=False)
    mesh = json.loads((tmp_path / "run" / "config.json").read_text())["config"]["mesh"]
    assert mesh["auto"] is True
    assert {axis: mesh[axis] for axis in run.mesh.shape} == dict(run.mesh.shape)
    assert any(note.startswith("mesh.auto picked") for note in run.task.notes)
    start_run(open_run(config, tmp_path / "run"), allow_config_change=False)  # it goes on
