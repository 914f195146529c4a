"""What a row draws depends on its key, its position and its distribution, and on nothing else.

Random bits are equal bit for bit whatever stands around a row. Tokens are equal bit for bit where
the compiled shapes are; elsewhere logits differ by rounding, and `assert_same_draws` is the rule.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, first_devices
from test_model import pad_left, shared_logits, sharp_params
from test_scoring import table_policy

from grpojax.model import Policy, init_params
from grpojax.sampling import make_sampler, stream_key
from grpojax.sharding import shard_batch, shardings_of, use_mesh, with_shardings
from grpojax.types import Completions, Prompts

SEED, STEP = 7, 3
STOPS = (3, 21, 34)
POLICY, PARAMS = Policy(TINY), sharp_params(TINY)


@pytest.fixture(scope="module")
def prompts():
    """Four left-padded prompts of 2 to 7 tokens."""
    tokens = np.random.default_rng(5).integers(4, 50, (4, 7)).astype(np.int32)
    mask = np.arange(7) >= 7 - np.array([2, 7, 4, 5])[:, None]
    return Prompts(tokens, mask, np.array([11, 5, 29, 8], np.int32))


def rows_of(tree, rows):
    return jax.tree.map(lambda x: x[rows], tree)


@functools.cache
def sampler_of(policy, group_size, completion_length, greedy=False):
    return make_sampler(
        policy, group_size=group_size, completion_length=completion_length, stop_ids=STOPS,
        pad_id=0, greedy=greedy,
    )  # fmt: skip


def sample(prompts, *, policy=POLICY, params=PARAMS, group=4, length=8, greedy=False):
    sampler = sampler_of(policy, group, length, greedy)
    return jax.device_get(sampler(params, prompts, stream_key(SEED, "train", STEP)))


def sample_on_mesh(
    shape, prompts, *, policy=POLICY, params=PARAMS, group=4, length=8, greedy=False, most=None
):
    """The same on the first devices, parameters sharded by the rules, prompts by their rows."""
    mesh = first_devices(*shape)
    boxed = jax.eval_shape(lambda: init_params(policy, jax.random.key(0)))
    placed = jax.device_put(params, shardings_of(with_shardings(boxed, mesh)))
    sampler = make_sampler(
        policy, group_size=group, completion_length=length, stop_ids=STOPS, pad_id=0, greedy=greedy
    )
    with use_mesh(mesh):
        key = stream_key(SEED, "train", STEP)
        return jax.device_get(sampler(placed, shard_batch(prompts, mesh), key, most))


# The bits of a row


@functools.cache
def bits_of(example, member, position):
    """The 64 random bits of one draw, folded by hand from all that they may depend on."""
    key = jax.random.key(SEED)
    for part in (0, STEP, example, member, position):  # 0: the stream "train"
        key = jax.random.fold_in(key, part)
    return np.asarray(jax.random.bits(key, (2,), jnp.uint32))


@functools.cache
def uniform_policy():
    """65536 equal logits: the token drawn is the first 8 bits of one word, then of the other."""
    config = dataclasses.replace(TINY, vocab_size=2**16, num_layers=1, tied_embeddings=False)
    zeros = jax.tree.map(np.zeros_like, sharp_params(config))
    return {"policy": Policy(config), "params": zeros}


def drawn_bits(prompts, group, length):
    """The tokens [B, G, T] of a uniform policy, from the key alone."""
    words = np.array(
        [
            [[bits_of(int(i), m, t) for t in range(length)] for m in range(group)]
            for i in prompts.ids
        ]
    )
    return (words[..., 0] >> 24) * 256 + (words[..., 1] >> 24)


SURROUNDINGS = {
    "as given": lambda p: (p, {}),
    "another order": lambda p: (rows_of(p, [1, 2, 0, 3]), {}),
    "alone": lambda p: (rows_of(p, [2]), {}),
    "twice the rows": lambda p: (
        jax.tree.map(lambda x: np.concatenate([x, x]), p).replace(ids=np.arange(40, 48)),
        {},
    ),
    "more padding": lambda p: (pad_left(p, 6), {}),
    "a larger group": lambda p: (p, {"group": 7}),
    "longer completions": lambda p: (p, {"length": 5}),
}


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
def test_the_bits_of_a_row_are_those_of_its_key_whatever_surrounds_it(surroundings, prompts):
    prompts, changed = SURROUNDINGS[surroundings](prompts)
    shape = {"group": 2, "length": 3} | changed
    sampled = sample(prompts, **uniform_policy(), **shape)
    np.testing.assert_array_equal(sampled.tokens, drawn_bits(prompts, *shape.values()))


@pytest.mark.parametrize("mesh", [(1, 2, 1), (2, 1, 2), (2, 2, 2)], ids=str)
def test_the_bits_of_a_row_are_those_of_its_key_on_any_mesh(mesh, prompts):
    sampled = sample_on_mesh(mesh, prompts, **uniform_policy(), group=2, length=3)
    np.testing.assert_array_equal(sampled.tokens, drawn_bits(prompts, 2, 3))


# The tokens of a row


def assert_same_draws(one, two, greedy=False):
    """The rule for runs of other shapes or meshes; each is (prompts, completions, policy, params).

    At the first position where a row differs, the draw lies within 1e-5 of a boundary of the
    cumulative distribution in both runs, and both tokens touch it (greedy: the two largest logits
    lie within 1e-4). Log-probabilities up to there agree to 1e-5.
    """
    (prompts, first, *_), (_, second, *_) = one, two
    length = min(first.tokens.shape[-1], second.tokens.shape[-1])
    logits = [
        np.float64(jitted_logits(policy, params, prompts, completions.tokens))
        for prompts, completions, policy, params in (one, two)
    ]
    for b, g in np.ndindex(first.tokens.shape[:2]):
        a, c = (jax.tree.map(lambda x, b=b, g=g: x[b, g, :length], run) for run in (first, second))
        differs = (a.tokens != c.tokens) | (a.mask != c.mask)
        t = int(differs.argmax()) if differs.any() else length
        np.testing.assert_allclose(a.logps[:t], c.logps[:t], atol=1e-5)
        if t == length:
            continue
        assert a.mask[t] and c.mask[t], f"row {b, g} ended in one run at {t} and not in the other"
        u = bits_of(int(prompts.ids[b]), g, t)[1] / 2**32  # one block: the second word decides
        for row in (run[b, g, t] for run in logits):
            if greedy:
                gap = np.diff(np.sort(row)[-2:])[0]
                assert gap < 1e-4, f"row {b, g} differs at {t}, where {gap} separates the best two"
                continue
            mass = np.exp(row - row.max())
            upper = np.cumsum(mass / mass.sum())
            for token in (a.tokens[t], c.tokens[t]):
                off = max(upper[token] - mass[token] / mass.sum() - u, u - upper[token])
                assert off < 1e-5, f"row {b, g} differs at {t}, {off} from token {token}"


jitted_logits = jax.jit(shared_logits, static_argnums=0)


def run(prompts, **changed):
    """A sampled batch with what the rule needs of it."""
    return prompts, sample(prompts, **changed), POLICY, PARAMS


def assert_equal_bits(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.parametrize("greedy", [False, True], ids=["sampled", "greedy"])
def test_permuted_prompts_have_the_same_completions_bit_for_bit(greedy, prompts):
    order = [1, 2, 0, 3]
    base = sample(prompts, greedy=greedy)
    assert 0 < base.mask.sum() < base.mask.size  # rows that end and rows that do not
    assert_equal_bits(rows_of(base, order), sample(rows_of(prompts, order), greedy=greedy))


def test_other_neighbours_change_no_bit_of_a_row(prompts):
    others = prompts.replace(
        tokens=(prompts.tokens + 1) % 50, mask=prompts.mask[::-1], ids=prompts.ids + 1
    )
    mixed = jax.tree.map(lambda x, y: np.concatenate([x[:1], y[1:]]), prompts, others)
    assert_equal_bits(rows_of(sample(prompts), [0]), rows_of(sample(mixed), [0]))


def test_another_run_has_the_same_completions_bit_for_bit(prompts):
    again = make_sampler(POLICY, group_size=4, completion_length=8, stop_ids=STOPS, pad_id=0)
    sampled = jax.device_get(again(PARAMS, prompts, stream_key(SEED, "train", STEP)))
    assert_equal_bits(sample(prompts), sampled)


CHANGES = {
    "more padding": lambda p: (pad_left(p, 5), {}),
    "longer": lambda p: (p, {"length": 12}),
    "larger group": lambda p: (p, {"group": 16}),
}


@pytest.mark.parametrize("greedy", [False, True], ids=["sampled", "greedy"])
def test_a_prompt_alone_has_the_same_draws(greedy, prompts):
    batch, alone = sample(prompts, greedy=greedy), rows_of(prompts, [3])
    assert_same_draws(
        (alone, rows_of(batch, [3]), POLICY, PARAMS), run(alone, greedy=greedy), greedy
    )


@pytest.mark.parametrize("change", CHANGES)
def test_other_shapes_give_the_same_draws(change, prompts):
    changed, shape = CHANGES[change](prompts)
    assert_same_draws(run(prompts), run(changed, **shape))


# The rule itself


class Shifted(Policy):
    """A policy that places completions one position too far."""

    def prefill(self, tokens, mask):
        hidden, prefix = super().prefill(tokens, mask)
        return hidden, prefix.replace(length=prefix.length + 1)


def test_the_rule_fails_for_keys_of_the_row_number(prompts):
    wrong = prompts, sample(prompts.replace(ids=np.arange(4, dtype=np.int32))), POLICY, PARAMS
    with pytest.raises(AssertionError, match="differs at 0"):
        assert_same_draws(run(prompts), wrong)


def test_the_rule_fails_for_a_position_too_far(prompts):
    wrong = prompts, sample(prompts, policy=Shifted(TINY)), Shifted(TINY), PARAMS
    with pytest.raises(AssertionError):
        assert_same_draws(run(prompts), wrong)


def test_the_rule_fails_for_padding_that_is_seen(prompts):
    with pytest.raises(AssertionError):
        assert_same_draws(run(prompts), run(prompts.replace(mask=np.ones_like(prompts.mask))))


@pytest.mark.parametrize("distance, same", [(0.0, True), (1e-4, False), (-1e-4, False)])
def test_the_rule_lets_a_tie_pass_and_nothing_wider(distance, same, prompts):
    prompts = rows_of(prompts, [0])
    prompts = prompts.replace(tokens=prompts.tokens % 2)
    boundary = bits_of(int(prompts.ids[0]), 0, 0)[1] / 2**32 + distance
    policy, params = table_policy(np.tile(np.log([boundary, 1 - boundary]), (2, 1)))
    runs = [
        (
            prompts,
            Completions(tokens, np.ones_like(tokens, bool), np.zeros((1, 1, 1))),
            policy,
            params,
        )
        for tokens in np.arange(2, dtype=np.int32).reshape(2, 1, 1, 1)
    ]
    if same:
        assert_same_draws(*runs)
    else:
        with pytest.raises(AssertionError, match="differs at 0"):
            assert_same_draws(*runs)
