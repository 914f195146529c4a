"""Ratios, surrogates and mismatch weights in float64, against the oracle and worked numbers."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from grpojax.grpo import token_losses, token_weights
from grpojax.scoring import entropy_of
from grpojax.surrogates import mismatch_weights

close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-9)

# Example E4: two completions of 3 and 2 tokens; 9 stands in the padding.
NEW = [np.array([-0.8, -0.9, -1.7]), np.array([-0.65, -1.1])]
OLD = [np.array([-1.0, -0.5, -2.0]), np.array([-0.7, -1.5])]
REF = [np.array([-1.1, -0.6, -1.9]), np.array([-0.7, -1.4])]
A = np.array([1.0, -1.0])
MASK = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool)

RATIOS = ("token", "sequence", "sequence_token", "geometric")
SURROGATES = ("clip", "cispo", "sapo", "policy_gradient")
KLS = ("k3", "k3_weighted", "k2")
REDUCTIONS = ("sequence_mean", "token_mean", "constant", "prompt_mean", "sequence_sum")
PAIRS = [("geometric", "clip"), *itertools.product(RATIOS[:3], SURROGATES)]


@pytest.fixture(autouse=True, scope="module")
def float64():
    with jax.enable_x64(True):
        yield


def padded(rows):
    return jnp.asarray([np.pad(row, (0, 4 - len(row)), constant_values=9.0) for row in rows])


def group_loss(new, old, ref, advantages, *, reduction="sequence_mean", low=0.2, high=0.2, **given):
    losses, _ = token_losses(
        new, old, ref, jnp.asarray(advantages)[:, None], jnp.asarray(MASK),
        clip_low=low, clip_high=high, **{"beta": 0.0} | given,
    )  # fmt: skip
    weights = token_weights(
        jnp.asarray(MASK)[None], jnp.ones((1, len(MASK)), bool),
        reduction=reduction, completion_length=4,
    )  # fmt: skip
    return (weights[0] * losses).sum()


def value_and_rows(**given):
    """Loss and gradient of E4, the latter as the two completions' rows."""
    value, slopes = jax.value_and_grad(group_loss)(
        padded(NEW), padded(OLD), padded(REF), A, **given
    )
    assert (np.asarray(slopes)[~MASK] == 0).all()
    return value, [np.asarray(slopes)[0, :3], np.asarray(slopes)[1, :2]]


def compare(*, dual=0.0, taus=(1.0, 1.05), **given):
    """The package against the oracle, value and gradient."""
    ours = {"dual_clip": dual, "tau_positive": taus[0], "tau_negative": taus[1]}
    value, slopes = value_and_rows(**given, **ours)

    def loss(new):
        return oracle.loss(new, OLD, REF, A, dual=dual, taus=taus, **given)

    close(value, loss(NEW))
    for ours, theirs in zip(slopes, oracle.gradient(loss, NEW)):
        close(ours, theirs)


@pytest.mark.parametrize(("ratio", "surrogate"), PAIRS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_every_ratio_surrogate_and_reduction_is_its_formula(ratio, surrogate, reduction):
    compare(ratio=ratio, surrogate=surrogate, reduction=reduction)
    compare(ratio=ratio, surrogate=surrogate, reduction=reduction, low=0.3, high=0.01)


@pytest.mark.parametrize("kl", KLS)
@pytest.mark.parametrize("ratio", RATIOS)
def test_every_kl_is_its_formula_whatever_the_ratio(kl, ratio):
    compare(kl=kl, ratio=ratio, beta=0.04)


def test_dual_clip_and_temperatures_of_sapo_are_their_formulas():
    compare(dual=1.3)
    compare(dual=1.21)
    compare(surrogate="sapo", taus=(0.7, 2.0))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"ratio": "sequence", "low": 3e-4, "high": 4e-4}, 0.125961358096),
        ({"ratio": "geometric", "low": 0.4, "high": 0.4}, 0.109213801339),
        ({"ratio": "geometric", "low": 0.2, "high": 0.2}, 0.126161358096),
        (
            {"surrogate": "cispo", "low": 1.0, "high": 4.0, "reduction": "token_mean"},
            0.310167368158,
        ),
        ({"surrogate": "cispo", "reduction": "token_mean"}, 0.343334757471),
        ({"surrogate": "sapo"}, 0.045471862478),
    ],
)
def test_worked_numbers_of_example_6(given, expected):
    value, _ = value_and_rows(**given)
    close(value, expected, atol=1e-12)


