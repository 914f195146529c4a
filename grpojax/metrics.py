"""Metrics: what a run records of itself, in JSON lines that a resumed run continues exactly.

    metrics.jsonl              a line for each write: "step", then names and numbers
    completions/00000010.jsonl the groups recorded at step 10, one a line
    tb/                        the same numbers for TensorBoard

`metrics.jsonl` is the source of truth. "step": n means after n batches: training has n = 1..N,
and an evaluation is a line of its own with only eval/* names and the step it was made after (0:
before the first update); so is the end of an iteration, with only reward_model/* names. JSON has no
NaN and no infinity: a number that is not finite is written as null and read back as NaN;
TensorBoard does not get it.

"step_time" is the seconds of the step itself; its parts are time/sample, time/reward,
time/reference, time/update and time/summary. The other time/* are of what the run did between the
step before and this one: time/record, time/iteration, time/evaluate, time/checkpoint. With a lag
time/wait is a part instead of time/sample and time/reward, which went by beside the step before.
"""

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from tensorboardX import SummaryWriter

from grpojax.storage import (
    Place,
    make_folder,
    mirror,
    open_to_append,
    place,
    replace,
    written_locally,
)


class Group(TypedDict):
    """One prompt with its G completions. Lists have length G; rewards not valid may be NaN."""

    example: int  # the example's id
    prompt: str
    answer: str
    texts: list[str]
    rewards: dict[str, list[float]]  # by name, before they are weighed
    total: list[float]  # the weighted sum
    advantages: list[float]
    valid: list[bool]  # False: the completion could not be rewarded


class MetricsWriter:
    """Holds the files that a run appends to. Every write is on its way to disk when it returns."""

    def __init__(self, workdir: str | Place, first_step: int, tensorboard: bool):
        """Opens the files of `workdir`, without what was recorded at `first_step` or later.

        Args:
          workdir: the run directory; made if missing.
          first_step: 0 for a new run; for one restored after n batches, n + 1.
          tensorboard: also write tb/.

        Raises:
          ValueError: metrics.jsonl holds something else than this class writes.
        """
        workdir = place(workdir)
        self.completions = workdir / "completions"
        make_folder(self.completions)
        path = workdir / "metrics.jsonl"
        # Kept as bytes: what a killed run wrote and what its continuation keeps are then the same.
        kept = [raw for raw, line in read_lines(path) if line["step"] < first_step]
        self.file = open_to_append(path, b"".join(raw + b"\n" for raw in kept))
        for step, recorded in completion_files(workdir).items():
            if step >= first_step:
                recorded.unlink()
        # The suffix keeps two writers that open within one second out of each other's file.
        self.events, self.scratch = workdir / "tb", contextlib.ExitStack()
        self.tensorboard = None
        if tensorboard:
            self.local = self.scratch.enter_context(written_locally(self.events))
            self.tensorboard = SummaryWriter(
                str(self.local), purge_step=first_step, filename_suffix=f".{first_step}"
            )

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends one line. Values are numbers: Python's, NumPy's or JAX's scalars."""
        numbers = {name: float(value) for name, value in metrics.items()}
        self.file.write(to_json({"step": int(step), **numbers}))
        self.file.flush()
        if self.tensorboard is not None:
            for name, value in numbers.items():
                if math.isfinite(value):
                    self.tensorboard.add_scalar(name, value, int(step))
            self.tensorboard.flush()
            mirror(self.local, self.events)

    def write_groups(self, step: int, groups: Sequence[Group]) -> None:
        """Records the groups of one step, all in one call; their lists may be arrays."""
        lines = b"".join(to_json({"step": int(step), **group}) for group in groups)
        replace(self.completions / f"{int(step):08d}.jsonl", lines)

    def close(self) -> None:
        """Closes the files; nothing can be written afterwards."""
        self.file.close()
        if self.tensorboard is not None:
            self.tensorboard.close()
        self.scratch.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def read_metrics(workdir: str | Place) -> list[dict[str, int | float]]:
    """The lines of a run's metrics.jsonl as written; a last line torn by a kill is left out.

    Raises:
      ValueError: another line is not an object with a "step"; names the file and the line.
    """
    return [line for _, line in read_lines(place(workdir) / "metrics.jsonl")]


def recorded_steps(workdir: str | Place) -> list[int]:
    """The steps that have recorded groups, ascending."""
    return list(completion_files(place(workdir)))


def read_groups(workdir: str | Place, step: int) -> list[dict[str, Any]]:
    """The groups recorded at `step`: each a `Group` with its "step".

    Raises:
      ValueError: nothing was recorded at `step`, or a line is damaged; names the file and the line.
    """
    files = completion_files(place(workdir))
    if step not in files:
        raise ValueError(f"no completions of step {step} in {workdir}; recorded are {list(files)}")
    return [line for _, line in read_lines(files[step])]


def read_lines(path: Place) -> list[tuple[bytes, dict[str, Any]]]:
    """Each line of a JSON lines file as its bytes and its object; no file is no lines."""
    if not path.exists():
        return []
    *whole, last = path.read_bytes().split(b"\n")
    lines = [(raw, parse_line(raw)) for raw in whole]
    for number, (raw, line) in enumerate(lines, start=1):
        if line is None:
            raise ValueError(
                f'{path} line {number} must be a JSON object with a "step", got {raw[:60]!r}; '
                "repair or delete that line"
            )
    # What no newline ends was torn, unless only the newline is missing.
    line = parse_line(last)
    return lines if line is None else [*lines, (last, line)]


def parse_line(raw: bytes) -> dict[str, Any] | None:
    """The object of one line, or None if it is not one with a whole number as its "step"."""
    try:
        line = json.loads(raw)
    except ValueError:
        return None
    if not isinstance(line, dict) or type(line.get("step")) is not int:
        return None
    return from_nulls(line)


def from_nulls(value: Any) -> Any:
    """`value` with every None as NaN."""
    if isinstance(value, dict):
        return {name: from_nulls(item) for name, item in value.items()}
    if isinstance(value, list):
        return [from_nulls(item) for item in value]
    return math.nan if value is None else value


def to_json(value: Any) -> bytes:
    """One line of strict JSON, in ASCII: no text in it can break the line or fail to be encoded."""
    return json.dumps(to_nulls(value), allow_nan=False).encode("ascii") + b"\n"


def to_nulls(value: Any) -> Any:
    """`value` in Python's own types, every float that is not finite as None."""
    if isinstance(value, Mapping):
        return {name: to_nulls(item) for name, item in value.items()}
    if hasattr(value, "tolist"):  # NumPy's and JAX's arrays and scalars
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [to_nulls(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def completion_files(workdir: Place) -> dict[int, Place]:
    """The files of completions/ by step, ascending."""
    return {int(path.stem): path for path in sorted(workdir.glob("completions/[0-9]*.jsonl"))}
