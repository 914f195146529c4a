"""Experiment: a run for every combination of some factors and every seed, and what they say.

A module of `experiments/` makes the cells and hands them to `main`, its command line. A cell runs
in a process of its own, so that nothing of one run reaches the next, and `--all` is `--index` again
and again. Whatever ended it before, an experiment goes on where it stopped.
"""

import argparse
import contextlib
import dataclasses
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from grpojax.checks import require
from grpojax.comparison import as_table, compare
from grpojax.config import Config
from grpojax.metrics import read_metrics, to_nulls
from grpojax.signals import stop_requested
from grpojax.storage import replace

Derived = Mapping[str, Callable[[list[dict[str, Any]]], float]]
STOPPED = os.EX_TEMPFAIL  # 75, what `train` returns: stopped by a signal, run me again


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run: a combination of factors, with the seed that its config has."""

    factors: dict[str, Any]  # by name, in the order in which they are shown
    config: Config
    before: Config | None = None  # supervised stage to start from; one a seed, for all its cells
    # takes config and run directory, leaves what `train.train` would and returns its exit codes
    train: Callable[[Config, Path], int] | None = None  # None: `train.train` itself

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def name(self) -> str:
        """Its run directory within the experiment's, such as `beta=0.01,group_size=8,seed=0`."""
        return ",".join(
            f"{name}={value}" for name, value in [*self.factors.items(), ("seed", self.seed)]
        )


def main(
    cells: Sequence[Cell],
    spec: ModuleSpec,
    *,
    metrics: Sequence[str],
    baseline: dict[str, Any],
    derived: Derived = MappingProxyType({}),
    argv: list[str] | None = None,
) -> int:
    """The command line of an experiment, which is started as `python -m experiments.NAME`.

    Args:
      cells: all of them, in the order in which `--all` runs them.
      spec: `__spec__` of the module; `--summarize` writes NAME.json beside it.
      metrics: names in metrics.jsonl; a cell that has them all after its last step is done.
      baseline: the factors of the combination that the others are compared with.
      derived: more to compare by, each made of all lines of metrics.jsonl.
      argv: None for the process's own arguments.

    Returns:
      The exit code: 0 done, 1 a cell failed, 75 stopped by a signal, run me again.

    Raises:
      ValueError: two cells have the same name, or none has the factors of `baseline`.
    """
    names = [cell.name for cell in cells]
    twice = [name for name in names if names.count(name) > 1]
    require(not twice, f"every cell needs factors and a seed of its own, got {twice[:1]} twice")
    require(
        any(cell.factors == baseline for cell in cells),
        f"baseline must be the factors of one of the cells, got {baseline}",
    )
    module = spec.name.rpartition(".")[2]
    parser = argparse.ArgumentParser(prog=f"python -m {spec.name}", allow_abbrev=False)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--list", action="store_true", help="show index, name and state of the cells")
    what.add_argument("--index", type=int, metavar="I", help="run the cell I, or go on with it")
    what.add_argument(
        "--all", action="store_true", help="run the cells that are not done, in order"
    )
    what.add_argument("--summarize", action="store_true", help="compare the cells that are done")
    parser.add_argument("--workdir", type=Path, default=Path("runs") / module, help="%(default)s")
    arguments = parser.parse_args(argv)
    workdir, index = arguments.workdir, arguments.index
    if arguments.list:
        for i, cell in enumerate(cells):
            print(f"{i:3}  {cell.name}  {state_of(cell, workdir, metrics)}")
        return 0
    if arguments.summarize:
        path = Path(spec.origin).with_suffix(".json")
        summarize(cells, workdir, metrics, baseline, path, derived)
        return 0
    if arguments.all:
        return run_all(cells, workdir, metrics, [sys.executable, "-m", spec.name])
    if not 0 <= index < len(cells):
        parser.error(f"--index must be from 0 to {len(cells) - 1}, got {index}; --list shows all")
    return run_cell(cells[index], workdir)


def run_all(
    cells: Sequence[Cell], workdir: Path, metrics: Sequence[str], command: list[str]
) -> int:
    """Runs what is not done, each cell by `command` with its index, and returns the exit code."""
    waiting = [i for i, cell in enumerate(cells) if state_of(cell, workdir, metrics) != "done"]
    failed = []
    # What a signal does is said by the cell's process, which gets it too.
    with stop_requested("") as requested:
        for number, i in enumerate(waiting, start=1):
            if requested():
                return STOPPED
            name = cells[i].name
            print(f"--- {number} of {len(waiting)}: cell {i}, {name}", flush=True)
            code = wait_for([*command, "--index", str(i), "--workdir", str(workdir)], requested)
            if code == STOPPED or (code and requested()):
                return STOPPED
            if code:
                failed.append(f"{name} (exit code {code})")
            elif (state := state_of(cells[i], workdir, metrics)) != "done":
                failed.append(f"{name} ({state}: without {' or '.join(metrics)} at its last step)")
            else:
                continue
            print(f"failed: {failed[-1]}", flush=True)
    print(f"{len(waiting) - len(failed)} cells run, {len(failed)} failed")
    for each in failed:
        print(f"failed: {each}")
    return 1 if failed else 0


