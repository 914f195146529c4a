"""Held-out numbers of R1's recipe: the stages of an arm side by side, and the arms over seeds."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grpojax.comparison import in_words, paired_differences, t_interval
from grpojax.metrics import to_nulls
from grpojax.storage import replace

Value = tuple[float, float]  # and its standard error over problems
Stages = dict[str, dict[str, Value]]  # by stage, then by one of `COLUMNS`

# A column, and the kind of problem and the measure that it shows. The samples are at temperature 1.
COLUMNS = {
    "sums, greedy": ("reasoning", "accuracy"),
    "sums, sampled": ("reasoning", "sampled_accuracy"),
    "format": ("reasoning", "sampled_format"),
    "language": ("reasoning", "sampled_language"),
    "tokens": ("reasoning", "sampled_length"),
    "general, greedy": ("general", "accuracy"),
    "general, sampled": ("general", "sampled_accuracy"),
    "its format": ("general", "sampled_format"),
    "its language": ("general", "sampled_language"),
}
SAMPLES = 4  # of each problem


def measure_stages(runs: Mapping[str, Path], path: Path, problems: int) -> None:
    """Measures the newest checkpoint of each run, by stage, on the first `problems` of the test
    split with the same draws, and writes `path`: where they came from, and `COLUMNS` of each."""
    # Imported here because showing what was measured needs no jax.
    from grpojax.estimates import standard_error
    from grpojax.evaluate import evaluate_runs
    from grpojax.measures import measure
    from grpojax.run import git_commit

    found = evaluate_runs(
        [*runs.values()], steps=(), split="test", samples=SAMPLES, k=(), examples=problems
    )
    stages = {}
    for stage, one in zip(runs, found):
        by_kind = {
            kind: measure([each for each in one.answered if each.example.category == kind], ())
            for kind in ("reasoning", "general")
        }
        measures = {column: by_kind[kind][name] for column, (kind, name) in COLUMNS.items()}
        stages[stage] = {name: (m.value, standard_error(m)) for name, m in measures.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    sources = {stage: source_of(workdir) for stage, workdir in runs.items()}
    about = {"commit": git_commit(), "sources": sources, "stages": to_nulls(stages)}
    replace(path, (json.dumps(about, indent=1) + "\n").encode())


def source_of(workdir: Path) -> dict[str, str]:
    """Which run it is: its folder, the digest of its config, the commit it was made with."""
    about = json.loads((workdir / "config.json").read_text())
    config = json.dumps(about["config"], sort_keys=True).encode()
    digest = hashlib.sha256(config).hexdigest()
    return {"run": str(workdir), "config_sha256": digest, "commit": about["commit"]}


def as_table(head: str, rows: Mapping[str, Mapping[str, str]]) -> str:
    """Rows by name in Markdown, each with a text for every one of `COLUMNS`."""
    lines = [[head, *COLUMNS], ["---"] * (1 + len(COLUMNS))]
    lines += [[name, *(row[column] for column in COLUMNS)] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def stage_table(stages: Stages) -> str:
    """The stages of one arm, with standard errors over problems."""
    rows = {
        stage: {name: f"{value:.3f} ± {error:.3f}" for name, (value, error) in row.items()}
        for stage, row in stages.items()
    }
    return as_table("stage", rows)


def compare_arms(found: Mapping[str, Mapping[int, Stages]]) -> dict[str, Any]:
    """What the arms, each with its seeds that are done, come to.

    Returns:
      "means": arm -> stage -> column -> `t_interval` over seeds; "differences": stage -> column ->
      "interval", the `t_interval` of language minus plain within a seed, and "error", the standard
      error over problems of their mean, as if the two arms were independent.
    """
    means: dict[str, Any] = {}
    for arm, seeds in found.items():
        for stage in next(iter(seeds.values()), {}):
            means.setdefault(arm, {})[stage] = {
                name: t_interval([stages[stage][name][0] for stages in seeds.values()])
                for name in COLUMNS
            }
    with_reward, without = found.get("language", {}), found.get("plain", {})
    both = [seed for seed in with_reward if seed in without]
    differences = {}
    for stage in with_reward[both[0]] if both else ():
        differences[stage] = {
            name: difference([with_reward[s][stage][name] for s in both],
                             [without[s][stage][name] for s in both])
            for name in COLUMNS
        }  # fmt: skip
    return {"means": means, "differences": differences}


def difference(ours: Sequence[Value], theirs: Sequence[Value]) -> dict[str, Any]:
    """Ours minus theirs, a pair a seed: its `t_interval`, and its error over problems."""
    values = [dict(enumerate(value for value, _ in side)) for side in (ours, theirs)]
    squares = sum(error**2 for _, error in (*ours, *theirs))
    error = math.sqrt(squares) / len(ours)
    return {"interval": t_interval(paired_differences(*values)), "error": error}


def summarize(folders: Mapping[str, Mapping[int, Path]], path: Path) -> None:
    """Prints the arms over seeds and language against plain, and writes it all to `path`.

    `folders`: by arm and seed, where `measure_stages` and rejection sampling wrote.
    """
    found: dict[str, dict[int, Stages]] = {arm: {} for arm in folders}
    recorded, missing = {}, []
    for arm, seeds in folders.items():
        for seed, folder in seeds.items():
            if not (folder / "numbers.json").exists():
                missing.append(f"missing: seed {seed}, {arm}")
                continue
            about = json.loads((folder / "numbers.json").read_text())
            found[arm][seed] = about["stages"]
            rejection = folder / "rejection" / "provenance.json"
            if rejection.exists():
                about["rejection"] = json.loads(rejection.read_text())
            recorded[f"seed={seed},{arm}"] = about
    results = compare_arms(found)
    replace(path, (json.dumps(to_nulls(results | {"arms": recorded}), indent=1) + "\n").encode())
    for arm, stages in results["means"].items():
        total = len(folders[arm])
        rows = {
            stage: {name: in_words(value, total, "") for name, value in row.items()}
            for stage, row in stages.items()
        }
        print(f"{as_table(arm, rows)}\n")
    total = len(folders["language"])
    rows = {
        stage: {
            name: f"{in_words(each['interval'], total, '+')} [{each['error']:.3f}]"
            for name, each in row.items()
        }
        for stage, row in results["differences"].items()
    }
    print(as_table("language - plain", rows))
    print("\nmean ± half of its 95 % t-interval over seeds [standard error over problems]")
    print("\n".join([*missing, f"written to {path}"]))
