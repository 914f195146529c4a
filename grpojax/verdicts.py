"""Verdicts: what a batch is judged to be, when each host judges its own part of it.

Afterwards all hosts know the same, so that all go on alike.
"""

import io
import json
from collections.abc import Callable

import numpy as np
from jaxtyping import Int

from grpojax.hosts import exchange, several, share
from grpojax.rewards import Judged

Arrays = dict[str, np.ndarray]
Verdict = tuple[Judged, Arrays]
"""What rows were judged to be, and more arrays with an entry for each row."""


def judge_by_hosts(
    rows: Int[np.ndarray, "R"], judge: Callable[[Int[np.ndarray, "R"]], Verdict]
) -> Verdict:
    """`judge(rows)`, with each host given a part of them; at least one of them must have some."""
    if not several():
        return judge(rows)
    mine = part_of(rows)
    said = exchange(packed(*judge(mine)) if len(mine) else b"")
    return joined([unpacked(content) for content in said if content])


def part_of(rows: Int[np.ndarray, "R"]) -> Int[np.ndarray, "n"]:
    """Those of the rows that this host judges."""
    return rows[share(len(rows))]


def rows_of(judged: Judged, rows: Int[np.ndarray, "R"]) -> Judged:
    """What some of the rows were judged to be."""
    by_name = {name: values[rows] for name, values in judged.by_name.items()}
    return Judged(by_name=by_name, total=judged.total[rows], valid=judged.valid[rows])


def packed(judged: Judged, more: Arrays) -> bytes:
    """A verdict as bytes."""
    notes = json.dumps({"failure": judged.failure, "counts": judged.counts}).encode()
    arrays = {f"by_name/{name}": values for name, values in judged.by_name.items()}
    arrays |= {f"more/{name}": values for name, values in more.items()}
    content = io.BytesIO()
    notes = np.frombuffer(notes, np.uint8)
    np.savez(content, total=judged.total, valid=judged.valid, notes=notes, **arrays)
    return content.getvalue()


def unpacked(content: bytes) -> Verdict:
    """The way back from `packed`."""
    with np.load(io.BytesIO(content), allow_pickle=False) as saved:
        arrays = dict(saved)
    notes = json.loads(arrays.pop("notes").tobytes())

    def under(folder: str) -> Arrays:
        return {k.removeprefix(folder): v for k, v in arrays.items() if k.startswith(folder)}

    judged = Judged(
        by_name=under("by_name/"), total=arrays["total"], valid=arrays["valid"], **notes
    )
    return judged, under("more/")


def joined(verdicts: list[Verdict]) -> Verdict:
    """Verdicts on parts, as one on all their rows; of the failures the first."""
    parts, more = zip(*verdicts)
    counts = {name: sum(p.counts.get(name, 0) for p in parts) for p in parts for name in p.counts}
    judged = Judged(
        by_name=joined_arrays([part.by_name for part in parts]),
        total=np.concatenate([part.total for part in parts]),
        valid=np.concatenate([part.valid for part in parts]),
        failure=next((part.failure for part in parts if part.failure), ""),
        counts=counts,
    )
    return judged, joined_arrays(list(more))


def joined_arrays(parts: list[Arrays]) -> Arrays:
    """Arrays of the same names, their rows one after the other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
