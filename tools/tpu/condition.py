"""Condition: how a slice stands, whatever brings it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Of a slice, at one time."""

    # gone: taken away or failed, and its remains must be deleted before it can be asked for again
    kind: Literal["absent", "waiting", "ready", "gone"]
    said: str  # Google Cloud's word
    slice: str = ""  # name of the slice that is there, if said
    workers: tuple[str, ...] = ()  # as `ssh` takes them
    since: float | None = None  # when it was made, seconds since the epoch, if said


def seconds_of(time: str) -> float | None:
    """Seconds since the epoch of a time as Google Cloud writes it; None if it writes none."""
    return datetime.fromisoformat(time).timestamp() if time else None
