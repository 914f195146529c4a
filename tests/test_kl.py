"""Estimates of the KL in float64: values, and which has the gradient of what, by enumeration.

Example E3: three tokens, π = (.5, .3, .2), π_ref = (.4, .4, .2), and a sampler μ = (.2, .5, .3).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpojax.advantages import batch_advantages
from grpojax.grpo import token_losses
from grpojax.kl import k3, kl_losses

steady = settings(derandomize=True, max_examples=30, deadline=None, database=None)
close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-9)

PI, REF, MU = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.4, 0.2]), np.array([0.2, 0.5, 0.3])
REVERSE = (PI * np.log(PI / REF)).sum()  # KL(π || π_ref)
TRUE = PI * (np.log(PI / REF) - REVERSE)  # its gradient by logit
SCORES = np.eye(3) - PI  # row x: the gradient of log π(x) by logit


@pytest.fixture(autouse=True, scope="module")
def float64():
    with jax.enable_x64(True):
        yield


def test_values_of_three_tokens():
    log_ratio = np.log(REF / PI)
    logps, ref = jnp.log(PI), jnp.log(REF)
    k2 = kl_losses(logps, logps, ref, kl="k2")
    close(k2, log_ratio**2 / 2)
    close(k2, [0.0248965222, 0.0413804874, 0], atol=6e-11)
    close(k3(logps, ref), np.exp(log_ratio) - log_ratio - 1)
    close(k3(logps, ref), [0.0231435513, 0.0456512609, 0], atol=6e-11)
    close((PI * k3(logps, ref)).sum(), REVERSE)
    close((PI * k2).sum(), 0.0248624073, atol=6e-11)
    close(REVERSE, 0.025267153921571, atol=1e-14)
    np.testing.assert_array_equal(kl_losses(logps, logps, ref, kl="k1_reward"), 0.0)


def expected_gradient(kl, sampler):
    """By logit, of β times the KL in the loss of one token drawn from `sampler`, for β = 1."""

    def loss(logits):
        logps = jax.nn.log_softmax(logits)[:, None]
        losses, _ = token_losses(
            logps, jnp.log(sampler)[:, None], jnp.log(REF)[:, None], jnp.zeros((3, 1)),
            jnp.ones((3, 1), bool), beta=1.0, clip_low=0.2, clip_high=0.2, kl=kl,
        )  # fmt: skip
        return (sampler * losses[:, 0]).sum()

    return jax.grad(loss)(jnp.log(PI))


def test_k3_in_the_loss_has_the_gradient_of_the_forward_kl():
    close(expected_gradient("k3", PI), PI - REF)


@pytest.mark.parametrize("kl", ["k2", "k3_weighted"])
def test_k2_and_weighted_k3_have_the_exact_gradient_on_policy(kl):
    close(expected_gradient(kl, PI), TRUE)
    close(TRUE, [0.0989381987, -0.0938847679, -0.0050534308], atol=6e-11)


def test_off_policy_the_weighted_k3_is_still_exact_and_k2_is_not():
    close(expected_gradient("k3_weighted", MU), TRUE)
    wrong = (MU * -np.log(REF / PI)) @ SCORES
    close(expected_gradient("k2", MU), wrong)
    close(wrong, [0.0942348732, -0.1140773384, 0.0198424652], atol=6e-11)


def test_k1_in_the_reward_has_the_exact_gradient():
    """Every token is a completion of its own group of one batch; without a baseline the advantage
    is the reward itself, -β k1, up to what whitening takes away: undone here."""
    penalty = np.log(PI / REF)[None, :, None]
    mask = np.ones((1, 3, 1), bool)
    shaped = batch_advantages(
        jnp.zeros((1, 3)), jnp.ones((1, 3), bool), jnp.asarray(mask), None, jnp.asarray(penalty),
        advantage="reinforce_pp", ddof=1, std_epsilon=1e-6,
    )[0, :, 0]  # fmt: skip
    k1 = penalty[0, :, 0]
    close(shaped, -(k1 - k1.mean()) / np.sqrt(k1.var(ddof=1) + 1e-8))
    # A constant in the reward changes no expected gradient, so the whitened one is the true one
    # over the deviation.
    gradient = (PI * np.asarray(shaped)) @ SCORES
    close(-gradient * np.sqrt(k1.var(ddof=1) + 1e-8), TRUE)
    assert not expected_gradient("k1_reward", PI).any()  # nothing is left for the loss


@pytest.mark.parametrize("kl", ["k3", "k3_weighted", "k2"])
def test_every_estimate_and_its_gradient_are_zero_where_the_policies_agree(kl):
    logps = jnp.log(PI)
    value, gradient = jax.value_and_grad(lambda x: kl_losses(x, logps, logps, kl=kl).sum())(logps)
    assert value == 0 and not np.asarray(gradient).any()


@pytest.mark.parametrize("kl", ["k3", "k3_weighted", "k2"])
@pytest.mark.parametrize("gap", [100.0, -100.0])
def test_far_apart_policies_have_a_finite_kl_and_gradient(kl, gap):
    new, other = jnp.array([-1.0]), jnp.array([-1.0 - gap])

    def loss(new, old):
        return kl_losses(new, old, other, kl=kl).sum()

    for old in (new, other):
        value, gradient = jax.value_and_grad(loss)(new, old)
        assert np.isfinite(value) and np.isfinite(gradient).all()


fast_k3 = jax.jit(k3)


@steady
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=8, max_size=8), st.floats(2.0**-24, 1, width=32)
)
def test_k3_is_never_negative_and_zero_for_equal_policies(logps, gap):
    logps = np.array(logps, np.float32)
    for ref in (logps + np.float32(gap), logps - np.float32(gap), logps[::-1].copy()):
        assert (np.asarray(fast_k3(logps, ref)) >= 0).all()
    np.testing.assert_array_equal(fast_k3(logps, logps), 0.0)


@pytest.mark.parametrize("gap", [1e-6, 1e-4, 1e-3, 1e-2])
def test_k3_of_nearly_equal_policies_does_not_cancel_in_float32(gap):
    single = k3(jnp.zeros(1, jnp.float32), jnp.full(1, gap, jnp.float32))
    np.testing.assert_allclose(single, np.expm1(gap) - gap, rtol=0.1)
