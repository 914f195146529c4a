"""The optimizer: learning rate by update, and clipping."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpojax.config import OptimizerConfig
from grpojax.optimizer import make_optimizer, make_schedule


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, {0: 1, 9: 1}),
        ("linear", 0, {0: 1, 5: 1 / 2, 9: 1 / 10, 10: 0}),
        ("cosine", 0, {0: 1, 5: 1 / 2, 10: 0}),
        ("constant", 4, {0: 1 / 4, 1: 1 / 2, 3: 1, 4: 1, 9: 1}),
        ("linear", 4, {0: 1 / 4, 3: 1, 4: 1, 7: 1 / 2, 9: 1 / 6, 10: 0}),
        ("cosine", 4, {0: 1 / 4, 3: 1, 4: 1, 7: 1 / 2, 10: 0}),
        ("linear", 1, {0: 1, 1: 1, 10: 0}),
    ],
)
def test_learning_rate_of_the_first_and_last_of_ten_updates(schedule, warmup, expected):
    config = OptimizerConfig(learning_rate=1e-3, schedule=schedule, warmup_updates=warmup)
    rates = [float(make_schedule(config, 10)(update)) for update in expected]
    np.testing.assert_allclose(rates, 1e-3 * np.array([*expected.values()]), atol=1e-10)


def test_gradients_are_clipped_by_their_global_norm_before_adam():
    config = OptimizerConfig(learning_rate=1.0, adam_epsilon=1e6, max_grad_norm=0.5)
    optimizer, params = make_optimizer(config, 10), {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    gradients = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_allclose([updates["a"], updates["b"]], [[-0.3e-6], [-0.4e-6]], rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_first_moment_has_the_dtype_that_is_asked_for(dtype):
    optimizer = make_optimizer(OptimizerConfig(moment_dtype=dtype), 10)
    (adam,) = (part for part in jax.tree.leaves(
        optimizer.init({"a": jnp.zeros(1)}), is_leaf=lambda x: hasattr(x, "mu")
    ) if hasattr(part, "mu"))  # fmt: skip
    assert (adam.mu["a"].dtype, adam.nu["a"].dtype) == (jnp.dtype(dtype), jnp.float32)