def test_gspo_clips_whole_completions():
    _, (first, second) = value_and_rows(ratio="sequence", low=3e-4, high=4e-4)
    assert (first == 0).all()
    close(second, 1.252322716192 / 4)  # s / (G |o|), A = -1, the same for both tokens


def test_cispo_keeps_the_gradient_of_clipped_tokens():
    _, (first, second) = value_and_rows(
        surrogate="cispo", low=1.0, high=0.2, reduction="token_mean"
    )
    close(first, [-0.24, -0.1340640092, -0.24], atol=6e-11)
    close(second, [0.2102542193, 0.24], atol=6e-11)


def test_dual_clip_bounds_what_a_bad_completion_may_cost():
    """A = -1 and a ratio of 5: 5 as in PPO, 3 with c = 3, and then without gradient."""
    new, old = jnp.log(jnp.array([[5.0]])), jnp.zeros((1, 1))

    def loss(new, dual_clip):
        return token_losses(
            new, old, None, jnp.full((1, 1), -1.0), jnp.ones((1, 1), bool),
            beta=0.0, clip_low=0.2, clip_high=0.2, dual_clip=dual_clip,
        )[0].sum()  # fmt: skip

    for dual_clip, value, slope in ((0.0, 5.0, 5.0), (3.0, 3.0, 0.0), (6.0, 5.0, 5.0)):
        actual, gradient = jax.value_and_grad(loss)(new, dual_clip)
        close([actual, gradient[0, 0]], [value, slope])


def test_dual_clip_is_the_two_sided_cap_of_intellect_2():
    """min(min(ρ, δ) A, clip(ρ) A), with δ above 1 + clip_high."""
    rho = np.exp(np.linspace(-3, 3, 61))[None]
    mask, old = jnp.ones(rho.shape, bool), jnp.zeros(rho.shape)
    for advantage in (1.0, -1.0, 0.5):
        cap = np.minimum(np.minimum(rho, 4) * advantage, np.clip(rho, 0.8, 1.2) * advantage)
        losses, _ = token_losses(
            jnp.log(jnp.asarray(rho)), old, None, jnp.full((1, 1), advantage), mask,
            beta=0.0, clip_low=0.2, clip_high=0.2, dual_clip=4.0,
        )  # fmt: skip
        close(losses, -cap)


@pytest.mark.parametrize(("ratio", "surrogate"), PAIRS)
def test_on_policy_every_objective_has_the_gradient_of_reinforce(ratio, surrogate):
    """Also where π_old is given: the ratio is 1, and its gradient that of log π."""
    for old in (None, padded(NEW)):
        slopes = jax.grad(group_loss)(
            padded(NEW), old, None, A, ratio=ratio, surrogate=surrogate, tau_positive=0.7
        )
        close(slopes, -A[:, None] * MASK / (2 * MASK.sum(-1, keepdims=True)))


