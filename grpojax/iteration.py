"""Iteration: iterative GRPO as the training loop uses it (DeepSeekMath, 2402.03300, algorithm 1).

After every M steps the reward model learns from the pairs of those steps, with some of earlier
ones, and the policy becomes the reference. From then on the model's score is one more reward.

The pairs of a step are a file of the run directory, on disk before a checkpoint knows of the step.
A run that goes on writes those past its checkpoint again, before anything reads them.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from grpojax.config import Config
from grpojax.hosts import is_first, on_host, wait_for_all
from grpojax.lora import combine
from grpojax.optimizer import make_optimizer
from grpojax.pairs import best_and_worst, joined, load_pairs, make_pairs, require_pairs, save_pairs
from grpojax.reward_model import make_reward_scorer, make_reward_update, train_reward_model
from grpojax.rewards import Judged
from grpojax.run import Run
from grpojax.scalar import ScalarModel, abstract_scalar_state, frozen_trunk, init_scalar_state
from grpojax.sharding import shardings_of
from grpojax.types import Completions, Params, Prompts, ScalarState, TrainState

Metrics = dict[str, float]


class Iteration(NamedTuple):
    """What a step and the end of an outer iteration do with the reward model. Steps count from 1
    here."""

    score: Callable[..., Array]  # of a step's completions, on the device
    judge: Callable[..., tuple[Judged, Metrics]]  # with the scores, once the pairs are kept
    end: Callable[..., tuple[TrainState, Metrics]]  # learns, and renews the reference
    check: Callable[[int], None]  # ValueError if the pairs of a step that was done are missing


def make_iteration(run: Run, like: TrainState) -> Iteration:
    """The programs of a run's outer iterations; the model's state is `TrainState.reward_model`."""
    config, chosen, folder = run.config, run.config.reward_model, run.workdir / "pairs"
    model = ScalarModel(run.policy.config)
    scorer = make_reward_scorer(model)
    update = make_reward_update(
        model, reward_optimizer(config), like.reward_model, microbatches=config.grpo.microbatches
    )
    copied = jax.jit(lambda x: jax.tree.map(jnp.copy, x), out_shardings=shardings_of(like.params))

    def score(
        reward_model: ScalarState, frozen: Params, prompts: Prompts, drawn: Completions, step: int
    ) -> Array:
        if step <= chosen.every:  # there is none yet
            return jnp.zeros(drawn.mask.shape[:2])
        params = combine(frozen_trunk(frozen), reward_model.params)
        return scorer(params, prompts, drawn.tokens, drawn.mask)

    def judge(judged: Judged, prompts: Prompts, drawn: Completions, scores: Array, step: int):
        scores, prompts, drawn = on_host((scores, prompts, drawn))
        if is_first():
            save_pairs(folder, step, make_pairs(prompts, drawn, judged.total, judged.valid))
        wait_for_all("pairs")
        seen = {"reward_model/unseen_accuracy": agreement(judged, scores)}
        return with_scores(judged, scores, chosen.weight), seen if step > chosen.every else {}

    def end(state: TrainState, frozen: Params, step: int, say: Callable[[str], None]):
        if state.ref_params is not None:
            state = state.replace(ref_params=copied(state.params))
        begin = step - chosen.every
        pairs = joined(load_pairs(folder, range(begin + 1, step + 1)))
        if not (count := len(pairs.tokens)):
            say(f"step {step}: no group's rewards differed in this iteration; no pair to learn of")
            return state, {"reward_model/pairs": 0}
        iteration = begin // chosen.every
        updates = range(iteration * chosen.updates, (iteration + 1) * chosen.updates)
        reward_model, seen = train_reward_model(
            update,
            state.reward_model,
            frozen_trunk(frozen),
            pairs,
            load_pairs(folder, range(1, begin + 1)),
            run.mesh,
            steps=updates,
            pairs_per_step=chosen.pairs_per_update,
            share=chosen.replay,
            seed=config.seed,
        )
        metrics = {name: float(np.mean([line[name] for line in seen])) for name in seen[0]}
        metrics["reward_model/updates_refused"] *= len(seen)
        return state.replace(reward_model=reward_model), {"reward_model/pairs": count, **metrics}

    def check(done: int) -> None:
        require_pairs(folder, range(1, done + 1))

    return Iteration(score, judge, end, check)


def with_scores(judged: Judged, scores: Float[np.ndarray, "B G"], weight: float) -> Judged:
    """Rewards with the model's score as one more, under the name "reward_model"."""
    values = np.where(judged.valid, scores, 0.0).astype(np.float32)
    return dataclasses.replace(
        judged,
        by_name=judged.by_name | {"reward_model": values},
        total=judged.total + np.float32(weight) * values,
    )


def agreement(judged: Judged, scores: Float[np.ndarray, "B G"]) -> float:
    """The share of pairs whose better completion scores higher, equal scores counting half; NaN
    without a pair."""
    rows, members = best_and_worst(judged.total, judged.valid)
    better, worse = scores[rows[:, None], members].T
    return float((np.sign(better - worse) / 2 + 0.5).mean()) if len(rows) else float("nan")


def with_abstract_reward_model(like: TrainState, run: Run) -> TrainState:
    """The abstract state of a run of GRPO, with that of a reward model."""
    optimizer, model = reward_optimizer(run.config), ScalarModel(run.policy.config)
    return like.replace(reward_model=abstract_scalar_state(model, optimizer, run.mesh))


def init_reward_model(like: TrainState, trained: Params, config: Config) -> ScalarState:
    """The reward model before the first step: the policy's trunk, in buffers of its own, and a head
    of 0."""
    return init_scalar_state(reward_optimizer(config), like.reward_model, trained)


def reward_optimizer(config: Config):
    """The optimizer of the reward model, for the updates of all whole iterations."""
    chosen = config.reward_model
    return make_optimizer(chosen.optimizer, config.steps // chosen.every * chosen.updates)
