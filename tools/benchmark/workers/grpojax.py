"""grpojax's worker: the calls of `train.py`, with the reward that all systems have.

Waits stand where `train.py` has them: after the sampler, the reference and the update. The reward
is computed while the reference runs, and its seconds are the reference's.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from grpojax import model as models
from grpojax import sampling, scoring, slices
from grpojax.config import GRPOConfig, MeshConfig, ModelConfig, OptimizerConfig
from grpojax.kernels import choose_attention
from grpojax.learner import abstract_state, init_state, make_update
from grpojax.mesh import make_mesh
from grpojax.model import Policy
from grpojax.optimizer import make_optimizer
from grpojax.pretrained import load_params, read_model_config
from grpojax.sampling import make_sampler, stream_key
from grpojax.scoring import make_scorer
from grpojax.sharding import shard_batch, use_mesh
from grpojax.types import Completions, Evidence, GroupBatch, Params, Prompts, TrainState
from grpojax.weigher import make_weigher
from tools.benchmark.work import Steps, read_task, reward, write_gate

PAD = 0


def sampler_of(task: dict[str, Any], model: ModelConfig, group_size: int, *, greedy: bool):
    """The sampler of completions that nothing ends."""
    return make_sampler(
        Policy(model),
        group_size=group_size,
        completion_length=task["completion_length"],
        stop_ids=(),
        pad_id=PAD,
        greedy=greedy,
    )


def make_parts(task: dict[str, Any], model: ModelConfig) -> tuple[TrainState, Prompts, Callable]:
    """The first state, the prompts, and `parts(steps) -> (sample, score, update)`, timed."""
    policy, mesh = Policy(model), make_mesh(MeshConfig())
    objective = GRPOConfig(
        prompts_per_step=len(task["prompts"]),
        group_size=task["group_size"],
        beta=task["beta"],
        clip_low=task["clip"],
        clip_high=task["clip"],
        std_epsilon=task["std_epsilon"],
    )
    adamw = OptimizerConfig(
        learning_rate=task["learning_rate"], max_grad_norm=task["max_grad_norm"]
    )
    optimizer = make_optimizer(adamw, task["steps"])
    like = abstract_state(policy, optimizer, mesh, reference=task["beta"] > 0)
    state = init_state(optimizer, like, load_params(task["folder"], model, like.params))
    tokens = np.array(task["prompts"], np.int32)
    ids = np.arange(len(tokens), dtype=np.int32)
    prompts = shard_batch(Prompts(tokens, np.ones(tokens.shape, bool), ids), mesh)
    sampler = sampler_of(task, model, task["group_size"], greedy=False)
    scorer = make_scorer(policy, temperature=1.0)
    weigher = make_weigher(objective, completion_length=task["completion_length"])
    update = make_update(policy, optimizer, like, objective, temperature=1.0)
    planned = shard_batch(np.array(task["lengths"], np.int32), mesh)

    def sample(state: TrainState, step: int) -> Completions:
        return sampler(state.params, prompts, stream_key(0, "train", step), planned)

    def score(state: TrainState, completions: Completions) -> GroupBatch:
        reference, drawn = None, (completions.tokens, completions.mask)
        tokens, mask = jax.device_get(drawn)
        if state.ref_params is not None:
            reference = scorer(state.ref_params, prompts, *drawn)
        kept = (x.reshape(-1, x.shape[-1]) for x in (tokens, mask))
        rewards = np.array([reward(ids[mask].tolist()) for ids, mask in zip(*kept)], np.float32)
        rewards = rewards.reshape(completions.mask.shape[:2])
        evidence = Evidence(rewards, np.ones(rewards.shape, bool))
        advantages, weights = weigher(shard_batch(evidence, mesh), completions.mask)
        return GroupBatch(prompts, completions, advantages, weights, None, reference)

    def learn(state: TrainState, batch: GroupBatch):
        return update(state, {}, batch)

    def parts(steps: Steps) -> tuple[Callable, Callable, Callable]:
        named = {"generation": sample, "reference": score, "update": learn}
        return tuple(steps.timed(*part, jax.block_until_ready) for part in named.items())

    return state, prompts, parts


def gate(task: dict[str, Any], model: ModelConfig) -> None:
    folder, length = Path(task["output"]), task["completion_length"]
    state, prompts, parts = make_parts(task, model)
    key = stream_key(0, "evaluate", 0)
    greedy = sampler_of(task, model, 1, greedy=True)(state.params, prompts, key)
    ties = second_choices(model, state.params, prompts, greedy.tokens)
    rows = [ids for group in task["completions"] for ids in group]
    mask = np.arange(length) < np.array([len(ids) for ids in rows])[:, None]
    tokens = np.full(mask.shape, PAD, np.int32)
    tokens[mask] = np.concatenate(rows)
    shape = (len(task["prompts"]), task["group_size"], length)
    tokens, logps = tokens.reshape(shape), np.zeros(shape, np.float32)
    recorded = shard_batch(Completions(tokens, mask.reshape(shape), logps), make_mesh(MeshConfig()))
    _, score, learn = parts(Steps(folder))
    seen, found = [], None
    for _ in range(task["steps"]):
        batch = score(state, recorded)
        if found is None:
            found = np.asarray(batch.ref_logps).reshape(mask.shape)
        state, metrics = learn(state, batch)
        seen.append(jax.device_get(metrics))
    write_gate(
        folder,
        greedy.tokens[:, 0],
        [row[kept] for row, kept in zip(found, mask)],
        [metrics["loss"] for metrics in seen],
        [metrics["grad_norm"] for metrics in seen],
        **ties,
    )


def second_choices(model: ModelConfig, params: Params, prompts: Prompts, greedy: Array):
    """The second likeliest token [B, T] wherever `greedy` [B, 1, T] took the likeliest, and how far
    it is behind."""
    policy, variables = Policy(model), {"params": params}

    @jax.jit
    def logits_of(prompts: Prompts, tokens: Array) -> Array:
        last, prefix = scoring.prefill(policy, params, prompts)
        hidden, _ = policy.apply(variables, tokens, prefix, method="extend")
        hidden = jnp.concatenate([last[:, None, None], hidden[:, :, :-1]], axis=2)
        return policy.apply(variables, hidden, method="logits")[:, 0]

    likeliest, ids = jax.lax.top_k(logits_of(prompts, greedy), 2)
    return {"second": ids[..., 1], "behind": likeliest[..., 0] - likeliest[..., 1]}


def measure(task: dict[str, Any], model: ModelConfig) -> None:
    state, _, parts = make_parts(task, model)
    steps = Steps(Path(task["output"]))
    sample, score, learn = parts(steps)
    for step in range(task["steps"]):
        completions = sample(state, step)
        state, _ = learn(state, score(state, completions))
        steps.tokens = int(completions.mask.sum())
        steps.end()
    steps.write()


def take_away(task: dict[str, Any]) -> dict[str, Any]:
    """The task without what `task["without"]` names, and the package too."""
    thing, length = task["without"], task["completion_length"]
    if thing == "shapes":  # decoding in one loop over all rows and columns
        sampling.SHORTEST = length
    elif thing == "slices":  # every completion read to the longest allowed, all at once
        slices.MOST_SLICES, slices.SHORTEST = 1, length
    elif thing == "chunked head":
        scoring.CHUNK_ELEMENTS = 2**62
    elif thing == "two-level draw":  # a random number for each entry of the vocabulary
        sampling.draw = draw_by_gumbel
    elif thing == "shared prompts":  # a prompt of its own for every two; a group has no fewer
        pairs = task["group_size"] // 2
        repeated = {
            name: [x for x in task[name] for _ in range(pairs)] for name in ("prompts", "texts")
        }
        lengths = [group[i : i + 2] for group in task["lengths"] for i in range(0, 2 * pairs, 2)]
        task = task | repeated | {"lengths": lengths, "group_size": 2}
    elif thing == "remat":
        task = task | {"remat": False}
    elif thing == "products alone":  # all that a block computes is kept for the backward pass
        models.PRODUCTS = jax.checkpoint_policies.everything_saveable
    elif thing:
        raise ValueError(f"cannot take away {thing!r}")
    return task


def draw_by_gumbel(logits: jax.Array, bits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What `drawing.draw` does, as `jax.random.categorical` does it."""
    token = jax.random.categorical(jax.random.wrap_key_data(bits), logits)
    return token, jax.nn.log_softmax(logits)[token]


def main(task: dict[str, Any]) -> None:
    task = take_away(task)
    model = dataclasses.replace(read_model_config(task["folder"]), remat=task["remat"])
    model = choose_attention(model, jax.devices()[0])
    with use_mesh(make_mesh(MeshConfig())):
        (gate if task["kind"] == "gate" else measure)(task, model)


if __name__ == "__main__":
    main(read_task())