@pytest.mark.parametrize(("ratio", "surrogate"), PAIRS)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -1e4])
def test_padding_never_matters_to_any_objective(ratio, surrogate, poison):
    clean = [padded(x) for x in (NEW, OLD, REF)]
    dirty = [jnp.where(MASK, x, poison) for x in clean]
    options = {"ratio": ratio, "surrogate": surrogate, "beta": 0.04, "kl": "k3_weighted"}
    for one, other in zip(
        jax.value_and_grad(group_loss)(*clean, A, **options),
        jax.value_and_grad(group_loss)(*dirty, A, **options),
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("surrogate", "low", "high"),
    [("clip", [0, 0, 0, 0, 0], [1, 0, 1, 0, 0]), ("cispo", [0, 1, 0, 0, 0], [1, 0, 1, 0, 1])],
)
def test_what_was_clipped_is_counted(surrogate, low, high):
    _, logged = token_losses(
        padded(NEW), padded(OLD), None, jnp.asarray(A)[:, None], jnp.asarray(MASK),
        beta=0.0, clip_low=0.2, clip_high=0.2, surrogate=surrogate,
    )  # fmt: skip
    np.testing.assert_array_equal(np.asarray(logged["clip_ratio/low_mean"])[MASK], low)
    np.testing.assert_array_equal(np.asarray(logged["clip_ratio/high_mean"])[MASK], high)


TRAINER_LESS_SAMPLER = np.array([0.05, -0.02, 1.5, -0.8])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("truncated", "token", 0.5, 2.0), [1.0512710964, 0.9801986733, 2.0, 0.4493289641]),
        (("masked", "token", 0.5, 5.0), [1.0512710964, 0.9801986733, 4.4816890703, 0.0]),
        (("truncated", "sequence", 0.5, 3.0), [2.075080607674] * 4),
        (("truncated", "sequence", 0.5, 2.0), [2.0] * 4),
        (("masked", "sequence", 0.5, 2.0), [0.0] * 4),
        (("masked", "sequence", 0.5, 3.0), [2.075080607674] * 4),
    ],
)
def test_mismatch_weights(given, expected):
    mismatch, level, low, high = given
    sampled = np.append(np.zeros(4), 7.0)[None]
    trainer, mask = np.append(TRAINER_LESS_SAMPLER, 0.0)[None], np.array([[1, 1, 1, 1, 0]], bool)
    weights = mismatch_weights(
        *map(jnp.asarray, (trainer, sampled, mask)),
        mismatch=mismatch, level=level, low=low, high=high,
    )  # fmt: skip
    close(weights[0, :4], expected, atol=6e-11)


def test_mismatch_weighs_the_surrogate_and_not_the_kl_and_passes_no_gradient():
    sampled = [row - shift for row, shift in zip(NEW, ([0.3, -0.1, 2.0], [0.0, 0.5]))]
    weights = [np.minimum(np.exp(new - s), 2.0) for new, s in zip(NEW, sampled)]

    def loss(new):
        losses, _ = token_losses(
            new, None, padded(REF), jnp.asarray(A)[:, None], jnp.asarray(MASK), padded(sampled),
            beta=0.04, clip_low=0.2, clip_high=0.2, mismatch="truncated", mismatch_high=2.0,
        )  # fmt: skip
        return losses.sum()

    slopes = np.asarray(jax.grad(loss)(padded(NEW)))
    for i, row in enumerate(NEW):
        expected = -weights[i] * A[i] + 0.04 * (1 - np.exp(REF[i] - row))
        close(slopes[i, : len(row)], expected)


def test_the_entropy_bonus_is_subtracted_and_carries_its_own_gradient():
    pi = np.array([0.5, 0.3, 0.2])  # example E16
    entropy = -(pi @ np.log(pi))

    def loss(logits):
        logps = jax.nn.log_softmax(logits)[None]
        losses, _ = token_losses(
            jnp.zeros((1, 1)), None, None, jnp.zeros((1, 1)), jnp.ones((1, 1), bool),
            entropy=entropy_of(logps)[None], beta=0.0, clip_low=0.2, clip_high=0.2,
            entropy_weight=0.5,
        )  # fmt: skip
        return losses.sum()

    value, gradient = jax.value_and_grad(loss)(jnp.log(pi))
    close(entropy, 1.029653014065, atol=1e-12)
    close(value, -0.5 * entropy)
    close(gradient, 0.5 * pi * (np.log(pi) + entropy))
    close(-2 * gradient, [-0.1682529168, 0.0522959371, 0.1159569797], atol=6e-11)
