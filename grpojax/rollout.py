"""Rollout: the completions of one step and what they were judged to be.

Groups whose rewards are all equal can be drawn again (dynamic sampling, DAPO, 2503.14476), each
draw with keys of its own; a group that has spread is kept as it is.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from grpojax.config import Config, GRPOConfig
from grpojax.hosts import is_first, on_host
from grpojax.rewards import Judged, compute_rewards
from grpojax.run import Run
from grpojax.sampling import make_sampler, stream_key
from grpojax.sharding import shard_batch, use_mesh
from grpojax.steps import judge_steps
from grpojax.summary import Laps
from grpojax.task import Example
from grpojax.tokenizer import decode_groups
from grpojax.types import Completions, Evidence, Params, Prompts
from grpojax.verdicts import Verdict, judge_by_hosts, part_of, rows_of


class Rollout(NamedTuple):
    """B groups of G completions, on the device and on the host."""

    completions: Completions
    tokens: Int[np.ndarray, "B G T"]
    mask: Bool[np.ndarray, "B G T"]
    cut_off: Bool[np.ndarray, "B G"]  # reached T without a stop token
    texts: list[list[str]]
    judged: Judged
    step_rewards: Float[np.ndarray, "B G T"] | None  # with process supervision
    step_ends: Bool[np.ndarray, "B G T"] | None
    redrawn: int  # groups drawn again, each time counted
    # of each draw: the rows it was for, and the lengths of their completions
    draws: list[tuple[Int[np.ndarray, "R"], Int[np.ndarray, "R G"]]]


def make_rollout(run: Run) -> Callable[..., Rollout]:
    """`rollout(params, examples, prompts, step, laps, meanwhile) -> Rollout`.

    It samples on `run.sampling_mesh`, where `params` lie. `meanwhile(completions)` is called when
    they are drawn, and where they are trained on, and before the host judges: what it dispatches
    runs on the device in the meantime. `laps` takes the times of both.
    """
    config, grpo, sampling = run.config, run.config.grpo, run.config.sampling
    named = list(config.rewards.values())
    sampler = make_sampler(
        run.policy,
        group_size=grpo.group_size,
        completion_length=sampling.completion_length,
        stop_ids=run.stops,
        pad_id=run.tokenizer.pad_id,
        temperature=sampling.temperature,
    )

    def decode(tokens: np.ndarray, mask: np.ndarray, rows: Int[np.ndarray, "R"]):
        """Texts of these rows; none of the others."""
        texts: list[list[str]] = [[] for _ in tokens]
        for row, group in zip(
            rows, decode_groups(run.tokenizer, tokens[rows], mask[rows], run.stops)
        ):
            texts[row] = group
        return texts

    def judge(rows: Int[np.ndarray, "R"], examples, texts, lengths, cut_off) -> Verdict:
        asked, answers = [examples[row] for row in rows], [texts[row] for row in rows]
        judged = compute_rewards(run.rewards, named, asked, answers, config.judging)
        length = sampling.completion_length
        return with_overlong(judged, lengths[rows], cut_off[rows], grpo, length), {}

    def judge_parts(rows: Int[np.ndarray, "R"], examples, tokens, mask, judged) -> Verdict:
        said, values, ends = judge_steps(
            run.step_reward,
            run.tokenizer,
            "\n" if config.step_boundary == "newline" else config.step_boundary,
            run.stops,
            [examples[row] for row in rows],
            tokens[rows],
            mask[rows],
            rows_of(judged, rows),
        )
        return said, {"rewards": values, "ends": ends}

    def rollout(
        params: Params,
        examples: list[Example],
        prompts: Prompts,
        step: int,
        laps: Laps,
        meanwhile: Callable[[Completions], None],
    ) -> Rollout:
        again, redrawn, draws = np.ones(len(examples), bool), 0, []
        prompts = shard_batch(prompts, run.sampling_mesh)
        drawn = judged = None
        for attempt in range(grpo.max_draws):
            with use_mesh(run.sampling_mesh):
                key = stream_key(config.seed, "redraw" if attempt else "train", step)
                key = jax.random.fold_in(key, attempt) if attempt else key
                new = sampler(params, prompts, key)
                drawn = take_groups(again, new, drawn) if attempt else new
            redrawn += int(again.sum()) if attempt else 0
            completions = shard_batch(drawn, run.mesh)
            tokens, mask = on_host((drawn.tokens, drawn.mask))  # wait: the sampler
            laps.end("time/sample")
            lengths, cut_off = mask.sum(-1), reached_the_end(tokens, mask, run.stops)
            meanwhile(completions)
            rows = np.flatnonzero(again)
            draws.append((rows, lengths[rows]))
            # The first host also records what was drawn.
            texts = decode(tokens, mask, np.arange(len(tokens)) if is_first() else part_of(rows))
            groups = examples, texts, lengths, cut_off
            said, _ = judge_by_hosts(rows, lambda rows, groups=groups: judge(rows, *groups))
            judged = merge(judged, said, again) if attempt else said
            laps.end("time/reward")
            again = without_spread(judged)
            if not again.any():
                break
        step_rewards = step_ends = None
        if run.step_reward is not None:
            drawn_so = examples, tokens, mask, judged
            said, more = judge_by_hosts(
                np.arange(len(examples)), lambda rows: judge_parts(rows, *drawn_so)
            )
            failure = judged.failure or said.failure
            judged = dataclasses.replace(said, failure=failure, counts=judged.counts)
            step_rewards, step_ends = more["rewards"], more["ends"]
            laps.end("time/reward")
        return Rollout(
            completions,
            tokens,
            mask,
            cut_off,
            texts,
            judged,
            step_rewards,
            step_ends,
            redrawn,
            draws,
        )

    return rollout


def evidence_of(drawn: Rollout, scored: dict[str, Array], config: Config) -> Evidence:
    """What the weigher reads of a rollout, and of what was `scored` meanwhile (ref_logps, entropy),
    for the objective of `config`."""
    grpo, judged = config.grpo, drawn.judged
    in_reward = grpo.kl == "k1_reward"
    return Evidence(
        rewards=judged.total,
        valid=judged.valid,
        by_name=np.stack([*judged.by_name.values()], -1) if grpo.advantage == "gdpo" else None,
        cut_off=drawn.cut_off if grpo.overlong == "mask" else None,
        sampled_logps=drawn.completions.logps if in_reward else None,
        ref_logps=scored.get("ref_logps") if in_reward else None,
        entropy=scored.get("entropy"),
        step_rewards=drawn.step_rewards,
        step_ends=drawn.step_ends,
    )


def reward_weights(config: Config) -> tuple[float, ...]:
    """Weights of the rewards in the order in which they are judged, the overlong one and that of
    the reward model last."""
    last = []
    if config.grpo.overlong in ("soft", "penalty"):
        last.append(config.grpo.overlong_penalty)
    if config.reward_model.every:
        last.append(config.reward_model.weight)
    return (*config.rewards.values(), *last)


def take_groups(rows: Bool[np.ndarray, "B"], new: Completions, old: Completions) -> Completions:
    """The groups of `new` where `rows` is True, those of `old` elsewhere."""
    chosen = rows[:, None, None]
    return jax.tree.map(lambda new, old: jnp.where(chosen, new, old), new, old)


def merge(old: Judged, new: Judged, rows: Bool[np.ndarray, "B"]) -> Judged:
    """`old` with the groups where `rows` is True replaced by `new`, in order."""

    def put(old: np.ndarray, new: np.ndarray) -> np.ndarray:
        result = old.copy()
        result[rows] = new
        return result

    return Judged(
        by_name={name: put(values, new.by_name[name]) for name, values in old.by_name.items()},
        total=put(old.total, new.total),
        valid=put(old.valid, new.valid),
        failure=old.failure or new.failure,
        counts={name: count + new.counts.get(name, 0) for name, count in old.counts.items()},
    )


def without_spread(judged: Judged) -> Bool[np.ndarray, "B"]:
    """Groups in which no two valid completions differ in reward."""
    highest = np.where(judged.valid, judged.total, -np.inf).max(-1)
    lowest = np.where(judged.valid, judged.total, np.inf).min(-1)
    return ~(highest > lowest)


def reached_the_end(
    tokens: Int[np.ndarray, "B G T"], mask: Bool[np.ndarray, "B G T"], stops: tuple[int, ...]
) -> Bool[np.ndarray, "B G"]:
    """Completions that were cut off at T: the last token is no stop token."""
    last = np.take_along_axis(tokens, mask.sum(-1)[..., None] - 1, axis=-1)[..., 0]
    return ~np.isin(last, stops)


def with_overlong(
    judged: Judged,
    lengths: Int[np.ndarray, "B G"],
    cut_off: Bool[np.ndarray, "B G"],
    config: GRPOConfig,
    completion_length: int,
) -> Judged:
    """Rewards with the punishment of long completions, under the name "overlong"."""
    if config.overlong not in ("soft", "penalty"):
        return judged
    values = -cut_off.astype(np.float32)
    if config.overlong == "soft":
        values = soft_punishment(lengths, completion_length, config.overlong_buffer)
    values = np.where(judged.valid, values, 0.0).astype(np.float32)
    return dataclasses.replace(
        judged,
        by_name=judged.by_name | {"overlong": values},
        total=judged.total + np.float32(config.overlong_penalty) * values,
    )


def soft_punishment(
    lengths: Int[np.ndarray, "*s"], most: int, buffer: int
) -> Float[np.ndarray, "*s"]:
    """0 up to `most` - `buffer` tokens, then falling linearly to -1 at `most`, and -1 beyond
    (DAPO, 2503.14476, eq. 13)."""
    return np.clip((most - buffer - lengths) / buffer, -1.0, 0.0)
