"""Actor-critic: PPO's critic as the training loop uses it, beside the policy and its state."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array

from grpojax.config import Config
from grpojax.critic import make_critic_update, make_valuer
from grpojax.gradients import Metrics
from grpojax.lora import combine
from grpojax.optimizer import make_optimizer
from grpojax.run import Run
from grpojax.scalar import (
    ScalarModel,
    abstract_scalar_state,
    frozen_trunk,
    init_scalar_state,
)
from grpojax.types import GroupBatch, Params, Prompts, ScalarState, TrainState, ValueBatch
from grpojax.weigher import make_ppo_weigher


class Critic(NamedTuple):
    """The programs of the critic in a step of PPO."""

    values: Callable[[ScalarState, Params, Prompts, Array], Array]  # of the states before tokens
    weigher: Callable[..., tuple[Array, Array, Array]]  # see `make_ppo_weigher`
    update: Callable[..., tuple[TrainState, Metrics]]


def make_critic(run: Run, like: TrainState) -> Critic:
    """The critic's programs for a run of PPO; its state is `TrainState.critic`.

    Its updates come after the policy's. They share nothing, so the order does not matter.
    """
    config, grpo = run.config, run.config.grpo
    model = ScalarModel(run.policy.config)
    valuer = make_valuer(model)
    update_critic = make_critic_update(
        model,
        make_optimizer(config.ppo.critic, config.updates),
        like.critic,
        clip=config.ppo.value_clip,
        epochs_per_batch=grpo.epochs_per_batch,
        minibatches=grpo.minibatches,
        microbatches=grpo.microbatches,
    )

    def values(critic: ScalarState, frozen: Params, prompts: Prompts, tokens: Array) -> Array:
        return valuer(combine(frozen_trunk(frozen), critic.params), prompts, tokens)

    def update(state: TrainState, frozen: Params, batch: GroupBatch, values: Array, returns: Array):
        batch = ValueBatch(batch.prompts, batch.completions.tokens, values, returns, batch.weights)
        critic, metrics = update_critic(state.critic, frozen_trunk(frozen), batch)
        return state.replace(critic=critic), metrics

    weigher = make_ppo_weigher(
        grpo, config.ppo, completion_length=config.sampling.completion_length
    )
    return Critic(values, weigher, update)


def with_abstract_critic(like: TrainState, run: Run) -> TrainState:
    """The abstract state of a run of GRPO, with that of a critic."""
    optimizer = make_optimizer(run.config.ppo.critic, run.config.updates)
    critic = abstract_scalar_state(ScalarModel(run.policy.config), optimizer, run.mesh)
    return like.replace(critic=critic)


def init_critic(like: TrainState, trained: Params, config: Config) -> ScalarState:
    """The critic before the first step: the policy's trunk, in buffers of its own, and a head of
    0."""
    optimizer = make_optimizer(config.ppo.critic, config.updates)
    return init_scalar_state(optimizer, like.critic, trained)
