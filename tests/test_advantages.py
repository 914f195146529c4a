"""Group advantages in float64, against worked numbers and by invariance."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpojax.advantages import group_advantages
from grpojax.config import GRPOConfig

steady = settings(derandomize=True, max_examples=30, deadline=None, database=None)
close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-9)
fast_advantages = jax.jit(group_advantages, static_argnames=("advantage", "ddof", "std_epsilon"))


@pytest.fixture(autouse=True, scope="module")
def float64():
    with jax.enable_x64(True):
        yield


def advantages_of(rewards, valid=None, **options):
    valid = np.ones(len(rewards), bool) if valid is None else np.array(valid)
    return np.asarray(fast_advantages(jnp.asarray(rewards), jnp.asarray(valid), **options))


@pytest.mark.parametrize(
    ("options", "right", "wrong"),
    [
        ({"std_epsilon": 1e-300}, 1.207614728849, -0.724568837309),
        ({"std_epsilon": 1e-4}, 1.207381440591, -0.724428864355),
        ({"std_epsilon": 1e-6}, 1.207612395520, -0.724567437312),
        ({"std_epsilon": 1e-8}, 1.207614705516, -0.724568823309),
        ({"advantage": "mean"}, 0.625, -0.375),
    ],
)
def test_advantages_of_three_right_among_eight(options, right, wrong):
    rewards = np.array([1.0, 0, 0, 1, 1, 0, 0, 0])
    close(advantages_of(rewards, **options), np.where(rewards == 1, right, wrong))


def test_advantages_of_four_right_among_sixteen():
    rewards = np.repeat([1.0, 0], [4, 12])
    expected = np.repeat([1.676676066959, -0.558892022320], [4, 12])
    close(advantages_of(rewards, std_epsilon=1e-4), expected)


def test_advantages_of_a_composite_reward():
    expected = [1.3821903305, -0.0294083049, -0.3823079638, -0.9704740619]
    actual = advantages_of([3, 1.8, 1.5, 1], std_epsilon=1e-4)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=6e-11)


rewards_lists = st.lists(st.floats(-10, 10, allow_subnormal=False), min_size=6, max_size=6).filter(
    lambda r: np.ptp(r) > 1e-2
)


@steady
@given(rewards_lists, st.floats(0.1, 10), st.floats(-5, 5), st.permutations(range(6)))
def test_advantages_sum_to_zero_ignore_shift_and_scale_and_follow_permutations(r, a, b, order):
    r, everyone = np.array(r), jnp.ones(6, bool)
    group = functools.partial(fast_advantages, valid=everyone, std_epsilon=1e-12)
    mean = functools.partial(fast_advantages, valid=everyone, advantage="mean")
    base, plain = np.asarray(group(r)), np.asarray(mean(r))
    close([base.sum(), plain.sum()], 0)
    close(group(a * r + b), base, atol=1e-8)
    close(mean(a * r + b), a * plain)
    close(group(r[np.array(order)]), base[np.array(order)])
    close(base, (r - r.mean()) / (r.std(ddof=1) + 1e-12))


def test_equal_rewards_of_any_value_give_exactly_zero_in_float32():
    values = np.array([0.0, 0.1, 0.3, 0.7, 1.1, 2.3, -0.7, 1e-30, 1e20, 1 / 3], np.float32)
    one = functools.partial(group_advantages, std_epsilon=1e-8)
    both = jax.jit(jax.vmap(lambda *group: (one(*group), one(*group, advantage="mean"))))
    for group in (2, 3, 7, 8, 12, 16, 64):
        rewards = jnp.asarray(np.repeat(values[:, None], group, axis=1))
        for advantages in both(rewards, jnp.ones(rewards.shape, bool)):
            assert advantages.dtype == jnp.float32
            np.testing.assert_array_equal(advantages, 0.0)


def test_a_small_spread_of_rewards_is_not_swallowed_by_a_floor():
    rewards = 1 + 1e-5 * np.arange(8)
    expected = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-6)
    close(advantages_of(rewards, std_epsilon=1e-6), expected)
    ranks = (np.arange(8) - 3.5) / np.arange(8).std(ddof=1)
    single = advantages_of(rewards.astype(np.float32), std_epsilon=1e-12)
    np.testing.assert_allclose(single, ranks, rtol=0.01)  # 1 + 1e-5 is 1.00001001 in float32


def test_a_group_of_one_is_refused():
    with pytest.raises(ValueError, match="group_size must be at least 2"):
        GRPOConfig(group_size=1)


@pytest.mark.parametrize("advantage", ["group", "mean"])
@pytest.mark.parametrize("unscorable", [np.nan, np.inf, -np.inf, 1e9, 0.0])
def test_an_invalid_completion_gets_zero_and_leaves_its_siblings_alone(unscorable, advantage):
    scored = [1.0, 0.0, 0.5]
    with_gap = advantages_of(
        [1.0, unscorable, 0.0, 0.5], [True, False, True, True], advantage=advantage
    )
    assert with_gap[1] == 0.0
    close(np.delete(with_gap, 1), advantages_of(scored, advantage=advantage))


@pytest.mark.parametrize("valid", [[False] * 3, [True, False, False]])
def test_fewer_than_two_valid_completions_give_zero(valid):
    np.testing.assert_array_equal(advantages_of([1.0, np.nan, 0.2], valid), 0.0)
