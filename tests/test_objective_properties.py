"""Whatever the batch: losses and gradients are finite and groups of equal rewards teach nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from grpojax.grpo import token_losses
from grpojax.objective import GRPOConfig
from grpojax.types import Evidence
from grpojax.weigher import make_weigher

B, T = 3, 5
OBJECTIVES = [
    {},
    {"advantage": "rloo", "surrogate": "policy_gradient", "reduction": "sequence_sum", "kl": "k2"},
    {"advantage": "opo", "ratio": "sequence", "kl": "k3_weighted", "zero_variance": "drop"},
    {"advantage": "batch", "surrogate": "cispo", "reduction": "token_mean", "overlong": "mask"},
    {"advantage": "gdpo", "ratio": "geometric", "reduction": "prompt_mean", "deviation_ddof": 0},
    {"advantage": "reinforce_pp", "surrogate": "sapo", "kl": "k1_reward", "top_entropy": 0.3},
    {"advantage": "reinforce_pp_baseline", "dual_clip": 3.0, "reduction": "constant"},
    {"advantage": "mean", "ratio": "sequence_token", "entropy_weight": 0.1, "kl": "k1_reward"},
]
WITHOUT_GROUPS = "reinforce_pp"


@functools.cache
def program(index, group_size):
    """Jitted: advantages, loss and gradient of a batch under the objective at `index`."""
    config = GRPOConfig(beta=0.04, group_size=group_size, **OBJECTIVES[index])
    weigher = make_weigher(config, completion_length=T, reward_weights=(1.0, -0.5))

    @jax.jit
    def run(logps, old, ref, entropy, rewards, valid, cut_off, mask):
        evidence = Evidence(
            rewards, valid, jnp.stack([rewards, rewards**2], -1), cut_off, old, ref, entropy
        )
        advantages, weights = weigher(evidence, mask)

        def loss(logps):
            group = functools.partial(
                token_losses,
                beta=config.beta,
                clip_low=config.clip_low,
                clip_high=config.clip_high,
                ratio=config.ratio,
                surrogate=config.surrogate,
                dual_clip=config.dual_clip,
                kl=config.kl,
                mismatch="truncated",
                entropy_weight=config.entropy_weight,
            )
            losses, _ = jax.vmap(group)(logps, old, ref, advantages, mask, logps, entropy)
            return jnp.where(weights != 0, weights * losses, 0.0).sum()

        return advantages, weights, jax.value_and_grad(loss)(logps)

    return run


@st.composite
def batches(draw):
    """Groups that are constant, tiny, huge, partly unjudged; completions of 0 to T tokens; policies
    that agree, differ, or lie far apart."""
    size = draw(st.sampled_from([2, 4]))
    shape = (B, size)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([1e-6, 1.0, 1e6]))
    rewards = (scale * rng.normal(size=shape)).astype(np.float32)
    kinds = draw(st.lists(st.sampled_from(["any", "equal", "binary"]), min_size=B, max_size=B))
    for row, kind in enumerate(kinds):
        if kind == "equal":
            rewards[row] = rewards[row, 0]
        if kind == "binary":
            rewards[row] = rng.integers(0, 2, size)
    valid = rng.random(shape) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    rewards[~valid] = draw(st.sampled_from([0.0, np.nan, np.inf]))
    lengths = rng.integers(0, T + 1, shape)
    if draw(st.booleans()):
        lengths[:] = draw(st.sampled_from([0, 1, T]))
    mask = np.arange(T) < lengths[..., None]
    gap = draw(st.sampled_from([0.0, 0.3, 30.0, 1000.0]))
    logps = -rng.exponential(2.0, (*shape, T)).astype(np.float32)
    old, ref = ((logps + gap * rng.normal(size=logps.shape)).astype(np.float32) for _ in range(2))
    poison = draw(st.sampled_from([0.0, np.nan, np.inf, -1e30]))
    logps, old, ref = (np.where(mask, x, np.float32(poison)) for x in (logps, old, ref))
    entropy = rng.exponential(1.0, logps.shape).astype(np.float32)
    return logps, old, ref, entropy, rewards, valid, rng.random(shape) < 0.3, mask


@settings(derandomize=True, max_examples=1000, deadline=None, database=None)
@given(batches(), st.integers(0, len(OBJECTIVES) - 1))
def test_losses_and_gradients_are_finite_and_equal_rewards_give_exactly_zero(batch, index):
    *_, rewards, valid, _, mask = batch
    advantages, weights, (loss, gradient) = jax.device_get(program(index, rewards.shape[1])(*batch))
    assert np.isfinite(loss) and np.isfinite(gradient).all()
    assert np.isfinite(weights).all() and (weights >= 0).all()
    advantages = np.broadcast_to(advantages, mask.shape)
    assert np.isfinite(advantages).all()
    assert (advantages[~valid] == 0).all() and (gradient[~mask] == 0).all()
    assert (weights[~mask] == 0).all() and (weights[~valid] == 0).all()
    objective = OBJECTIVES[index]
    if objective.get("kl") == "k1_reward" or objective.get("advantage") == WITHOUT_GROUPS:
        return  # rewards differ by their KL, or there is no group to be equal in
    for row, judged in enumerate(valid):
        if len(set(rewards[row][judged])) < 2:
            assert (advantages[row] == 0).all()
