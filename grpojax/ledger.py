"""Ledger: how fast the work of a step was done, against what the device can do."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from grpojax.config import Config
from grpojax.roofline import Roofline, describe_roofline, rate
from grpojax.work import Lengths, Work, decode_work, forward_work, prefill_work, update_work

PHASES = ("sample", "reference", "update")


def make_ledger(config: Config) -> Callable[..., dict[str, float]]:
    """`ledger(lengths, draws, times, scored) -> metrics`: rates of the phases of one step.

    `lengths` are those of the step's batch, `draws` those of `Rollout`, `times` the seconds of
    `Laps`, `scored` whether the reward model scored the batch. Reading the prompts and
    decoding are one program, so they are one phase, "sample". The passes of "reference", which
    include those of an old policy, a critic and a reward model, begin before the host judges and
    are waited for after it: their seconds are both, and where judging is the slower of the two the
    rate is a lower bound. With a lag judging is over before they begin.
    """
    model, grpo = config.model, config.grpo
    ppo = config.algorithm == "ppo"
    rescored = not grpo.on_policy and grpo.old_logps == "rescored"
    passes = (grpo.beta > 0) + rescored + (grpo.top_entropy < 1)
    parts = {"epochs": grpo.epochs_per_batch, "minibatches": grpo.minibatches}
    parts |= {"microbatches": grpo.microbatches}

    def ledger(
        lengths: Lengths,
        draws: Sequence[tuple[np.ndarray, np.ndarray]],
        times: dict[str, float],
        scored: bool = False,
    ) -> dict[str, float]:
        drawn = [Lengths(lengths.prompts[rows], completions) for rows, completions in draws]
        sampled = [work(model, each) for each in drawn for work in (prefill_work, decode_work)]
        referred = [forward_work(model, lengths)] * passes
        referred += [forward_work(model, lengths, head=False)] * (ppo + scored)
        moment = config.optimizer.moment_dtype
        updated = [update_work(model, lengths, moment_dtype=moment, **parts)]
        if ppo:
            moment = config.ppo.critic.moment_dtype
            updated += [update_work(model, lengths, head=False, moment_dtype=moment, **parts)]
        waited = times["time/reference"] + (0.0 if grpo.lag else times["time/reward"])
        phases = {"sample": (sampled, times["time/sample"])}
        if referred:
            phases["reference"] = referred, waited
        phases["update"] = updated, times["time/update"]
        metrics = {}
        for name, (works, seconds) in phases.items():
            work = sum(works, Work())
            metrics[f"flops_per_second/{name}"] = work.flops / seconds
            metrics[f"bytes_per_second/{name}"] = work.bytes / seconds
        return metrics

    return ledger


def shares(metrics: Mapping[str, Any], roofline: Roofline, sampling: Roofline) -> dict[str, float]:
    """The larger of its two rates against the roofline, for each phase in `metrics`; "sample"
    against that of the devices that do it."""
    found = {}
    for phase in PHASES:
        if f"flops_per_second/{phase}" in metrics:
            most = sampling if phase == "sample" else roofline
            computed = metrics[f"flops_per_second/{phase}"] / most.flops
            moved = metrics[f"bytes_per_second/{phase}"] / most.bytes
            found[f"roofline/{phase}"] = max(computed, moved)
    return found


def describe_ledger(lines: Sequence[Mapping[str, Any]], roofline: Roofline) -> str:
    """One line: medians of the phases over the steps in `lines` of metrics, without the first step,
    which compiles, where there are others. The seconds of the reference are those that the
    host waited for it.
    """
    steps = [line for line in lines if "step_time" in line]
    steps = steps[1:] or steps

    def median(name: str) -> float:
        return statistics.median(line[name] for line in steps)

    parts = [f"step {median('step_time'):.3g} s"] if steps else []
    for phase in PHASES:
        if steps and all(f"flops_per_second/{phase}" in line for line in steps):
            computed, moved = (median(f"{of}_per_second/{phase}") for of in ("flops", "bytes"))
            parts.append(
                f"{phase} {median(f'time/{phase}'):.3g} s at {rate(computed, 'FLOP/s')}, "
                f"{rate(moved, 'B/s')}, {median(f'roofline/{phase}'):.0%} of the roofline"
            )
    return "; ".join([*parts, f"the roofline is {describe_roofline(roofline)}"])
