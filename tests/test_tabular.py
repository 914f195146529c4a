"""It learns as fast as it should: tables of logits, trained by the package's own objective.

32 prompts, 16 completions each, plain gradient ascent at a rate of 1 on each prompt's own gain:
steps until the expected reward is 0.9, medians over 20 seeds, measured once with numpy alone.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpojax.advantages import group_advantages
from grpojax.grpo import token_losses, token_weights

PROMPTS, GROUP, SEEDS, ENOUGH = 32, 16, 20, 0.9
TASKS = {"bandit": (8, 1, False), "dense": (4, 3, False), "sparse": (4, 3, True)}  # V, T, all right
STEPS = {
    ("bandit", "group"): 10, ("bandit", "mean"): 23, ("bandit", "rloo"): 22,
    ("dense", "group"): 54.5, ("dense", "mean"): 95, ("dense", "rloo"): 89,
    ("sparse", "group"): 82, ("sparse", "mean"): 78, ("sparse", "rloo"): 74,
}  # fmt: skip
MOST = 120  # steps


@functools.cache
def programs(task, advantage):
    """`steps(seeds)`: the steps that each seed took; all seeds at once."""
    vocabulary, length, sparse = TASKS[task]
    reduction = "sequence_mean" if advantage == "group" else "sequence_sum"
    mask, everyone = jnp.ones((PROMPTS, GROUP, length), bool), jnp.ones((PROMPTS, GROUP), bool)
    weights = token_weights(mask, everyone, reduction=reduction, completion_length=length)
    relative = functools.partial(group_advantages, advantage=advantage, std_epsilon=1e-4)

    def one_step(wanted, logits, key):
        drawn = jax.random.categorical(
            key, logits[:, None], shape=(PROMPTS, GROUP, length)
        )  # [B, G, T]
        right = drawn == wanted[:, None]
        rewards = (right.all(-1) if sparse else right.mean(-1)).astype(jnp.float32)
        advantages = jax.vmap(relative)(rewards, everyone)

        def loss(logits):
            logps = jnp.take_along_axis(
                jax.nn.log_softmax(logits)[:, None], drawn[..., None], axis=-1
            )[..., 0]
            losses, _ = jax.vmap(
                lambda *group: token_losses(
                    group[0], None, None, *group[1:], beta=0.0, clip_low=0.2, clip_high=0.2
                )
            )(logps, advantages[..., None], mask)
            return (weights * losses).sum()

        # The batch's loss is a mean over prompts; each prompt has logits of its own.
        return logits - PROMPTS * jax.grad(loss)(logits)

    def expected(wanted, logits):
        right = jnp.take_along_axis(jax.nn.softmax(logits), wanted[..., None], axis=-1)[..., 0]
        return right.prod(-1).mean()

    def run(seed):
        key = jax.random.key(seed)
        wanted = jax.random.randint(key, (PROMPTS, length), 0, vocabulary)

        def body(logits, step):
            reward = expected(wanted, logits)
            return one_step(wanted, logits, jax.random.fold_in(key, step)), reward

        start = jnp.zeros((PROMPTS, length, vocabulary))
        _, rewards = jax.lax.scan(body, start, jnp.arange(MOST))
        return jnp.argmax(rewards >= ENOUGH), rewards[0], rewards.max()

    return jax.jit(jax.vmap(run))


@pytest.mark.parametrize(("task", "advantage"), STEPS)
def test_steps_to_learn_are_within_a_tenth_of_the_measured_ones(task, advantage):
    steps, start, best = map(np.asarray, programs(task, advantage)(jnp.arange(SEEDS)))
    vocabulary, length, _ = TASKS[task]
    np.testing.assert_allclose(start, vocabulary**-length, rtol=1e-5)
    assert (best >= ENOUGH).all()
    assert np.median(steps) == pytest.approx(STEPS[task, advantage], rel=0.1)
