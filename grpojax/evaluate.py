"""Evaluation: held-out accuracy, greedy and sampled, with standard errors, by the sampler that
trains.

Standard errors are over problems: completions of one problem are not independent of each other.
"""

import math
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Bool, Float

from grpojax.checks import require
from grpojax.data import make_prompts, rows_of
from grpojax.rewards import compute_rewards
from grpojax.run import Run, reopen_run, trained_params
from grpojax.sampling import make_sampler, stream_key
from grpojax.sharding import shard_batch, use_mesh
from grpojax.tokenizer import decode_groups
from grpojax.types import Params

Evaluator = Callable[[Params, int, str], dict[str, float]]


def make_evaluator(run: Run, *, examples: int, samples: int, k: tuple[int, ...]) -> Evaluator:
    """`evaluate(params, step, split)`: accuracy on the first `examples` problems of a split.

    Metrics: `accuracy` (greedy), `sampled_accuracy` (mean over `samples` completions, none drawn if
    0), `pass@k` for each of `k`, each with its standard error in `.._se`; `invalid`, completions
    that could not be judged and count nowhere. `step` seeds the draws.

    Raises:
      ValueError: a `k` exceeds `samples`.
    """
    most = max(k, default=0)
    require(most <= samples, f"pass@k needs k of at most samples={samples}, got k={most}")
    config, evaluation = run.config, run.config.evaluation
    shape = dict(
        completion_length=config.sampling.completion_length,
        stop_ids=run.stops,
        pad_id=run.tokenizer.pad_id,
    )
    greedy = make_sampler(run.policy, group_size=1, greedy=True, **shape)
    sampled = make_sampler(
        run.policy,
        group_size=max(samples, 1),
        temperature=evaluation.temperature,
        top_k=evaluation.top_k,
        top_p=evaluation.top_p,
        **shape,
    )
    accuracy = {"accuracy": run.task.rewards["accuracy"]}
    at_once = config.grpo.prompts_per_step * config.grpo.group_size  # completions: as in training
    shards = run.mesh.shape["data"] * run.mesh.shape["fsdp"]

    def judge(sampler, params, step, chosen, group_size):
        """Accuracy [n, G] of completions of the chosen problems, and which could be judged."""
        prompts = make_prompts(
            chosen, run.tokenizer, config.sampling.prompt_length, config.data.long_prompts
        )
        key = stream_key(config.seed, "evaluate", step)
        size = -(-min(max(at_once // group_size, 1), len(chosen)) // shards) * shards
        texts = []
        for start in range(0, len(chosen), size):
            # The last batch is filled up with its last problem: one shape, compiled once.
            rows = np.minimum(np.arange(start, start + size), len(chosen) - 1)
            drawn = sampler(params, shard_batch(rows_of(prompts, rows), run.mesh), key)
            tokens, mask = jax.device_get((drawn.tokens, drawn.mask))
            texts += decode_groups(run.tokenizer, tokens, mask, run.stops)
        judged = compute_rewards(accuracy, [1.0], chosen, texts[: len(chosen)])
        return judged.total, judged.valid

    def evaluate(params: Params, step: int, split: str) -> dict[str, float]:
        chosen = list(run.task.splits[split][:examples])
        right, valid = judge(greedy, params, step, chosen, 1)
        metrics = with_error("accuracy", right[valid])
        invalid = (~valid).sum()
        if samples:
            right, valid = judge(sampled, params, step, chosen, samples)
            metrics |= sampled_metrics(right, valid, k)
            invalid += (~valid).sum()
        return metrics | ({"invalid": float(invalid)} if invalid else {})

    return evaluate


def sampled_metrics(
    right: Float[np.ndarray, "n S"], valid: Bool[np.ndarray, "n S"], k: tuple[int, ...]
) -> dict[str, float]:
    """Mean accuracy and pass@k of S samples for each of n problems, over the valid ones."""
    judged = valid.any(1)
    right, valid = np.where(valid, right, 0.0)[judged], valid[judged]
    metrics = with_error("sampled_accuracy", right.sum(1) / valid.sum(1))
    for most in k:
        counts = zip(valid.sum(1).tolist(), (right > 0).sum(1).tolist())
        passed = [pass_at_k(n, c, most) for n, c in counts if n >= most]
        metrics |= with_error(f"pass@{most}", np.array(passed))
    return metrics


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Probability that k of `samples`, `right` of them right, hold a right one: the unbiased
    estimate 1 - C(samples - right, k) / C(samples, k) (Codex, 2107.03374)."""
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def with_error(name: str, values: Float[np.ndarray, "n"]) -> dict[str, float]:
    """The mean over problems and its standard error; NaN for what too few problems cannot give."""
    mean = float(values.mean()) if values.size else math.nan
    error = float(values.std(ddof=1) / math.sqrt(values.size)) if values.size > 1 else math.nan
    return {name: mean, f"{name}_se": error}


def evaluate_run(
    workdir: Path,
    *,
    split: str,
    samples: int,
    k: tuple[int, ...],
    examples: int,
    step: int | None,
    say: Callable[[str], None] = print,
) -> dict[str, int | float]:
    """Evaluates a checkpoint of a run (the newest, or `step`) on a split of its task.

    Raises:
      ValueError: there is no such run, checkpoint or split.
    """
    run = reopen_run(workdir)
    splits = ", ".join(run.task.splits)
    require(split in run.task.splits, f"split must be one of {splits}, got {split!r}")
    for note in run.task.notes:
        say(note)
    with use_mesh(run.mesh):
        evaluate = make_evaluator(run, examples=examples, samples=samples, k=k)
        which = "newest" if step is None else step
        params, at = trained_params(workdir, run.mesh, say, which)
        return {"step": at, **evaluate(params, at, split)}
