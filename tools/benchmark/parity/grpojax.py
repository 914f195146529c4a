"""grpojax's worker of the parity run: the steps of `train.py`, from its own parts."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from grpojax.config import Config, from_dict
from grpojax.learner import abstract_state, init_state
from grpojax.lora import split
from grpojax.optimizer import make_optimizer
from grpojax.run import initial_params, open_run
from grpojax.sharding import use_mesh
from grpojax.train import make_step
from tools.benchmark.parity.record import Updates
from tools.benchmark.work import read_task


def main(task: dict[str, Any]) -> None:
    """Trains as `task` says.

    Raises:
      ValueError: a step has other prompts than planned.
    """
    config, folder = from_dict(Config, task["config"]), Path(task["output"])
    run = open_run(config, folder)
    optimizer = make_optimizer(config.optimizer, config.updates)
    with use_mesh(run.mesh):
        like = abstract_state(run.policy, optimizer, run.mesh, reference=config.grpo.beta > 0)
        trained, frozen = split(initial_params(run, print))
        state = init_state(optimizer, like, trained)
        one_step = make_step(run, optimizer, like)
        updates = Updates(folder)
        for step, planned in enumerate(task["batches"]):
            state, metrics, batch, (groups, _) = one_step(state, frozen, step)
            prompts, drawn = jax.device_get((batch.prompts, batch.completions))
            if rows(prompts.tokens, prompts.mask) != [each["tokens"] for each in planned]:
                raise ValueError(f"the prompts of step {step} are not those planned")
            rewards = [reward for group in groups for reward in group["total"]]
            updates.end(rows(drawn.tokens, drawn.mask), rewards, float(metrics["grad_norm"]))
        updates.done()


def rows(tokens: np.ndarray, mask: np.ndarray) -> list[list[int]]:
    """The ids of each row [.., T], without padding."""
    flat = (x.reshape(-1, x.shape[-1]) for x in (tokens, mask))
    return [ids[kept].tolist() for ids, kept in zip(*flat)]


if __name__ == "__main__":
    main(read_task())
