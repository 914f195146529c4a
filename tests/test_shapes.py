"""Shapes of decoding: the same completions whatever the rows and the columns decoded in."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY
from test_invariance import PARAMS, POLICY, SEED, STEP, STOPS, assert_same_draws, sample_on_mesh
from test_invariance import prompts as prompts
from test_scoring import equations

from grpojax import sampling
from grpojax.model import Policy
from grpojax.sampling import decode_shapes, make_sampler, stream_key

LENGTH, GROUP = 24, 8


def test_the_shapes_of_some_groups():
    assert decode_shapes(128, 16) == ([], [(16, 128)])
    assert decode_shapes(512, 16) == (
        [(12, 128), (16, 64), (16, 128)],
        [(6, 256), (4, 512), (10, 256), (8, 384), (16, 512)],
    )
    assert decode_shapes(300, 1) == (
        [(1, 64), (1, 75)],
        [(1, 128), (1, 150), (1, 225), (1, 256), (1, 300)],
    )


@pytest.mark.parametrize("length", [1, 127, 129, 255, 256, 1000, 5000])
@pytest.mark.parametrize("group", [1, 2, 5, 16, 64])
def test_few_loops_are_compiled_and_the_last_shape_holds_everything(length, group):
    short, long = decode_shapes(length, group)
    assert len(short) + len(long) == len({*short, *long}) <= 8
    assert long[-1] == (group, length)
    assert all(0 < rows <= group for rows, _ in short + long)
    assert all(4 * columns <= length for _, columns in short)
    assert all(length < 4 * columns <= 4 * length for _, columns in long)


def sampler_of(shortest, monkeypatch, **options):
    monkeypatch.setattr(sampling, "SHORTEST", shortest)
    shape = {"group_size": GROUP, "completion_length": LENGTH} | options
    return make_sampler(POLICY, stop_ids=STOPS, pad_id=0, **shape)


@pytest.fixture(scope="module")
def most():
    """Lengths [B, G] of which few are long, as those of answers."""
    few = np.array([[1, 2, 3, 5, 7, 8, 9, 24]] * 4)
    few[1] = [1, 1, 1, 1, 1, 1, 1, 1]
    few[3] = [1, 6, 12, 13, 24, 2, 20, 3]
    return jnp.asarray(few)


@pytest.mark.parametrize("greedy", [False, True], ids=["sampled", "greedy"])
def test_all_shapes_give_the_same_draws(greedy, prompts, most, monkeypatch):
    """Through shapes of 8, 6, 5, 4, 3 and 2 rows against one loop over all."""
    key = stream_key(SEED, "train", STEP)
    one, many = (
        jax.device_get(sampler_of(shortest, monkeypatch, greedy=greedy)(PARAMS, prompts, key, most))
        for shortest in (LENGTH, 4)
    )
    assert decode_shapes(LENGTH, GROUP) == (
        [(8, 4), (8, 6)],
        [(2, 24), (3, 16), (4, 18), (5, 12), (6, 8), (8, 24)],
    )
    assert (one.mask.sum(-1) <= most).all() and (one.mask.sum(-1) == most).any()
    assert_same_draws((prompts, one, POLICY, PARAMS), (prompts, many, POLICY, PARAMS), greedy)
    assert (many.tokens[~many.mask] == 0).all() and (many.logps[~many.mask] == 0).all()


@pytest.mark.parametrize("mesh", [(1, 2, 2), (1, 1, 4), (2, 2, 1)], ids=str)
def test_all_shapes_give_the_same_draws_on_any_mesh(mesh, prompts, most, monkeypatch):
    """Where each device moves its heads of the caches, and where two heads lie on four devices."""
    one = jax.device_get(
        sampler_of(LENGTH, monkeypatch)(PARAMS, prompts, stream_key(SEED, "train", STEP), most)
    )
    monkeypatch.setattr(sampling, "SHORTEST", 4)
    many = sample_on_mesh(mesh, prompts, group=GROUP, length=LENGTH, most=most)
    assert_same_draws((prompts, one, POLICY, PARAMS), (prompts, many, POLICY, PARAMS))


def test_completions_end_after_as_many_tokens_as_they_may_have(prompts, most, monkeypatch):
    sampler = make_sampler(
        POLICY, group_size=GROUP, completion_length=LENGTH, stop_ids=(), pad_id=0
    )
    sampled = sampler(PARAMS, prompts, stream_key(SEED, "train", STEP), most)
    np.testing.assert_array_equal(sampled.mask, np.arange(LENGTH) < np.asarray(most)[..., None])


def loops(jaxpr):
    """The while loops that decode in one shape: those whose bodies have no further loop in them."""
    for equation, _ in equations(jaxpr):
        if equation.primitive.name == "while":
            inner = [e.primitive.name for e, _ in equations(equation.params["body_jaxpr"].jaxpr)]
            shapes = [v.aval.shape for v in equation.outvars if len(v.aval.shape) == 4]
            if shapes and "while" not in inner:
                yield shapes


def test_caches_hold_the_rows_and_columns_of_their_shape(prompts, monkeypatch):
    sampler = sampler_of(4, monkeypatch)
    program = jax.make_jaxpr(sampler)(PARAMS, prompts, stream_key(SEED, "train", STEP)).jaxpr
    found = list(loops(program))
    assert all(len(shapes) == 2 * TINY.num_layers for shapes in found)
    tokens = TINY.num_kv_heads * TINY.head_dim
    sizes = sorted(math.prod(shapes[0]) // tokens for shapes in found)
    short, long = decode_shapes(LENGTH, GROUP)
    assert sizes == sorted(4 * rows * columns for rows, columns in short + long)


def nested(equation) -> int:
    """How many while loops deep an equation is, itself counted."""
    if equation.primitive.name != "while":
        return 0
    return 1 + max(map(nested, equation.params["body_jaxpr"].jaxpr.eqns), default=0)


def test_what_is_kept_of_completions_is_their_keys_and_values_and_no_more(prompts, monkeypatch):
    """B G T tokens, each with a key and a value a layer, and B P of the prompts; while completions
    are short, B G T / 4."""
    sampler = sampler_of(4, monkeypatch)
    program = jax.make_jaxpr(sampler)(PARAMS, prompts, stream_key(SEED, "train", STEP)).jaxpr
    each = TINY.num_kv_heads * TINY.head_dim
    kept = []
    for equation, _ in equations(program):
        if nested(equation) == 3:  # in turn; one turn; tokens
            kept.append([math.prod(v.aval.shape) for v in equation.outvars if v.aval.ndim == 5])
            prefixes = [math.prod(v.aval.shape) for v in equation.invars if v.aval.ndim == 4]
            assert prefixes.count(prompts.tokens.size * each) == 2 * TINY.num_layers
    assert kept == [[4 * GROUP * tokens * each] * (2 * TINY.num_layers) for tokens in (6, 24)]


def test_completions_of_any_lengths_run_what_the_first_ones_compiled(prompts, monkeypatch):
    rng = np.random.default_rng(0)
    sampler = sampler_of(4, monkeypatch)
    for step in range(6):
        most = jnp.asarray(rng.integers(1, LENGTH + 1, (4, GROUP)))
        sampler(PARAMS, prompts, stream_key(SEED, "train", step), most)
    assert sampler._cache_size() == 1


def test_a_policy_of_windows_sees_the_same_columns_in_every_shape(prompts, most, monkeypatch):
    windowed = dataclasses.replace(TINY, sliding_window=5, local_layers=(0,))
    policy = Policy(windowed)
    key = stream_key(SEED, "train", STEP)

    def sample(shortest):
        monkeypatch.setattr(sampling, "SHORTEST", shortest)
        sampler = make_sampler(
            policy, group_size=GROUP, completion_length=LENGTH, stop_ids=STOPS, pad_id=0
        )
        return jax.device_get(sampler(PARAMS, prompts, key, most))

    assert_same_draws(
        (prompts, sample(LENGTH), policy, PARAMS), (prompts, sample(4), policy, PARAMS)
    )
