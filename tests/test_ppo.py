"""Generalized advantages and the value loss in float64, by worked numbers and by invariance."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpojax.advantages import whitened
from grpojax.config import GRPOConfig, PPOConfig
from grpojax.ppo import explained_variance, generalized_advantages, value_losses
from grpojax.types import Evidence
from grpojax.weigher import make_ppo_weigher

close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-9)
fast_advantages = jax.jit(generalized_advantages, static_argnames=("gamma", "lam"))
fast_losses = jax.jit(value_losses, static_argnames="clip")
over_batch = jax.vmap(jax.vmap(functools.partial(generalized_advantages, gamma=0.9, lam=0.8)))

# Example E13
REWARDS, VALUES, ALL = np.array([0.0, 0, 1]), np.array([0.2, 0.4, 0.6]), np.ones(3, bool)
E13 = {0.95: [0.751, 0.58, 0.4], 1.0: [0.8, 0.6, 0.4]}


@pytest.fixture(autouse=True, scope="module")
def float64():
    with jax.enable_x64(True):
        yield


def advantages_of(rewards, values, mask, gamma=1.0, lam=0.95):
    rewards, values, mask = map(jnp.asarray, (rewards, values, mask))
    return fast_advantages(rewards, values, mask, gamma=gamma, lam=lam)


def losses_of(values, old, returns, mask=None, clip=0.2):
    mask = np.ones(len(values), bool) if mask is None else mask
    return fast_losses(*map(jnp.asarray, (values, old, returns, mask)), clip=clip)


def random_batch(seed=0):
    """Rewards, values and a mask [2, 3, 5], lengths 1 to 5."""
    rng = np.random.default_rng(seed)
    mask = np.arange(5) < np.array([[5, 1, 3], [2, 4, 5]])[..., None]
    return rng.normal(size=mask.shape), rng.normal(size=mask.shape), mask


@pytest.mark.parametrize("lam", E13)
def test_advantages_and_returns_of_example_e13(lam):
    advantages, returns = advantages_of(REWARDS, VALUES, ALL, lam=lam)
    close(advantages, E13[lam])
    close(returns, np.add(E13[lam], VALUES))


def test_a_discount_enters_the_next_value_and_the_later_advantage():
    """δ = (0 + .36 - .2, 0 + .54 - .4, 1 - .6); A_1 = .14 + .45 * .4, A_0 = .16 + .45 * .32."""
    advantages, _ = advantages_of(REWARDS, VALUES, ALL, gamma=0.9, lam=0.5)
    close(advantages, [0.304, 0.32, 0.4])


def test_lambda_0_looks_one_step_ahead_and_lambda_1_to_the_end():
    rewards, values, mask = (x[1, 1] for x in random_batch())  # 4 of 5 tokens
    following = np.append(values[1:4], 0.0)
    close(advantages_of(rewards, values, mask, 0.9, 0.0)[0][:4],
          (rewards[:4] + 0.9 * following - values[:4]))  # fmt: skip
    to_go = [sum(0.9 ** (k - t) * rewards[k] for k in range(t, 4)) for t in range(4)]
    close(advantages_of(rewards, values, mask, 0.9, 1.0)[1][:4], to_go)


def test_perfect_values_leave_no_advantage():
    rewards = np.array([0.5, -1.0, 2.0])
    close(advantages_of(rewards, np.cumsum(rewards[::-1])[::-1], ALL)[0], 0, atol=1e-15)


@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e4])
def test_what_stands_after_the_end_never_matters(poison):
    clean = random_batch()
    mask = clean[2]
    dirty = [np.where(mask, x, poison) for x in clean[:2]]
    results = [
        over_batch(jnp.asarray(r), jnp.asarray(v), jnp.asarray(mask)) for r, v in (clean[:2], dirty)
    ]
    for before, after in zip(*results):
        np.testing.assert_array_equal(before, after)
        assert (np.asarray(after)[~mask] == 0).all()
    returns = np.asarray(results[0][1])
    for index in np.ndindex(2, 3):  # one completion alone, without its padding
        length = mask[index].sum()
        row = [x[index][:length] for x in clean]
        close(returns[index][:length], advantages_of(*row, 0.9, 0.8)[1])


@pytest.mark.parametrize("kl", ["k3", "k1_reward"])
def test_the_advantages_of_a_batch_are_whitened_over_its_tokens_and_the_returns_are_not(kl):
    """The reward comes with the last token, the KL with each where it is in the reward."""
    noise, values, mask = map(np.asarray, random_batch())
    total, valid = noise[..., 0], np.ones(mask.shape[:2], bool)
    valid[0, 1] = False
    weigher = make_ppo_weigher(
        GRPOConfig(kl=kl, beta=0.1), PPOConfig(gamma=0.9, lam=0.8), completion_length=5
    )
    evidence = Evidence(total, valid, sampled_logps=noise, ref_logps=2 * noise)
    found, weights, returns = weigher(jax.tree.map(jnp.asarray, evidence), values, mask)
    rewards = np.zeros(mask.shape)
    for index in np.ndindex(mask.shape[:2]):
        rewards[index][mask[index].sum() - 1] = total[index]
    if kl == "k1_reward":
        rewards += np.where(mask, 0.1 * noise, 0)
    raw, expected = map(np.asarray, over_batch(*map(jnp.asarray, (rewards, values, mask))))
    counted = mask & valid[..., None]
    close(np.asarray(returns)[counted], expected[counted])
    close(
        np.asarray(found)[counted],
        np.asarray(whitened(jnp.asarray(raw), jnp.asarray(counted)))[counted],
    )
    close(raw[counted].mean() + raw[counted].std(ddof=1) * np.asarray(found)[counted], raw[counted],
          atol=1e-6)  # fmt: skip
    assert (np.asarray(weights)[~counted] == 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [0, 1, 12])
def test_equal_advantages_are_whitened_to_exactly_zero(count, dtype):
    mask = jnp.arange(16) < count
    np.testing.assert_array_equal(whitened(jnp.full(16, 0.7, dtype), mask), 0.0)


def test_whitening_does_not_hide_a_value_that_is_not_finite():
    assert np.isnan(whitened(jnp.array([1.0, jnp.nan, 2.0]), jnp.ones(3, bool))).all()


def test_value_losses_by_hand():
    """Old value 1, clip 0.2: the clipped value is in [0.8, 1.2], and the larger error counts."""
    #         inside  past the return  beyond, near the return  beyond, away from the return
    values = [1.1, 1.5, 1.5, 0.5]
    returns = [2.0, 1.25, 2.0, 2.0]
    losses, clipped = losses_of(np.array(values), np.ones(4), np.array(returns))
    close(losses, [0.405, 0.03125, 0.32, 1.125])
    np.testing.assert_array_equal(clipped, [0, 0, 1, 0])


def test_exactly_the_clipped_values_lose_their_gradient():
    rng = np.random.default_rng(1)
    values, old, returns = rng.normal(size=(3, 64))
    gradient = jax.grad(lambda v: losses_of(v, old, returns)[0].sum())(jnp.asarray(values))
    _, clipped = losses_of(values, old, returns)
    outside = np.abs(values - old) > 0.2
    towards = np.abs(values - returns) < np.abs(np.clip(values, old - 0.2, old + 0.2) - returns)
    np.testing.assert_array_equal(clipped, outside & towards)
    assert 0 < clipped.sum() < 64
    close(gradient, np.where(clipped, 0.0, values - returns))


def test_an_infinite_clip_range_gives_the_squared_error():
    rng = np.random.default_rng(2)
    values, old, returns = rng.normal(size=(3, 8))
    losses, clipped = losses_of(values, old, returns, clip=np.inf)
    close(losses, 0.5 * (values - returns) ** 2)
    assert not np.asarray(clipped).any()


def test_the_gradient_of_value_losses_agrees_with_finite_differences():
    rng = np.random.default_rng(3)
    values, old, returns = rng.normal(size=(3, 8))
    assert np.abs(np.abs(values - old) - 0.2).min() > 1e-3  # no value on the edge of the range

    def loss(values):
        return losses_of(values, old, returns)[0].sum()

    gradient, step = jax.grad(loss)(jnp.asarray(values)), 1e-6
    for i, shift in enumerate(step * np.eye(8)):
        close(gradient[i], (loss(values + shift) - loss(values - shift)) / (2 * step), atol=1e-8)


@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e4])
def test_value_losses_after_the_end_are_zero_in_value_and_gradient(poison):
    rng, mask = np.random.default_rng(4), np.arange(6) < 4
    clean = rng.normal(size=(3, 6))
    outputs = []
    for arrays in (clean, np.where(mask, clean, poison)):
        arrays = [jnp.asarray(x) for x in arrays]
        gradient = jax.grad(lambda *a: losses_of(*a, mask)[0].sum(), argnums=(0, 1, 2))(*arrays)
        outputs.append((losses_of(*arrays, mask), gradient))
    jax.tree.map(np.testing.assert_array_equal, *outputs)
    assert all((np.asarray(x)[~mask] == 0).all() for x in jax.tree.leaves(outputs))


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1, 2, 3, 4], 1), ([7, 7, 7, 7], 0), ([4, 3, 2, 1], -3), ([1, 2, 3, 2], 0.4)],
)
def test_explained_variance_of_returns_1_2_3_4(values, expected):
    """Residuals of the last: 0, 0, 0, 2, of variance 0.75; the returns have 1.25."""
    mask = jnp.arange(6) < 4
    values, returns = (jnp.array([*x, np.nan, 9.0]) for x in (values, [1.0, 2, 3, 4]))
    close(explained_variance(values, returns, mask), expected)


def test_explained_variance_of_equal_returns_or_none_is_zero():
    values, returns = jnp.arange(4.0), jnp.full(4, 0.7)
    for mask in (jnp.ones(4, bool), jnp.zeros(4, bool)):
        assert explained_variance(values, returns, mask) == 0
