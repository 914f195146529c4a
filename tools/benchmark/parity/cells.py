"""Cells: one system with one seed each, run unless they are done, and what came of them.

All systems are told the same: a grpojax config, the prompts of every update as grpojax's data
pipeline gives them, the ids that end a completion, and the reward by name.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from configs.addition_smollm2_135m import get_config
from grpojax.config import Config
from grpojax.data import make_batches
from grpojax.run import open_run
from tools.benchmark.parity.record import FILE
from tools.benchmark.runs import launch

SYSTEMS = ("grpojax", "trl")
GATED = 2  # updates that the gate compares: the second has AdamW and the schedule in it
BOUNDS = {"rewards": 0, "grad_norm": 1e-4, "grad_norm of update 2": 1e-4}  # norms relative

Lines = list[dict[str, Any]]


def config_of(init: str, steps: int, seed: int, prompts: int, group_size: int) -> Config:
    """configs/addition_smollm2_135m.py with these values, and TRL's epsilon."""
    config = get_config()
    grpo = dataclasses.replace(
        config.grpo, prompts_per_step=prompts, group_size=group_size, std_epsilon=1e-4
    )
    return dataclasses.replace(config, init=init, steps=steps, seed=seed, grpo=grpo)


def task_of(config: Config, updates: int, threads: int) -> dict[str, Any]:
    """What the workers are told: the first `updates` of the run that `config` describes.

    Raises:
      ValueError: the config, or the folder that it names, is wrong.
    """
    run = open_run(config, Path())
    batch_of = make_batches(
        run.task.splits["train"],
        run.tokenizer,
        prompts_per_step=config.grpo.prompts_per_step,
        prompt_length=config.sampling.prompt_length,
        seed=config.seed,
    )
    batches = []
    for step in range(updates):
        examples, prompts = batch_of(step)
        tokens = [row[mask].tolist() for row, mask in zip(prompts.tokens, prompts.mask)]
        batches.append(
            [
                {"id": each.id, "prompt": each.prompt, "answer": each.answer, "tokens": ids}
                for each, ids in zip(examples, tokens)
            ]
        )
    (reward,) = run.rewards.values()
    task = {
        "threads": threads,
        "config": dataclasses.asdict(config),
        "stops": list(run.stops),
        "reward": f"{reward.__module__}:{reward.__qualname__}",
        "batches": batches,
    }
    return json.loads(json.dumps(task))  # tuples become lists, as they are read back


def lines_of(system: str, task: dict[str, Any], output: Path, workdir: Path) -> Lines:
    """The updates of a cell and its peak, from a run of it unless `output` holds a whole one.

    Raises:
      ValueError: the whole run there is of another task, or see `read_lines`.
      Failed: the worker gave up.
    """
    if (output / FILE).exists() and is_whole(output / FILE):
        done = json.loads((output / "task.json").read_text())
        if {**done, "output": ""} != {**task, "output": ""}:
            raise ValueError(
                f"{output} holds a run with other settings than those asked for; remove it, or use "
                "another --workdir"
            )
        print(f"{output.name}: done before", flush=True)
    else:
        print(f"{output.name}: runs", flush=True)
        launch(system, f"tools.benchmark.parity.{system}", task, output, workdir)
    return read_lines(output / FILE, task)


def is_whole(path: Path) -> bool:
    """Whether the run came to its end: its last line is the peak."""
    last = path.read_text().splitlines()[-1:]
    return bool(last) and last[0].startswith('{"peak"')


def read_lines(path: Path, task: dict[str, Any]) -> Lines:
    """The updates of a whole run, then its peak.

    Raises:
      ValueError: there are not as many as planned, or a completion does not end where it must: at
        its first stop token, or at T.
    """
    *updates, peak = map(json.loads, path.read_text().splitlines())
    if len(updates) != len(task["batches"]):
        raise ValueError(f"{path} must hold {len(task['batches'])} updates, got {len(updates)}")
    stops, most = set(task["stops"]), task["config"]["sampling"]["completion_length"]
    for number, line in enumerate(updates, 1):
        for ids in line["completions"]:
            ended = bool(ids) and (ids[-1] in stops or len(ids) == most)
            if not ended or stops & set(ids[:-1]):
                raise ValueError(
                    f"{path}: completions must end at their first stop token ({sorted(stops)}) or "
                    f"at {most} tokens, got {ids} in update {number}"
                )
    return [*updates, peak]


def gate(ours: Lines, theirs: Lines) -> dict[str, float]:
    """How far the systems are apart in what they make of the same completions, by the names of
    BOUNDS.

    The loss is not compared: with β 0 it is a sum of advantages, 0 whatever the parameters are.

    Raises:
      ValueError: one is above its bound or no number, or no group had rewards to compare.
    """
    unequal, norms = 0, []
    for number, (a, b) in enumerate(zip(ours[:GATED], theirs[:GATED]), 1):
        if not a["grad_norm"]:
            raise ValueError(
                f"some group must have unequal rewards, got none in update {number}: its gradient "
                "is 0 for every system; raise --prompts or --group-size"
            )
        unequal += sum(x != y for x, y in zip(a["rewards"], b["rewards"], strict=True))
        norms.append(abs(a["grad_norm"] - b["grad_norm"]) / a["grad_norm"])
    apart = dict(zip(BOUNDS, (unequal, *norms)))
    for quantity, value in apart.items():
        if not value <= BOUNDS[quantity]:  # a NaN is above every bound
            raise ValueError(
                f"the systems differ in {quantity} by {value:.3g}, more than "
                f"{BOUNDS[quantity]:g}, on the same completions: they do not learn the same, so "
                "nothing was run"
            )
    return apart
