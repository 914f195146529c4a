"""Runs: a worker as a process of its own, in its system's environment, and what came of it."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tools.benchmark import gate
from tools.benchmark.environments import python_of
from tools.benchmark.rows import Row
from tools.benchmark.weights import make_folder, text_of
from tools.benchmark.work import MEMORY_SIGNS, OUT_OF_MEMORY

ROOT = Path(__file__).parent.parent.parent
KEPT = ("PATH", "HOME", "LANG", "TMPDIR")  # of the environment: no flags, no cache of compilations
OFFLINE = {
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONPATH": str(ROOT),
}


@dataclass(frozen=True)
class System:
    """A library and what its worker is told beside the work."""

    library: str
    dtype: str = "float32"
    without: str = ""  # what grpojax's worker takes away


SYSTEMS = {
    "grpojax": System("grpojax"),
    "trl": System("trl"),
    "tunix": System("tunix"),
    "trl-bf16": System("trl", "bfloat16"),  # parameters too; passes no gate
}


THINGS = (
    "shapes", "slices", "shared prompts", "chunked head", "two-level draw", "remat",
    "products alone",
)  # fmt: skip
ABLATIONS = {"grpojax": SYSTEMS["grpojax"]} | {
    f"without {thing}": System("grpojax", without=thing) for thing in THINGS
}


class Failed(RuntimeError):
    """A run without a result; the message says why in a few words."""


def task_of(
    row: Row, system: System, kind: Literal["gate", "measure"], folder: Path, threads: int
) -> dict[str, Any]:
    """What the worker is told."""
    gated = kind == "gate"
    prompts = row.prompt_ids().tolist()
    return {
        "kind": kind,
        "folder": str(folder),
        "dtype": system.dtype,
        "without": system.without,
        "threads": threads,
        "prompts": prompts,
        "texts": [text_of(ids) for ids in prompts],
        "group_size": row.group_size,
        "completion_length": row.completion_length,
        "scripted": row.scripted,
        "lengths": row.lengths().tolist(),
        "completions": row.recorded(),
        "steps": gate.UPDATES if gated else row.warmup + row.timed,
        "beta": gate.BETA if gated else row.beta,
        "clip": 0.2,
        "std_epsilon": 1e-4,  # TRL's
        "learning_rate": gate.LEARNING_RATE if gated else 1e-6,
        "max_grad_norm": 1.0,
        "remat": row.remat,
    }


def run(
    row: Row, name: str, kind: Literal["gate", "measure"], turn: int, workdir: Path, threads: int
) -> Path:
    """The folder with what the worker of system `name` left.

    Raises:
      Failed: it left nothing, because there was not enough memory or for what its log says.
    """
    system = (SYSTEMS | ABLATIONS)[name]
    weights = make_folder(workdir.absolute() / "weights", row)
    output = workdir.absolute() / "runs" / f"{row.name}-{name}-{kind}-{turn}".replace(" ", "-")
    for left in ("gate.npz", "steps.jsonl"):
        (output / left).unlink(missing_ok=True)
    task = task_of(row, system, kind, weights, threads)
    launch(system.library, f"tools.benchmark.workers.{system.library}", task, output, workdir)
    return output


def launch(library: str, module: str, task: dict[str, Any], output: Path, workdir: Path) -> None:
    """Runs the worker `module` on `task` in the environment of `library`, until it has ended; what
    it leaves, and its log, are in the folder `output`.

    Raises:
      Failed: it gave up, because there was not enough memory or for what its log says.
    """
    output.mkdir(parents=True, exist_ok=True)
    (output / "task.json").write_text(json.dumps(task | {"output": str(output)}))
    command = [python_of(library, workdir), "-m", module, str(output / "task.json")]
    kept = {key: value for key, value in os.environ.items() if key in KEPT}
    with (output / "log.txt").open("w") as log:
        done = subprocess.run(
            command, cwd=output, env=kept | OFFLINE, stdout=log, stderr=subprocess.STDOUT
        )
    if done.returncode:
        raise Failed(reason(done.returncode, output / "log.txt"))


def reason(code: int, log: Path) -> str:
    """Why a worker ended with `code`, in a few words."""
    text = log.read_text(errors="replace")
    if code == -9 or any(sign in text for sign in MEMORY_SIGNS):
        return OUT_OF_MEMORY
    last = text.strip().splitlines()[-1:] or ["no output"]
    return f"failed with exit code {code}: {last[0]} (all of it in {log})"
