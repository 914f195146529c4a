"""Learning parity: grpojax and TRL's GRPOTrainer learn the same run, seed by seed.

    python -m tools.benchmark.parity --init models/smollm2-135m --workdir runs/benchmark

trains both on configs/addition_smollm2_135m.py with each seed, in turn, and writes parity.json and
parity.png into the work folder after each run. What is done is not done again: a killed command is
given again. docs/benchmarks.md says what is equal and what is not.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tools.benchmark.environments import python_of
from tools.benchmark.machine import about
from tools.benchmark.parity.cells import (
    BOUNDS,
    GATED,
    SYSTEMS,
    Lines,
    config_of,
    gate,
    lines_of,
    task_of,
)
from tools.benchmark.parity.curves import agreement, describe, summarise
from tools.benchmark.parity.plot import draw
from tools.benchmark.runs import Failed


def main(argv: list[str] | None = None) -> int:
    """The exit code: 0 done, 1 a worker gave up, 2 wrong input or systems that differ."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmark.parity", description=__doc__)
    parser.add_argument("--init", type=Path, default=Path("models/smollm2-135m"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200, help="updates of each run")
    parser.add_argument("--prompts", type=int, default=16, help="prompts of an update")
    parser.add_argument("--group-size", type=int, default=16, help="completions of a prompt")
    parser.add_argument("--threads", type=int, default=2, help="cores that every system has")
    parser.add_argument("--window", type=int, default=10, help="updates that a mean is taken over")
    parser.add_argument("--level", type=float, default=0.8, help="reward whose time is reported")
    parser.add_argument("--workdir", type=Path, default=Path("runs/benchmark"))
    arguments = parser.parse_args(argv)
    try:
        learn(arguments)
    except Failed as error:
        print(error, file=sys.stderr)
        return 1
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def learn(arguments: argparse.Namespace) -> None:
    """Runs the gate, then each cell that is not done; results are written after each."""
    workdir, cells = arguments.workdir, arguments.workdir.absolute() / "parity"
    window, level = arguments.window, arguments.level
    if arguments.steps < GATED:
        raise ValueError(f"--steps must be at least {GATED}, got {arguments.steps}")
    if not 1 <= window <= arguments.steps:
        raise ValueError(f"--window must be from 1 to --steps={arguments.steps}, got {window}")
    for system in SYSTEMS:
        python_of(system, workdir)

    def task_with(seed: int, updates: int) -> dict[str, Any]:
        init, sizes = str(arguments.init.absolute()), (arguments.prompts, arguments.group_size)
        config = config_of(init, arguments.steps, seed, *sizes)
        return task_of(config, updates, arguments.threads)

    tasks = {seed: task_with(seed, arguments.steps) for seed in arguments.seeds}
    first = arguments.seeds[0]
    apart = compare(task_with(first, GATED), cells, workdir)
    results = about(SYSTEMS, arguments.threads, workdir)
    config = tasks[first]["config"] | {"init": str(arguments.init)}  # as given, wherever that is
    results |= {"config": config, "window": window, "level": level, "gate": apart}
    results |= {"bounds": BOUNDS}
    done: dict[str, dict[int, Lines]] = {}
    for seed, task in tasks.items():
        for system in SYSTEMS:
            lines = lines_of(system, task, cells / f"{system}-seed{seed}", workdir)
            done.setdefault(system, {})[seed] = lines
            systems = {name: summarise(found, window, level) for name, found in done.items()}
            results["systems"] = systems
            if len(systems) == 2:
                results["agreement"] = agreement(*systems.values())
            (workdir / "parity.json").write_text(json.dumps(results) + "\n")
            draw(systems, window, level, workdir / "parity.png")
            print(describe(systems, level, window) + "\n", flush=True)


def compare(task: dict[str, Any], cells: Path, workdir: Path) -> dict[str, float]:
    """How far TRL is from grpojax on what grpojax drew in the first updates. Raises ValueError if
    too far."""
    ours = lines_of("grpojax", task, cells / "grpojax-gate", workdir)
    recorded = [line["completions"] for line in ours[:-1]]
    theirs = lines_of("trl", task | {"completions": recorded}, cells / "trl-gate", workdir)
    apart = gate(ours, theirs)
    shown = ", ".join(f"{quantity} {value:.2g}" for quantity, value in apart.items())
    print(f"gate: trl is apart from grpojax by {shown}", flush=True)
    return apart


if __name__ == "__main__":
    sys.exit(main())
