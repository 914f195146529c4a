"""The objective in float64, against worked numbers and by invariance."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpojax.grpo import token_losses, token_weights

steady = settings(derandomize=True, max_examples=30, deadline=None, database=None)
fast_losses = jax.jit(token_losses, static_argnames=("beta", "clip_low", "clip_high"))
close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-9)

REDUCTIONS = ("sequence_mean", "token_mean", "constant")
# Example E4: two completions of 3 and 2 tokens, clip range 0.2; 9 stands in the padding.
NEW = np.array([[-0.8, -0.9, -1.7, 9], [-0.65, -1.1, 9, 9]])
OLD = np.array([[-1.0, -0.5, -2.0, 9], [-0.7, -1.5, 9, 9]])
REF = np.array([[-1.1, -0.6, -1.9, 9], [-0.7, -1.4, 9, 9]])
MASK = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool)
A = np.array([1.0, -1.0])


@pytest.fixture(autouse=True, scope="module")
def float64():
    with jax.enable_x64(True):
        yield


def tokens_of(new, old, ref, advantages, mask, beta=0.0, clip=(0.2, 0.2)):
    """Losses and logged values of one group given as numpy arrays."""
    old, ref = (x if x is None else jnp.asarray(x) for x in (old, ref))
    low, high = clip
    return fast_losses(
        jnp.asarray(new), old, ref, jnp.asarray(advantages)[:, None], jnp.asarray(mask),
        beta=beta, clip_low=low, clip_high=high,
    )  # fmt: skip


def weights_of(mask, valid=None, reduction="sequence_mean", completion_length=4):
    """Weights of a batch of one group."""
    valid = np.ones(len(mask), bool) if valid is None else valid
    return token_weights(
        jnp.asarray(mask)[None], jnp.asarray(valid)[None],
        reduction=reduction, completion_length=completion_length,
    )[0]  # fmt: skip


def loss_of(new, old, ref, advantages, mask, beta=0.0, clip=(0.2, 0.2), **weighting):
    losses, _ = tokens_of(new, old, ref, advantages, mask, beta, clip)
    return (weights_of(mask, **weighting) * losses).sum()


gradient_of = jax.grad(loss_of)


def random_group(seed=0, group=2, length=4):
    """Log-probabilities new, old, ref, then advantages and a mask with lengths 1 to `length`."""
    rng = np.random.default_rng(seed)
    new = -rng.uniform(0.1, 3, (group, length))
    old, ref = (new + rng.normal(0, 0.3, new.shape) for _ in range(2))
    lengths = np.append(rng.integers(1, length + 1, group - 1), length)
    return new, old, ref, rng.normal(0, 1, group), np.arange(length) < lengths[:, None]


@pytest.mark.parametrize(
    ("clip", "beta", "expected"),
    [
        ((0.2, 0.2), 0.0, (0.124053940832, -0.105444850404, -0.065903031502)),
        ((0.2, 0.2), 0.01, (0.124341406247, -0.105141939551, -0.065713712219)),
        ((0.2, 0.2), 0.04, (0.125203802492, -0.104233206992, -0.065145754370)),
        ((0.2, 0.28), 0.0, (0.107153481138, -0.125725402036, -0.078578376272)),
    ],
)
def test_loss_of_two_completions(clip, beta, expected):
    losses = [loss_of(NEW, OLD, REF, A, MASK, beta, clip, reduction=r) for r in REDUCTIONS]
    close(losses, expected)


def test_gradient_and_logged_values_of_every_token_of_two_completions():
    def total(new):
        return tokens_of(new, OLD, REF, A, MASK, beta=0.04)[0].sum()

    gradient = np.asarray(jax.grad(total)(jnp.asarray(NEW)))
    expected = [0.0103672712, -0.6843143983, 0.0072507699, 1.0532219194, 1.5021919688]
    close(gradient[MASK], expected, atol=6e-11)
    assert (gradient[~MASK] == 0).all()
    _, logged = tokens_of(NEW, OLD, REF, A, MASK, beta=0.04)
    k3s = [0.0408182207, 0.0498588076, 0.0187307531, 0.0012294245, 0.0408182207]
    close(logged["kl"][MASK], k3s, atol=6e-11)
    close(logged["kl"][MASK].mean(), 0.030291085304)
    np.testing.assert_array_equal(logged["clip_ratio/low_mean"][MASK], 0)
    for name in ("clip_ratio/high_mean", "clip_ratio/region_mean"):
        np.testing.assert_array_equal(logged[name][MASK], [1, 0, 1, 0, 0])


@pytest.mark.parametrize(
    ("reduction", "value", "first", "second"),
    [
        ("sequence_mean", 0, -1 / 6, 1 / 4),
        ("token_mean", -0.2, -0.2, 0.2),
        ("constant", -0.125, -0.125, 0.125),
    ],
)
@pytest.mark.parametrize("given_old", [False, True])
def test_on_policy_loss_and_gradient(given_old, reduction, value, first, second):
    def loss(new):  # π_old is π_θ itself, and must not carry the gradient that cancels the ratio's
        return loss_of(new, new if given_old else None, None, A, MASK, reduction=reduction)

    actual, gradient = jax.value_and_grad(loss)(jnp.asarray(NEW))
    close(actual, value)
    close(gradient, MASK * np.array([[first], [second]]))


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_on_policy_gradient_is_equation_21(beta):
    new, _, ref, advantages, mask = random_group()
    gradient = gradient_of(jnp.asarray(new), None, ref, advantages, mask, beta)
    coefficient = advantages[:, None] + beta * (np.exp(ref - new) - 1)
    close(gradient, -coefficient / (2 * mask.sum(-1, keepdims=True)) * mask)


def test_parts_of_a_batch_add_up_to_its_token_mean():
    mask = np.arange(7) < np.array([3, 7])[:, None, None]  # two groups of one completion
    weights = token_weights(
        jnp.asarray(mask), jnp.ones((2, 1), bool), reduction="token_mean", completion_length=7
    )
    losses = [tokens_of(np.zeros((1, 7)), None, None, [-a], m)[0] for a, m in zip((2.0, 1.0), mask)]
    close(sum((w * loss).sum() for w, loss in zip(weights, losses)), 1.3)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_invalid_completions_leave_the_loss_of_the_rest(reduction):
    new, old, ref, advantages, mask = random_group(3, group=4)
    valid = np.array([True, False, True, False])
    group, rest = (new, old, ref, advantages, mask), [x[valid] for x in random_group(3, group=4)]
    options = {"beta": 0.04, "reduction": reduction, "completion_length": 4}
    close(loss_of(*group, valid=valid, **options), loss_of(*rest, **options))
    gradient = gradient_of(*map(jnp.asarray, group), valid=valid, **options)
    close(gradient[valid], gradient_of(*map(jnp.asarray, rest), **options))
    assert (np.asarray(gradient)[~valid] == 0).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_batch_without_a_valid_completion_has_weights_of_zero(reduction):
    np.testing.assert_array_equal(weights_of(MASK, [False, False], reduction), 0.0)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_wider_padding_and_the_order_of_rows_change_nothing(reduction):
    group = random_group(4, group=4)
    wide = [np.pad(x, [(0, 0), (0, 4)]) if x.ndim == 2 else x for x in group]
    shuffled = [x[[2, 0, 3, 1]] for x in group]
    options = {"beta": 0.04, "reduction": reduction, "completion_length": 4}
    base = loss_of(*group, **options)
    for same in (wide, shuffled):
        close(loss_of(*same, **options), base, atol=1e-14)


def test_a_group_of_equal_rewards_keeps_its_share_of_the_divisor():
    mask = np.ones((2, 3, 4), bool)
    weights = token_weights(
        jnp.asarray(mask), jnp.ones((2, 3), bool), reduction="sequence_mean", completion_length=4
    )
    close(weights, 1 / 24)  # made without the advantages, so an advantage of 0 cannot enter


def test_a_prompt_weighs_the_same_however_many_tokens_its_group_has():
    lengths = np.array([[3, 1], [1, 1], [2, 2]])  # the last prompt has no valid completion
    mask = np.arange(3) < lengths[..., None]
    valid = np.array([[True, True], [True, False], [False, False]])
    weights = token_weights(
        jnp.asarray(mask), jnp.asarray(valid), reduction="prompt_mean", completion_length=3
    )
    close(weights[0], mask[0] / 8)
    close(weights[1], [[1 / 2, 0, 0], [0, 0, 0]])
    assert not weights[2].any()


@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e4, -1e4])
def test_what_stands_in_masked_slots_never_matters(poison):
    new, old, ref, advantages, mask = random_group(5)
    dirty = [np.where(mask, x, poison) for x in (new, old, ref)]
    outputs = []
    for arrays in ([new, old, ref], dirty):
        arrays = [jnp.asarray(x) for x in arrays]
        gradient = jax.grad(loss_of, argnums=(0, 1, 2))(*arrays, advantages, mask, 0.04)
        outputs.append((tokens_of(*arrays, advantages, mask, 0.04), gradient))
    jax.tree.map(np.testing.assert_array_equal, *outputs)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(outputs))


@jax.jit
def surrogate_gradient(log_ratio, advantages):
    def total(new):
        mask = jnp.ones(new.shape, bool)
        losses, logged = tokens_of(
            new, jnp.zeros(new.shape), None, advantages, mask, 0.0, (0.2, 0.3)
        )
        return losses.sum(), logged

    return jax.grad(total, has_aux=True)(log_ratio)


@steady
@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-3, 3)), min_size=8, max_size=8))
def test_exactly_the_clipped_tokens_lose_their_gradient_and_are_counted(pairs):
    log_ratio, advantages = np.array(pairs).T
    gradient, logged = surrogate_gradient(log_ratio[:, None], advantages)
    ratio = np.exp(log_ratio)
    high = (advantages > 0) & (ratio > 1.3)
    low = (advantages < 0) & (ratio < 0.8)
    np.testing.assert_array_equal(logged["clip_ratio/high_mean"][:, 0], high)
    np.testing.assert_array_equal(logged["clip_ratio/low_mean"][:, 0], low)
    np.testing.assert_array_equal(logged["clip_ratio/region_mean"][:, 0], high | low)
    close(gradient[:, 0], np.where(high | low, 0, -advantages * ratio), atol=1e-8)
    assert (np.asarray(gradient)[high | low] == 0).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_on_the_boundary_of_the_clip_range_the_gradient_is_whole(sign):
    log_ratio = jnp.array([[0.25 * sign]])
    ratio = float(jnp.exp(log_ratio)[0, 0])
    distance = abs(ratio - 1)  # exact, and so is 1 ± distance
    gradient = gradient_of(
        log_ratio, np.zeros((1, 1)), None, [1.0 * sign], np.ones((1, 1)) > 0,
        clip=(distance, distance), completion_length=1,
    )  # fmt: skip
    assert float(gradient[0, 0]) == -sign * ratio


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("gap", [100.0, -100.0, 1e4, -1e4])
def test_far_apart_policies_give_finite_losses_and_gradients(gap, dtype):
    new = jnp.full((2, 1), -1.0, dtype)
    other, mask = jnp.full((2, 1), -1.0 - gap, dtype), jnp.ones((2, 1), bool)
    for old, ref in ((other, None), (None, other), (other, other)):
        value, gradient = jax.value_and_grad(loss_of)(new, old, ref, A, mask, 0.04)
        assert np.isfinite(value) and np.isfinite(gradient).all()


def test_gradient_agrees_with_finite_differences():
    new, old, ref, advantages, mask = random_group(6)
    step = 1e-6
    boundary = np.abs(np.exp(new - old)[..., None] - [0.8, 1.2]).min()
    assert boundary > 1e-4  # the data were drawn with no token on it

    def loss(new):
        return float(loss_of(new, old, ref, advantages, mask, 0.04))

    gradient = gradient_of(jnp.asarray(new), old, ref, advantages, mask, 0.04)
    for index in np.ndindex(new.shape):
        shift = np.zeros(new.shape)
        shift[index] = step
        slope = (loss(new + shift) - loss(new - shift)) / (2 * step)
        close(gradient[index], slope)
