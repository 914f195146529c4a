"""State: what was asked for and how far it has come, in one JSON file for each slice.

The file is replaced as a whole and only its owner may read it. It holds names of secrets, never
their values. A step that changes the cloud is recorded before it is made, so a launcher that was
killed goes on where it was.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from grpojax.checks import require
from tools.tpu.slices import slice_of

# absent: nothing is there. requested: asked for. ready: its workers answer. prepared: they have the
# program. starting, running: an attempt. lost: taken away, its remains to be deleted.
Phase = Literal["absent", "requested", "ready", "prepared", "starting", "running", "lost"]


@dataclass(frozen=True, kw_only=True)
class State:
    """A slice and its run."""

    name: str
    slice: str
    project: str
    zone: str
    spot: bool
    queued: bool
    runtime_version: str

    commit: str = ""  # of the program
    config: str = ""  # path in the commit
    workdir: str = ""
    arguments: tuple[str, ...] = ()  # further ones of `grpojax train`
    env: tuple[str, ...] = ()  # NAME=VALUE
    secrets: tuple[str, ...] = ()  # names

    phase: Phase = "absent"
    workers: tuple[str, ...] = ()  # as the commands name them
    requested: float = 0.0  # when the slice was last asked for, seconds since the epoch
    began: float = 0.0  # when the run was first watched
    spans: tuple[tuple[float, float | None], ...] = ()  # from when to when a slice was there
    attempt: int = 0
    step: int = -1  # of the newest checkpoint; -1 for none
    failures: int = 0  # attempts in a row that reached no new step

    def chip_hours(self, now: float) -> float:
        """Chip-hours of all slices so far."""
        seconds = sum((now if end is None else end) - start for start, end in self.spans)
        return slice_of(self.slice).chips * seconds / 3600


def opened(state: State, since: float) -> State:
    """The state with a slice there from `since` on."""
    if state.spans and state.spans[-1][1] is None:
        return state
    return dataclasses.replace(state, spans=(*state.spans, (since, None)))


def closed(state: State, now: float) -> State:
    """The state with no slice there from `now` on."""
    if not state.spans or state.spans[-1][1] is not None:
        return state
    ended = (state.spans[-1][0], now)
    return dataclasses.replace(state, spans=(*state.spans[:-1], ended), workers=())


def save_state(folder: Path, state: State) -> None:
    """Replaces the file of `state`, on disk before this returns."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"{state.name}.json"
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(dataclasses.asdict(state), file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def load_state(folder: Path, name: str) -> State:
    """The state of the slice `name`.

    Raises:
      ValueError: there is no such file, or it is none of this version.
    """
    path = folder / f"{name}.json"
    require(path.is_file(), f"no slice called {name} in {folder}; `create` makes one, `ls` lists")
    try:
        found = json.loads(path.read_text())
        spans = tuple((start, end) for start, end in found.pop("spans"))
        texts = {k: tuple(found.pop(k)) for k in ("arguments", "env", "secrets", "workers")}
        return State(**found, **texts, spans=spans)
    except (KeyError, TypeError, ValueError) as error:
        require(False, f"{path} is no state of this launcher ({error}); move it away")
        raise


def known_slices(folder: Path) -> list[State]:
    """The states in `folder`, by name."""
    return [load_state(folder, path.stem) for path in sorted(folder.glob("*.json"))]


@contextlib.contextmanager
def alone(folder: Path, name: str) -> Iterator[None]:
    """Nobody else changes the slice `name` inside the block. Raises ValueError if somebody does."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with open(folder / f"{name}.lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        else:
            free = True
        require(free, f"another command works on {name}; end it first (Ctrl-C leaves the slice)")
        yield
