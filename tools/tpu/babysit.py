"""Babysit: keeps a run going until it is done, its money or time is, or it gets nowhere.

What an attempt's end means is its exit code: 0 done; 75 go on at once; 2 never again; anything else
again, after a pause that doubles. A slice that was taken away is deleted and asked for again. An
attempt is worth another while it leaves a newer checkpoint than there was.
"""

import dataclasses
from dataclasses import dataclass

from grpojax.checks import require
from tools.tpu import remote
from tools.tpu.gcloud import GcloudError
from tools.tpu.lifecycle import (
    POLL_PAUSE,
    SILENCES,
    Ended,
    Launch,
    Trouble,
    arrive,
    begin,
    look,
    lost,
    observe,
    prepare,
    remove,
    request,
)
from tools.tpu.remote import Unreachable, WorkerFailed
from tools.tpu.state import Phase, State

ATTEMPTS = 3  # in a row without a new step
FIRST_PAUSE, LONGEST_PAUSE = 30.0, 600.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When to stop whatever the run does."""

    max_cost: float | None  # in the currency of the price
    price_per_chip_hour: float | None
    max_hours: float | None  # since the run was first watched
    queue_hours: float  # without a slice

    def __post_init__(self):
        given = {name: value for name, value in vars(self).items() if value is not None}
        for name, value in given.items():
            require(value > 0, f"{name} must be above 0, got {value}")
        require(
            self.max_cost is None or self.price_per_chip_hour is not None,
            "max_cost needs --price-per-chip-hour: prices change, and none is built in",
        )


class Ending(Exception):
    """Why babysitting is over, and the exit code that says so."""

    def __init__(self, code: int, said: str):
        super().__init__(said)
        self.code = code


def babysit(launch: Launch, state: State, limits: Limits, *, keep: bool) -> int:
    """Watches the run of `state` until it ends; the slice is deleted then, unless `keep`.

    Returns:
      The exit code: 0 the training is done, 2 it (or Google Cloud) says that it never will be, 1 a
      limit was reached or it got nowhere.
    """
    state = resume(launch, state)
    silences = 0
    while True:
        launch.save(state)
        try:
            check(launch, state, limits)
            try:
                state = advance(launch, state)
                silences = 0
            except Ended as error:
                state = ended(launch, state, error)
            except WorkerFailed as error:
                halt(launch, state)
                state = failed(launch, state, str(error), "ready")
            except (Unreachable, GcloudError) as error:
                silences += 1
                state = unanswered(launch, state, error, silences)
                silences = 0 if state.phase == "lost" else silences
        except Ending as ending:
            return end(launch, state, ending, keep=keep)


def resume(launch: Launch, state: State) -> State:
    """The state as it is now, whatever was last written down."""
    if not state.began:
        state = dataclasses.replace(state, began=launch.world.now())
    if state.phase in ("absent", "lost"):
        return state
    try:
        found = observe(launch, state)
    except GcloudError:
        return state  # the next step will meet it
    if state.phase == "requested":  # perhaps the call that asks was never made
        return dataclasses.replace(state, phase="absent") if found.kind == "absent" else state
    if found.kind == "ready":
        return dataclasses.replace(state, workers=found.workers)
    launch.world.say(f"{state.name}: {found.said}")
    return lost(launch, state)


def check(launch: Launch, state: State, limits: Limits) -> None:
    """Raises Ending if a limit is reached, or would be before the next look."""
    now = launch.world.now()
    soon = now + POLL_PAUSE
    if limits.max_cost is not None:
        cost = state.chip_hours(soon) * limits.price_per_chip_hour
        if cost > limits.max_cost:
            raise Ending(1, f"max_cost: {cost:.2f} of {limits.max_cost:g} by the next look")
    hours = (soon - state.began) / 3600
    if limits.max_hours is not None and hours > limits.max_hours:
        raise Ending(1, f"max_hours: {hours:.2f} of {limits.max_hours:g} by the next look")
    waited = (soon - state.requested) / 3600
    if state.phase == "requested" and waited > limits.queue_hours:
        raise Ending(1, f"queue_hours: no slice after {waited:.2f} of {limits.queue_hours:g}")


def advance(launch: Launch, state: State) -> State:
    """The next step."""
    match state.phase:
        case "absent":
            return request(launch, state)
        case "requested":
            new = arrive(launch, state)
            if new.phase == "lost":
                return failed(launch, state, "the request failed or the slice was taken", "lost")
            if new.phase == "requested":
                launch.world.sleep(POLL_PAUSE)
            return new
        case "ready":
            return prepare(launch, state)
        case "prepared" | "starting":
            return begin(launch, state)
        case "running":
            look(launch, state)
            launch.world.sleep(POLL_PAUSE)
            return state
        case "lost":
            return remove(launch, state)


def ended(launch: Launch, state: State, error: Ended) -> State:
    """What the end of an attempt means."""
    if error.tail:
        launch.world.say(error.tail.rstrip())
    if error.code == 0:
        raise Ending(0, f"done after {state.attempt} attempts")
    if error.code == 2:
        raise Ending(2, "exit code 2: wrong config or input, no attempt can mend it")
    again: Phase = "prepared"
    return failed(launch, state, str(error), again, pause=error.code != 75)


def unanswered(
    launch: Launch, state: State, error: Unreachable | GcloudError, silences: int
) -> State:
    """What it means that Google Cloud or the workers did not do as they were asked."""
    kind = error.kind if isinstance(error, GcloudError) else "failed"
    if kind == "refused":
        raise Ending(2, str(error))
    if kind == "short":
        return failed(launch, state, str(error), "lost")
    launch.world.say(str(error))
    if state.phase in ("ready", "prepared", "starting", "running"):
        try:
            found = observe(launch, state)
        except GcloudError as other:
            if other.kind == "refused":  # signed out, say, while the training goes on
                raise Ending(2, str(other)) from other
            launch.world.say(str(other))
        else:
            if found.kind in ("absent", "gone"):
                gone = lost(launch, state)
                return failed(
                    launch, gone, f"the slice was taken: {found.said}", "lost", pause=False
                )
    if silences > SILENCES:
        return failed(launch, state, f"no answer {silences} times in a row", "lost")
    launch.world.sleep(POLL_PAUSE)
    return state


def failed(launch: Launch, state: State, why: str, phase: Phase, *, pause: bool = True) -> State:
    """The state after an attempt that ended without being done, for another one from `phase` on.

    Raises:
      Ending: it was the last of several in a row that reached no new step.
    """
    step = state.step
    if state.attempt:
        try:
            step = max(step, remote.newest_step(launch.world, state))
        except (GcloudError, Unreachable, WorkerFailed) as error:
            launch.world.say(f"the newest step is not known: {error}")
    failures = 0 if step > state.step else state.failures + 1
    shown = step if step >= 0 else "none"
    launch.world.say(f"{why}; attempt {state.attempt}, newest step {shown}")
    if failures >= ATTEMPTS:
        raise Ending(1, f"{ATTEMPTS} attempts in a row reached no new step; the last: {why}")
    state = dataclasses.replace(state, step=step, failures=failures, phase=phase)
    if pause:
        launch.save(state)
        launch.world.sleep(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** max(0, failures - 1)))
    return state


def end(launch: Launch, state: State, ending: Ending, *, keep: bool) -> int:
    """Stops what runs, deletes the slice unless `keep`, and says why."""
    launch.world.say(str(ending))
    if ending.code == 1:
        halt(launch, state)
    # What became of the attempt the next `babysit` sees for itself.
    state = dataclasses.replace(state, failures=0, began=0.0)
    launch.save(state)
    if keep:
        launch.world.say(f"{state.name} is kept, and costs money until it is deleted")
        return ending.code
    try:
        launch.save(remove(launch, state))
    except Trouble as error:
        launch.world.say(str(error))
        return ending.code or 1
    return ending.code


def halt(launch: Launch, state: State) -> None:
    """Stops the training, with a checkpoint, if there is one and its workers answer."""
    if state.phase not in ("starting", "running"):
        return
    try:
        remote.stop(launch.world, state)
    except (Unreachable, WorkerFailed) as error:
        launch.world.say(f"it was not stopped: {error}")
