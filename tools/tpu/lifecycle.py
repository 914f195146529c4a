"""Lifecycle: one step of a slice and its run, from nothing to a training that ends.

absent -> requested -> ready -> prepared -> starting -> running, and lost -> absent.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grpojax.checks import require
from tools.tpu import remote
from tools.tpu.condition import Condition
from tools.tpu.gcloud import GcloudError, World, gcloud
from tools.tpu.state import State, closed, opened

DELETE_LIMIT = 600.0  # seconds of a call
DELETE_PAUSE, DELETE_TURNS = 15.0, 80  # seconds between looks, and most looks
POLL_PAUSE = 60.0  # seconds between looks at a slice or a training
APPEARS = 300.0  # seconds after which what was asked for can be described
SILENCES = 5  # calls in a row that may fail before something is done about it


class Trouble(Exception):
    """The slice or the training did not do as it should; one line for the user."""


class Ended(Exception):
    """The attempt is over: its exit code (None: it died without one) and what its log says last."""

    def __init__(self, code: int | None, tail: str):
        super().__init__(f"exit code {code}" if code is not None else "no exit code: it was killed")
        self.code, self.tail = code, tail


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """What a step needs beside the state."""

    world: World
    repository: Path
    secrets: dict[str, str]  # values by name
    save: Callable[[State], None]


def request(launch: Launch, state: State) -> State:
    """Asks for the slice. The state is saved first, so that a second launcher knows it as ours."""
    now = launch.world.now()
    state = dataclasses.replace(state, phase="requested", requested=now, workers=())
    launch.save(state)
    for command in remote.backend_of(state).create(state):
        try:
            gcloud(launch.world, command, limit=DELETE_LIMIT)
        except GcloudError as error:
            if error.kind != "exists":  # asked for before, by a call whose answer was lost
                raise
    return state


def observe(launch: Launch, state: State) -> Condition:
    """How the slice stands.

    Raises:
      ValueError: another kind of slice has its name.
    """
    found = remote.backend_of(state).observe(launch.world, state)
    require(
        found.slice in ("", state.slice),
        f"{state.name} in {state.zone} is a {found.slice}, not the {state.slice} of the record; "
        "delete it or choose another name",
    )
    return found


def arrive(launch: Launch, state: State) -> State:
    """Looks whether the slice is there: its phase is then `ready`, or `lost` if it was taken."""
    found = observe(launch, state)
    if found.kind == "ready":
        since = launch.world.now() if found.since is None else found.since
        launch.world.say(f"{state.name} is there: {found.said}, {len(found.workers)} workers")
        return dataclasses.replace(opened(state, since), phase="ready", workers=found.workers)
    if found.kind == "gone":
        return lost(launch, state)
    if found.kind == "absent" and launch.world.now() - state.requested > APPEARS:
        return lost(launch, state)
    return state


def lost(launch: Launch, state: State) -> State:
    """The state of a slice that was taken away."""
    return dataclasses.replace(closed(state, launch.world.now()), phase="lost")


def prepare(launch: Launch, state: State) -> State:
    """Gives every worker the program."""
    remote.send(launch.world, state, launch.repository)
    remote.set_up(launch.world, state)
    return dataclasses.replace(state, phase="prepared")


def begin(launch: Launch, state: State) -> State:
    """Starts an attempt; its number is saved first, so that it is never started twice."""
    if state.phase == "prepared":
        state = dataclasses.replace(state, phase="starting", attempt=state.attempt + 1)
        launch.save(state)
    remote.give_secrets(launch.world, state, launch.secrets)
    remote.start(launch.world, state)
    launch.world.say(f"attempt {state.attempt} runs on {len(state.workers)} workers")
    return dataclasses.replace(state, phase="running")


def look(launch: Launch, state: State) -> None:
    """Looks at the training on every worker.

    As soon as one has ended the others are stopped: they would wait for it.

    Raises:
      Ended: the attempt is over.
    """
    found = remote.poll(launch.world, state)
    over = [row for row in found if row["exit"] is not None or not row["alive"]]
    if not over:
        return
    if len(over) < len(found) and all(row["exit"] == 0 for row in over):
        launch.world.sleep(POLL_PAUSE)  # the others are about to end too
        found = remote.poll(launch.world, state)
        over = [row for row in found if row["exit"] is not None or not row["alive"]]
    if len(over) < len(found):
        remote.stop(launch.world, state)
        found = remote.poll(launch.world, state)
    raise verdict(over, found)


def verdict(over: list[dict[str, Any]], found: list[dict[str, Any]]) -> Ended:
    """What the workers' exit codes come to; `over` are those that ended by themselves.

    Of those the worst counts: 2, since a wrong config stays wrong; then a crash; 75; and 0 only if
    every worker says so.
    """
    codes = [row["exit"] for row in over]
    crashes = [row for row in over if row["exit"] not in (0, 2, 75)]
    if 2 in codes:
        row = next(row for row in over if row["exit"] == 2)
    elif crashes:
        row = crashes[0]
    elif 75 in codes:
        row = next(row for row in over if row["exit"] == 75)
    else:
        row = next((row for row in found if row["exit"] != 0), over[0])
    return Ended(row["exit"], row.get("tail", ""))


def remove(launch: Launch, state: State) -> State:
    """Deletes the slice and waits until nothing is left of it.

    Raises:
      Trouble: something is left.
    """
    said = "it is still there"
    for _ in range(DELETE_TURNS):
        try:
            left = remote.backend_of(state).remains(launch.world, state)
            if left is None:
                launch.world.say(f"{state.name} is deleted")
                return dataclasses.replace(closed(state, launch.world.now()), phase="absent")
            for command in left:
                gcloud(launch.world, command, limit=DELETE_LIMIT)
        except GcloudError as error:
            said = str(error)
            if error.kind == "refused":
                break
        launch.world.sleep(DELETE_PAUSE)
    raise Trouble(f"{state.name} in {state.zone} may still be there and cost money: {said}")
