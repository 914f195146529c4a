"""Optimizer: AdamW with its schedule, as a config says."""

import jax.numpy as jnp
import optax

from grpojax.config import OptimizerConfig


def make_schedule(config: OptimizerConfig, updates: int) -> optax.Schedule:
    """Learning rate by update: linear warm-up, then the schedule, which ends at 0 after
    `updates`."""
    rate, warmup = config.learning_rate, config.warmup_updates
    rest = max(updates - warmup, 1)
    after = {
        "constant": optax.constant_schedule(rate),
        "linear": optax.linear_schedule(rate, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(rate, rest),
    }[config.schedule]
    # Update 0 of a warm-up over N uses rate / N: a rate of 0 would be no update.
    growth = optax.linear_schedule(rate / max(warmup, 1), rate, max(warmup - 1, 1))
    return optax.join_schedules([growth, after], [warmup])


def make_optimizer(config: OptimizerConfig, updates: int) -> optax.GradientTransformation:
    """AdamW, after the gradients are clipped by their global norm."""
    adamw = optax.adamw(
        make_schedule(config, updates),
        b1=config.adam_b1,
        b2=config.adam_b2,
        eps=config.adam_epsilon,
        weight_decay=config.weight_decay,
        mu_dtype=jnp.dtype(config.moment_dtype),
    )
    return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), adamw)
