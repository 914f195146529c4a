"""Held-out numbers of R1's recipe: each stage's, side by side, and the arms' over seeds."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from grpojax.metrics import replace, to_nulls


def measure_stages(runs: Mapping[str, Path], folder: Path) -> None:
    """Measures the newest checkpoint of each run, by stage, on the whole test split, with the same
    draws, and writes `numbers.json` into `folder`: stage -> kind of problem -> name -> value and
    standard error over problems."""
    from experiments.r1_world import HELD_OUT
    from grpojax.estimates import standard_error
    from grpojax.evaluate import evaluate_runs
    from grpojax.measures import measure

    found = evaluate_runs(
        [*runs.values()], steps=(), split="test", samples=4, k=(), examples=sum(HELD_OUT["test"])
    )
    numbers = {}
    for stage, one in zip(runs, found):
        numbers[stage] = {"step": one.step}
        for kind in ("reasoning", "general"):
            answered = [each for each in one.answered if each.example.category == kind]
            measures = measure(answered, ())
            numbers[stage][kind] = {
                name: (each.value, standard_error(each)) for name, each in measures.items()
            }
    folder.mkdir(parents=True, exist_ok=True)
    replace(folder / "numbers.json", (json.dumps(to_nulls(numbers), indent=1) + "\n").encode())


def show(title, path):
    print(title)
    for stage, n in json.loads(path.read_text()).items():
        print(stage, {k: {m: "%.3f" % v[0] for m, v in n[k].items() if "trunc" not in m} for k in ("reasoning", "general")})
