"""The learner: all optimizer updates of one step in one jit, over epochs, minibatches and
microbatches.

A microbatch changes memory and never the result: the loss is a sum over tokens with weights made
for the whole batch, so the gradients of parts add up. An update whose loss or gradient is not
finite is refused and counted, and the state stays as it was.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from grpojax.config import GRPOConfig
from grpojax.experts import balance_loss
from grpojax.gradients import Graded, Metrics, Optimizer, descend, split, summed
from grpojax.grpo import token_losses
from grpojax.lora import combine
from grpojax.lora import split as split_adapters
from grpojax.model import Policy, init_params
from grpojax.scoring import prefill, score
from grpojax.sharding import row_shards, rows_each, shardings_of, with_shardings
from grpojax.slices import by_length, members_of_slice, sliced, to_length, where_some
from grpojax.types import GroupBatch, Params, Prefix, TrainState

BALANCE = "router/balance_loss"  # the mean over groups; other sums become means over tokens


def fresh_state(params: Params, optimizer: Optimizer, reference: bool) -> TrainState:
    """The state before the first step, of the parameters that are trained. The reference is a
    copy: a donated state shares no buffers."""
    step, update, skipped = (jnp.zeros((), jnp.int32) for _ in range(3))
    copy = jax.tree.map(jnp.copy, params) if reference else None
    return TrainState(step, update, skipped, params, optimizer.init(params), copy)


def abstract_state(
    policy: Policy, optimizer: Optimizer, mesh: Mesh, *, reference: bool
) -> TrainState:
    """Shapes, dtypes and shardings of the state, without an array."""

    def build():
        trained, _ = split_adapters(init_params(policy, jax.random.key(0)))
        return fresh_state(trained, optimizer, reference)

    return with_shardings(jax.eval_shape(build), mesh)


def init_state(optimizer: Optimizer, like: TrainState, trained: Params) -> TrainState:
    """The state before the first step, placed as `like` says; `trained` is given up."""
    build = jax.jit(
        lambda trained: fresh_state(trained, optimizer, like.ref_params is not None),
        out_shardings=shardings_of(like),
        donate_argnums=0,
    )
    return build(trained)


def slice_loss(
    policy: Policy,
    params: Params,
    read: tuple[Float[Array, "B D"], Prefix],
    piece: GroupBatch,
    config: GRPOConfig,
    temperature: float,
) -> tuple[Array, tuple[Metrics, Metrics]]:
    """Loss of some members of every group, with sums over their counted tokens and the largest
    values seen."""
    sampled = piece.completions
    logps, entropy, routing = score(
        policy,
        params,
        read,
        sampled.tokens,
        temperature,
        sampled.mask,
        entropy_gradient=config.entropy_weight > 0,
    )
    group = functools.partial(
        token_losses,
        beta=config.beta,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        ratio=config.ratio,
        surrogate=config.surrogate,
        dual_clip=config.dual_clip,
        tau_positive=config.tau_positive,
        tau_negative=config.tau_negative,
        kl=config.kl,
        mismatch=config.mismatch,
        mismatch_level=config.mismatch_level,
        mismatch_low=config.mismatch_low,
        mismatch_high=config.mismatch_high,
        entropy_weight=config.entropy_weight,
    )
    losses, logged = jax.vmap(group)(
        logps,
        piece.old_logps,
        piece.ref_logps,
        piece.advantages,
        sampled.mask,
        sampled.logps,
        entropy,
    )
    counted = piece.weights != 0  # not `>`, by which a NaN would go unseen
    difference = jnp.where(counted, jnp.abs(logps - sampled.logps), 0.0)
    logged |= {"entropy": entropy, "sampling/sampling_logp_difference/mean": difference}
    sums = {name: jnp.where(counted, x, 0.0).sum() for name, x in logged.items()}
    sums["tokens"] = counted.sum().astype(jnp.float32)
    peaks = {"sampling/sampling_logp_difference/max": difference.max()}
    # `where`: a weight of 0 must also silence a loss that is not finite.
    loss = jnp.where(counted, piece.weights * losses, 0.0).sum()
    if routing is not None:
        balance = balance_loss(routing)
        loss += config.router_weight * balance.mean() / config.microbatches
        sums[BALANCE] = balance.sum()
        peaks["router/max_load"] = routing.load.max() * policy.config.num_experts
    return loss, (sums, peaks)


def batch_gradients(
    policy: Policy,
    trained: Params,
    frozen: Params,
    batch: GroupBatch,
    config: GRPOConfig,
    temperature: float,
) -> Graded:
    """Loss, sums, peaks and gradients of (a part of) a batch.

    Prompts are read once, and slices of the members one after the other: what they ask of the
    prompts adds up, in float32, and goes back through them once. A router's balance is of a whole
    group, so with experts all members are one slice.
    """

    def read_prompts(trained: Params):
        last, prefix = prefill(policy, combine(frozen, trained), batch.prompts)
        return jax.tree.map(lambda x: x.astype(jnp.float32), (last, prefix.kv)), prefix

    def loss(given: tuple[Params, Any], piece: GroupBatch):
        trained, begun = given
        last, kv = jax.tree.map(lambda x: x.astype(policy.config.compute_dtype), begun)
        read = last, prefix.replace(kv=kv)
        return slice_loss(policy, combine(frozen, trained), read, piece, config, temperature)

    def graded(piece: GroupBatch, given: tuple[Params, Any]) -> Graded:
        return jax.value_and_grad(loss, has_aux=True)(given, piece)

    def of_piece(piece: GroupBatch) -> Graded:
        return to_length(graded, piece, lengths_of(piece).max(), (trained, begun))

    def lengths_of(batch: GroupBatch) -> Int[Array, "B W"]:
        read = batch.completions.mask if experts else batch.weights != 0
        return (read * jnp.arange(1, read.shape[-1] + 1)).max(-1)

    experts, shape = policy.config.num_experts, batch.weights.shape
    begun, back, prefix = jax.vjp(read_prompts, trained, has_aux=True)
    members = shape[1] if experts else members_of_slice(rows_each(shape[0]), *shape[1:])
    pieces, _ = sliced(batch.replace(prompts=None), lengths_of(batch), members)
    found, (grads, of_begun) = summed(of_piece, pieces)
    (through_prompts,) = back(of_begun)
    return found, jax.tree.map(jnp.add, grads, through_prompts)


def make_update(
    policy: Policy,
    optimizer: Optimizer,
    like: TrainState,
    config: GRPOConfig,
    *,
    temperature: float,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """The jitted `update(state, frozen, batch) -> (state, metrics)` of one step, donating `state`.

    `frozen` are the parameters that `state` does not train: none, or the base of its adapters.

    The new state lies as `like` does, so that the second step runs what the first one compiled.

    Each minibatch is one optimizer update on its share of the batch's loss, scaled to weigh as a
    batch of its own. The learning rate in the metrics is the caller's to add (`make_schedule`).
    """

    # Then a completion without an advantage adds nothing to the gradient and is not read.
    needs_advantage = not (config.beta or config.entropy_weight or policy.config.num_experts)

    def next_reference(before: TrainState, after: TrainState) -> Params | None:
        if before.ref_params is None or config.reference == "initial":
            return before.ref_params
        due, params = after.update > before.update, before.params  # a refused update renews nothing
        if config.reference == "refreshed":
            due &= after.update % config.reference_every == 0
            params = after.params
        return jax.tree.map(lambda new, ref: jnp.where(due, new, ref), params, before.ref_params)

    def one_update(frozen: Params, state: TrainState, minibatch: GroupBatch):
        def graded(part: GroupBatch) -> Graded:
            return batch_gradients(policy, state.params, frozen, part, config, temperature)

        def of_part(part: GroupBatch) -> Graded:
            some = (part.weights != 0).any() | bool(policy.config.num_experts)
            return where_some(some, graded, part)

        if config.microbatches > 1:
            tokens = (minibatch.weights != 0).sum((1, 2))
            minibatch = by_length(minibatch, tokens, config.microbatches, row_shards())
        parts = split(minibatch, config.microbatches)
        (total, (sums, peaks)), grads = summed(of_part, parts)
        after, seen = descend(optimizer, state, total, grads)
        after = after.replace(ref_params=next_reference(state, after))
        return after, (seen, sums, peaks)

    def update(state: TrainState, frozen: Params, batch: GroupBatch) -> tuple[TrainState, Metrics]:
        weights = batch.weights * config.minibatches
        if needs_advantage:
            weights = jnp.where((batch.advantages == 0).all(-1, keepdims=True), 0.0, weights)
        batch = batch.replace(weights=weights)
        minibatches = split(batch, config.minibatches)

        def one_epoch(state, _):
            return jax.lax.scan(functools.partial(one_update, frozen), state, minibatches)

        state, (seen, sums, peaks) = jax.lax.scan(one_epoch, state, length=config.epochs_per_batch)
        metrics = {name: x.mean() for name, x in seen.items()}
        metrics["updates_refused"] = seen["updates_refused"].sum()
        sums = {name: x.sum() for name, x in sums.items()}
        tokens = jnp.maximum(sums.pop("tokens"), 1.0)
        if BALANCE in sums:
            metrics[BALANCE] = sums.pop(BALANCE) / (len(batch.weights) * config.epochs_per_batch)
        metrics |= {name: x / tokens for name, x in sums.items()}
        metrics |= {name: x.max() for name, x in peaks.items()}
        if state.ref_params is None:
            del metrics["kl"]
        return state.replace(step=state.step + 1), metrics

    shardings = shardings_of(like), None
    return jax.jit(update, donate_argnums=0, out_shardings=shardings)
