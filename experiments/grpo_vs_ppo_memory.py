"""Question: what does GRPO save by having no critic, and does it learn as much for it?

Memory: parameters, optimizer state, activations and peak of a step of both at equal batch, 8
prompts x 8 completions of 256 tokens after prompts of 128, one prompt a microbatch, float32,
compiled for a CPU and not run (`step_memory.py`); and the resident set of processes that take three
steps (`peak_memory.py`). Both go to step_memory.json.

Learning: the quickstart with both from the cold start of its seed, 32 prompts x 8, with equal rates
of the policy and k3 to the same reference in the loss. PPO's advantages are its critic's: γ = λ =
1, whitened over the batch. Measured is accuracy on 256 test sums after the last step, greedy and
sampled; the median time of a step without the first; and how much sampled accuracy was gained, by
100 steps and by a minute of such steps.

    python -m experiments.grpo_vs_ppo_memory --memory
    python -m experiments.grpo_vs_ppo_memory --all
    python -m experiments.grpo_vs_ppo_memory --summarize

Result (2026-11-23, 2 CPU cores): from 135 M parameters on, PPO's step needs 1.39 to 1.42 times the
memory of GRPO's at β = 0.01 and 1.45 to 1.49 times without a reference; a model as small as the
quickstart's is all activations, 1.04 times. Sampled accuracy after 80 steps, mean of three seeds:
GRPO 0.647, PPO 0.613; PPO less GRPO by seed -0.034 ± 0.059, so they are not told apart by step. A
step of PPO took 1.51 s and one of GRPO 0.84 s: by minute GRPO gained 0.254 and PPO 0.130 ± 0.053
less. The critic had 80 updates from a head of 0 and never explained more than 1.1 % of the returns'
variance, so this is PPO before its critic helps; 1e-3 and 3e-3 were tried as its rate, on seed 0.
"""

import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from configs.quickstart import get_config
from grpojax.config import EvaluationConfig, LoggingConfig, PPOConfig
from grpojax.experiment import Cell, main
from grpojax.storage import replace

ALGORITHMS = ("grpo", "ppo")
SEEDS = (0, 1, 2)
STEPS = 80
CRITIC_RATE = 1e-3
METRICS = ("test/accuracy", "test/sampled_accuracy")


def cells() -> list[Cell]:
    """Both algorithms for the first seed, then for the next."""
    return [make_cell(algorithm, seed) for seed in SEEDS for algorithm in ALGORITHMS]


def make_cell(algorithm: str, seed: int) -> Cell:
    quickstart = dataclasses.replace(get_config(), seed=seed)
    critic = dataclasses.replace(quickstart.optimizer, learning_rate=CRITIC_RATE)
    config = dataclasses.replace(
        quickstart,
        steps=STEPS,
        algorithm=algorithm,
        ppo=PPOConfig(gamma=1.0, lam=1.0, critic=critic),
        evaluation=EvaluationConfig(every=0, examples=256),
        logging=LoggingConfig(tensorboard=False),
    )
    return Cell(factors={"algorithm": algorithm}, config=config, before=quickstart)


def median_step_time(lines: list[dict[str, Any]]) -> float:
    """Seconds, without the first step, which compiles."""
    return statistics.median(x["step_time"] for x in lines if "step_time" in x and x["step"] > 1)


def gained(lines: list[dict[str, Any]]) -> tuple[float, int]:
    """Sampled test accuracy after the last step less that before the first, and the steps."""
    tests = {line["step"]: line[METRICS[1]] for line in lines if METRICS[1] in line}
    return tests[max(tests)] - tests[0], max(tests)


def gain_per_100_steps(lines: list[dict[str, Any]]) -> float:
    gain, steps = gained(lines)
    return 100 * gain / steps


def gain_per_minute(lines: list[dict[str, Any]]) -> float:
    gain, steps = gained(lines)
    return 60 * gain / (steps * median_step_time(lines))


DERIVED = {
    "step_time/median": median_step_time,
    "gain/100 steps": gain_per_100_steps,
    "gain/minute": gain_per_minute,
}


def report_memory(path: Path) -> None:
    """Compiles and measures, prints tables and writes them to `path`."""
    # Imported here because listing and waiting need no jax.
    from experiments import peak_memory, step_memory
    from grpojax.config import MeshConfig
    from grpojax.mesh import make_mesh

    mesh, measure = make_mesh(MeshConfig()), step_memory.compiled_once()
    results = {"compiled": [], "measured": []}
    for shape, config in step_memory.configs():
        began = time.perf_counter()
        about = {"shape": shape, "beta": config.grpo.beta, "algorithm": config.algorithm}
        row = about | step_memory.step_memory(config, mesh, measure)
        results["compiled"].append(row)
        print(f"{about} compiled in {time.perf_counter() - began:.0f} s", flush=True)
    for shape in peak_memory.SHAPES:
        for algorithm in ALGORITHMS:
            results["measured"].append(peak_memory.peak_memory(algorithm, shape))
            print(results["measured"][-1], flush=True)
    replace(path, (json.dumps(results, indent=1) + "\n").encode())
    print(step_memory.as_table(results["compiled"]))
    print(f"\n{peak_memory.as_table(results['measured'])}\nwritten to {path}")


if __name__ == "__main__":
    if sys.argv[1:] == ["--memory"]:
        report_memory(Path(__file__).with_name("step_memory.json"))
        sys.exit(0)
    baseline = {"algorithm": "grpo"}
    sys.exit(main(cells(), __spec__, metrics=METRICS, derived=DERIVED, baseline=baseline))
