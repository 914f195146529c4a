"""Question: at a fixed number of completions a step, how do β and the group size G trade off?

More completions for a prompt make its advantages less noisy; fewer leave room for more prompts. A
larger β holds the policy to the one that the supervised stage ended with. Each cell is the
quickstart with 128 completions a step (128 / G prompts), from the cold start of its seed. Measured
is accuracy on 256 test sums after the last step, greedy and sampled, by seed and as a difference to
the article's β = 0.01, G = 16.

    python -m experiments.beta_and_group_size --all
    python -m experiments.beta_and_group_size --summarize

Result (2026-11-23, 3 seeds, 2 CPU cores): 32 prompts x 4 ends 0.08 to 0.13 above 8 prompts x 16 in
sampled accuracy, whatever β; no β is ahead at every G. LOG.md has the table.
"""

import dataclasses
import sys

from configs.quickstart import get_config
from grpojax.config import EvaluationConfig, LoggingConfig
from grpojax.experiment import Cell, main

BETAS = (0.0, 0.01, 0.1)
GROUP_SIZES = (4, 8, 16)
SEEDS = (0, 1, 2)
COMPLETIONS = 128  # a step, whatever the group size
STEPS = 60


def cells() -> list[Cell]:
    """Every combination for the first seed, then for the next."""
    return [
        make_cell(beta, group_size, seed)
        for seed in SEEDS
        for beta in BETAS
        for group_size in GROUP_SIZES
    ]


def make_cell(beta: float, group_size: int, seed: int) -> Cell:
    quickstart = dataclasses.replace(get_config(), seed=seed)
    config = dataclasses.replace(
        quickstart,
        steps=STEPS,
        grpo=dataclasses.replace(
            quickstart.grpo,
            beta=beta,
            group_size=group_size,
            prompts_per_step=COMPLETIONS // group_size,
        ),
        evaluation=EvaluationConfig(every=0, examples=256),
        logging=LoggingConfig(tensorboard=False),
    )
    return Cell(factors={"beta": beta, "group_size": group_size}, config=config, before=quickstart)


if __name__ == "__main__":
    metrics = ("test/accuracy", "test/sampled_accuracy")
    baseline = {"beta": 0.01, "group_size": 16}
    sys.exit(main(cells(), __spec__, metrics=metrics, baseline=baseline))
