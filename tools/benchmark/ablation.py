"""Ablation: what a step of grpojax takes without each of the things that make it fast.

    python -m tools.benchmark.ablation --rows C D --workdir runs/benchmark

The rows, tasks and timing are the benchmark's; `workers/grpojax.py` takes one thing away.
"""

import argparse
import json
import sys
from pathlib import Path

from tools.benchmark.machine import about
from tools.benchmark.results import as_table, read_run, summarise
from tools.benchmark.rows import ROWS
from tools.benchmark.runs import THINGS, Failed, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.benchmark.ablation", description=__doc__)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=["C", "D"])
    parser.add_argument("--without", nargs="*", choices=THINGS, default=THINGS)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workdir", type=Path, default=Path("runs/benchmark"))
    arguments = parser.parse_args()
    results = about(["grpojax"], arguments.threads, arguments.workdir) | {"rows": []}
    for name in arguments.rows:
        row = ROWS[name]
        idle = "products alone" if row.remat else "remat"  # changes nothing there
        things = [thing for thing in arguments.without if thing != idle]
        rounds = {each: [] for each in ("grpojax", *(f"without {thing}" for thing in things))}
        for turn in range(arguments.rounds):
            for each in rounds:
                print(f"row {name}: {each}", flush=True)
                try:
                    folder = run(row, each, "measure", turn, arguments.workdir, arguments.threads)
                except Failed as error:
                    rounds[each] = str(error)
                    continue
                rounds[each].append(read_run(row, folder))
        systems = {
            each: {"failed": found} if isinstance(found, str) else summarise(found)
            for each, found in rounds.items()
        }
        results["rows"].append({"row": name, "title": row.title, "systems": systems})
        print(as_table(row.title, systems, []) + "\n", flush=True)
        text = json.dumps(results, indent=1) + "\n"
        (arguments.workdir / "ablation.json").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
