"""Benchmark: grpojax against TRL's GRPOTrainer and Tunix's GRPOLearner, on the same work.

    python -m tools.benchmark --rows A C --workdir runs/benchmark

makes an environment for each peer, refuses to time systems that differ in what they compute, then
runs them in turn, each as a process of its own, and writes benchmark.json and benchmark.png into
the work folder. docs/benchmarks.md says what is measured.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tools.benchmark import gate
from tools.benchmark.environments import python_of
from tools.benchmark.floor import floor
from tools.benchmark.machine import about, rates
from tools.benchmark.plot import draw
from tools.benchmark.results import as_line, as_table, ratios, read_run, summarise
from tools.benchmark.rows import ROWS, SEED, Row
from tools.benchmark.runs import SYSTEMS, Failed, run


def main(argv: list[str] | None = None) -> int:
    """The exit code: 0 done, 2 the systems do not do the same work."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmark", description=__doc__)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--rounds", type=int, default=2, help="runs of every system, in turn")
    parser.add_argument("--threads", type=int, default=2, help="cores that every system has")
    parser.add_argument("--workdir", type=Path, default=Path("runs/benchmark"))
    arguments = parser.parse_args(argv)
    for name in arguments.systems:
        python_of(SYSTEMS[name].library, arguments.workdir)
    libraries = [SYSTEMS[name].library for name in arguments.systems]
    results = about(libraries, arguments.threads, arguments.workdir)
    results |= {"seed": SEED, "bounds": gate.BOUNDS, "rows": []}
    for name in arguments.rows:
        row = ROWS[name]
        systems = [s for s in arguments.systems if SYSTEMS[s].dtype == "float32" or row.half]
        try:
            measured = measure(row, systems, arguments)
        except ValueError as error:
            print(error, file=sys.stderr)
            return 2
        results["rows"].append(measured)
        print(as_table(row.title, measured["systems"], measured["bars"]), flush=True)
        print(as_line(measured["rates"], measured["floor"]) + "\n", flush=True)
        text = json.dumps(results, indent=1) + "\n"
        (arguments.workdir / "benchmark.json").write_text(text)
        draw(results["rows"], arguments.workdir / "benchmark.png")
    return 0


def measure(row: Row, systems: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """The row's gate, then its rounds. Raises ValueError if systems do other work."""
    found, failed = {}, {}

    def attempt(name: str, kind: str, turn: int) -> Path | None:
        """The run's folder; a system that has failed once is not tried again."""
        if name in failed:
            return None
        print(f"row {row.name}: {kind} {turn} of {name}", flush=True)
        try:
            return run(row, name, kind, turn, arguments.workdir, arguments.threads)
        except Failed as error:
            failed[name] = str(error)
            print(f"row {row.name}: {name}: {error}", flush=True)
            return None

    for name in systems:
        if SYSTEMS[name].dtype == "float32" and (folder := attempt(name, "gate", 0)):
            found[name] = gate.read_gate(folder)
    apart = gate.check(row, found)
    for name, by_quantity in apart.items():
        shown = ", ".join(f"{quantity} {value:.2g}" for quantity, value in by_quantity.items())
        print(f"row {row.name}: {name} is apart from {next(iter(found))} by {shown}", flush=True)
    rounds = {name: [] for name in systems}
    for turn in range(arguments.rounds):
        for name in systems:
            if folder := attempt(name, "measure", turn):
                rounds[name].append(read_run(row, folder))
    summary = {
        name: {"failed": failed[name]} if name in failed else summarise(rounds[name])
        for name in systems
    }
    now = rates()
    return {
        "row": row.name,
        "title": row.title,
        "gate": apart,
        "systems": summary,
        "bars": ratios(row, summary),
        "rates": now,
        "floor": floor(row, now["flops"], now["bytes"]),
    }


if __name__ == "__main__":
    sys.exit(main())