def wait_for(command: list[str], requested: Callable[[], bool]) -> int:
    """Runs `command` to its end and returns its exit code; a requested stop is passed on once."""
    # A session of its own: a terminal's Ctrl-C would reach it as well as the signal from here, and
    # the second one breaks off.
    child = subprocess.Popen(command, start_new_session=True)
    told = False
    try:
        while child.poll() is None:
            if requested() and not told:
                child.terminate()
                told = True
            time.sleep(0.05)
    finally:
        child.kill()
        child.wait()
    return child.returncode


def run_cell(cell: Cell, workdir: Path) -> int:
    """Runs a cell in this process, after the supervised stage of its seed; both go on where they
    stopped. Returns the exit code of the one that failed, or 0."""
    # Imported here because listing and waiting need no jax.
    import jax

    from grpojax.sft import sft
    from grpojax.train import train

    if jax.config.jax_compilation_cache_dir is None:
        # Each cell compiles in a process of its own: what the others compiled need not be again.
        jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    config = cell.config
    if cell.before is not None:
        start = cold_start_of(cell, workdir)
        with locked(start):
            if code := sft(cell.before, start):
                print(f"the supervised stage in {start} failed: {cell.name} cannot start")
                return code
        config = dataclasses.replace(config, init=str(start))
    with locked(workdir / cell.name):
        return (cell.train or train)(config, workdir / cell.name)


def cold_start_of(cell: Cell, workdir: Path) -> Path:
    """The run directory of the supervised stage that the cells of a seed share."""
    return workdir / f"cold_start,seed={cell.seed}"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps `folder` for this process; others wait for it, and a killed one holds nothing.

    A kill of `--all` leaves its cell running, and a cluster may start two cells of a seed at once.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for the process that is running {folder}", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def summarize(
    cells: Sequence[Cell],
    workdir: Path,
    metrics: Sequence[str],
    baseline: dict[str, Any],
    path: Path,
    derived: Derived,
) -> None:
    """Prints what the cells that are done say and which are not, and writes it all to `path`."""
    names = [*metrics, *derived]
    rows = []
    for cell in cells:
        row = {"factors": cell.factors, "seed": cell.seed, "first": None, "last": None}
        row["state"] = state_of(cell, workdir, metrics)
        if row["state"] == "done":
            folder = workdir / cell.name
            row["first"] = measured(folder, 0, metrics)
            lines = read_metrics(folder)
            row["last"] = measured(folder, cell.config.steps, metrics)
            row["last"] |= {name: derive(lines) for name, derive in derived.items()}
            row["commit"] = json.loads((folder / "config.json").read_text())["commit"]
        rows.append(row)
    entries = compare(rows, names, baseline)
    results = {"baseline": baseline, "metrics": names, "combinations": entries, "cells": rows}
    replace(path, (json.dumps(to_nulls(results), indent=1) + "\n").encode())
    print(as_table(entries, names))
    print("\nmean ± half of its 95 % t-interval over seeds; differences to the baseline by seed")
    for cell, row in zip(cells, rows):
        if row["state"] != "done":
            print(f"missing: {cell.name} ({row['state']})")
    print(f"written to {path}")


def state_of(cell: Cell, workdir: Path, metrics: Sequence[str]) -> str:
    """done, begun, not begun; or other config: its folder, or its supervised stage's, was made with
    another config than the cell's, and counts for nothing."""
    folder, own = workdir / cell.name, {}
    if not (folder / "config.json").exists():
        return "not begun"
    if cell.before is not None:
        own = {"init": ""}  # which names the workdir
        if not made_with(cell.before, cold_start_of(cell, workdir), {}):
            return "other config"
    if not made_with(cell.config, folder, own):
        return "other config"
    return "done" if measured(folder, cell.config.steps, metrics) else "begun"


def made_with(config: Config, folder: Path, own: dict[str, Any]) -> bool:
    """Whether the run in `folder` records `config`, whatever the fields in `own` are."""
    try:
        recorded = json.loads((folder / "config.json").read_text())["config"]
    except (OSError, ValueError, KeyError):
        return False
    return recorded | own == json.loads(json.dumps(dataclasses.asdict(config))) | own


def measured(folder: Path, step: int, metrics: Sequence[str]) -> dict[str, float] | None:
    """The metrics that a run recorded at `step`; None if one of them is missing."""
    lines = [line for line in read_metrics(folder) if line["step"] == step]
    found = {name: line[name] for line in lines for name in metrics if name in line}
    return found if len(found) == len(metrics) else None
