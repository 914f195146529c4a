"""Failure: what stands in the place of a reward's value when there is none."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Failed:
    """Why a reward has no value, as what it did: "took longer than 10 s"."""

    why: str
    timed_out: bool = False
