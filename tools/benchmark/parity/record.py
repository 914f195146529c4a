"""Record: what a worker of the parity run leaves, a line for each update, in any environment."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from tools.benchmark.work import peak_memory

FILE = "updates.jsonl"


class Updates:
    """Writes a line as each update ends, and one with the peak memory when the run is done."""

    def __init__(self, folder: Path):
        self.path = folder / FILE
        self.path.write_text("")
        self.start_now()

    def start_now(self) -> None:
        """Begins an update; what it took to come here is of none."""
        self.start = time.perf_counter()

    def end(
        self, completions: Sequence[Sequence[int]], rewards: Sequence[float], grad_norm: float
    ) -> None:
        """Ends an update: the next begins now.

        Args:
          completions: ids of each completion, prompt by prompt, with the token that ended it.
          rewards: of each.
          grad_norm: of all gradients, before they are clipped.
        """
        now = time.perf_counter()
        found = {"completions": completions, "rewards": rewards, "grad_norm": grad_norm}
        self.write({"seconds": now - self.start, **found})
        self.start_now()

    def done(self) -> None:
        self.write({"peak": peak_memory()})

    def write(self, line: dict) -> None:
        with self.path.open("a") as file:  # for each, so that a run can be followed
            file.write(json.dumps(line) + "\n")
