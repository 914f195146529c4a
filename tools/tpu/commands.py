"""The commands of the launcher, each as a user would do it by hand."""

import dataclasses
import shlex
from pathlib import Path

from grpojax.checks import require
from tools.tpu import cloud_tpu, compute_engine, lifecycle, remote
from tools.tpu.archive import find_commit, require_config
from tools.tpu.arguments import (
    BabysitArguments,
    CostArguments,
    CreateArguments,
    LogsArguments,
    LsArguments,
    PlanArguments,
    RunArguments,
    SetupArguments,
)
from tools.tpu.babysit import Limits
from tools.tpu.babysit import babysit as keep_going
from tools.tpu.cost import cost_lines
from tools.tpu.gcloud import GcloudError, World, look
from tools.tpu.lifecycle import POLL_PAUSE, SILENCES, Launch, Trouble
from tools.tpu.remote import Unreachable
from tools.tpu.slices import describe_slice, slice_of
from tools.tpu.state import State, known_slices
from tools.tpu.texts import require_carried

LOG_PAUSE = 5.0  # seconds between looks at a log that grows


def plan(arguments: PlanArguments) -> int:
    """Prints what a slice is and costs, and the command that plans a config for it."""
    found = slice_of(arguments.slice)
    print(describe_slice(found, arguments.runtime_version))
    price = arguments.price_per_chip_hour
    money = "unknown; give --price-per-chip-hour" if price is None else f"{price * found.chips:.2f}"
    print(f"price per hour   {money}")
    print(f"grpojax plan {arguments.config} --topology {found.topology}")
    return 0


def new_state(arguments: CreateArguments, known: State | None) -> State:
    """The record of a slice to ask for; `known` is what the record of that name says now.

    Raises:
      ValueError: another slice has the name.
    """
    names = ("name", "slice", "project", "zone", "spot", "queued", "runtime_version")
    state = State(**{name: getattr(arguments, name) for name in names})
    if known is None or (known.phase == "absent" and known.slice != state.slice):
        return state
    if known.phase == "absent":
        return dataclasses.replace(state, spans=known.spans)  # of the slices before it
    for name in names:
        ours, theirs = getattr(state, name), getattr(known, name)
        require(
            ours == theirs,
            f"{state.name} is on record with {name}={theirs}, got {ours}; delete it or choose "
            "another name",
        )
    return known


def create(launch: Launch, state: State, queue_hours: float) -> int:
    """Asks for the slice, unless that was done, and waits until it is there."""
    world = launch.world
    if state.phase == "absent":
        found = lifecycle.observe(launch, state)
        require(
            found.kind == "absent",
            f"{state.name} is in {state.zone} already and not on record here; choose another name",
        )
        state = lifecycle.request(launch, state)
    while state.phase == "requested":
        launch.save(state)
        state = lifecycle.arrive(launch, state)
        if state.phase == "requested":
            hours = (world.now() + POLL_PAUSE - state.requested) / 3600
            if hours > queue_hours:
                launch.save(lifecycle.remove(launch, state))
                raise Trouble(f"no slice after {hours:.2f} of queue_hours={queue_hours:g}")
            world.sleep(POLL_PAUSE)
    launch.save(state)
    if state.phase == "lost":
        raise Trouble(f"the request failed or {state.name} was taken; `delete` clears it away")
    return 0


def setup(launch: Launch, state: State, arguments: SetupArguments) -> int:
    """Installs a commit on every worker."""
    commit = find_commit(launch.repository, arguments.commit, allow_dirty=arguments.allow_dirty)
    require_there(state, "setup")
    state = without_attempt(launch, state)
    state = dataclasses.replace(state, commit=commit, phase="ready")
    launch.save(state)
    launch.save(lifecycle.prepare(launch, state))
    launch.world.say(f"{state.name} has commit {commit}")
    return 0


def with_job(launch: Launch, state: State, arguments: RunArguments, further: list[str]) -> State:
    """The state with a run to start. Raises ValueError."""
    state = without_attempt(launch, state)
    require(bool(state.commit), f"{state.name} has no program; `setup {state.name}` installs it")
    require_config(launch.repository, state.commit, arguments.config)
    for text in further:
        require_carried("a flag of grpojax", text)
        own = text.split("=")[0] == "--workdir"
        require(not own, "--workdir must stand before --, where the launcher reads it too")
    shared = arguments.workdir.startswith("gs://")
    alone = not state.spot and slice_of(state.slice).hosts == 1
    require(
        shared or alone,
        f"workdir must be gs://BUCKET/PATH on a spot slice, whose disks go with it, and on several "
        f"hosts, got {arguments.workdir!r:.200}",
    )
    names = {name: getattr(arguments, name) for name in ("config", "workdir", "env", "secrets")}
    new = dataclasses.replace(state, **names, arguments=tuple(further), failures=0, began=0.0)
    return dataclasses.replace(new, step=state.step if new.workdir == state.workdir else -1)


def run(launch: Launch, state: State) -> int:
    """Starts the training on every worker. The job is on record first, for `babysit` to finish."""
    launch.save(state)
    require_there(state, "run")
    if state.phase == "ready":
        state = lifecycle.prepare(launch, state)
    launch.save(lifecycle.begin(launch, state))
    return 0


def babysit(launch: Launch, state: State, arguments: BabysitArguments) -> int:
    """Keeps the run going until it is done or hopeless."""
    require(bool(state.config), f"{state.name} has nothing to run; `run {state.name} CONFIG` does")
    require(
        arguments.keep or state.workdir.startswith("gs://"),
        f"workdir {state.workdir!r:.200} goes with the slice, which is deleted at the end; run "
        "into gs://BUCKET/PATH, or --keep",
    )
    limits = Limits(
        max_cost=arguments.max_cost,
        price_per_chip_hour=arguments.price_per_chip_hour,
        max_hours=arguments.max_hours,
        queue_hours=arguments.queue_hours,
    )
    return keep_going(launch, state, limits, keep=arguments.keep)


def status(launch: Launch, state: State) -> int:
    """Prints how the slice and its training stand."""
    say = launch.world.say
    found = lifecycle.observe(launch, state)
    say(f"{state.name}: {state.slice} in {state.zone}, {found.said}; record: {state.phase}")
    if state.phase in ("starting", "running") and found.kind == "ready":
        for row in remote.poll(launch.world, state):
            how = "runs" if row["exit"] is None else f"ended with exit code {row['exit']}"
            how = how if row["alive"] or row["exit"] is not None else "was killed"
            say(f"attempt {state.attempt} {how} on {row['grpojax']}")
    if state.workdir and (found.kind == "ready" or state.workdir.startswith("gs://")):
        step = remote.newest_step(launch.world, state) if state.attempt else -1
        say(f"newest step {step if step >= 0 else 'none'} in {state.workdir}")
    return 0


def logs(launch: Launch, state: State, arguments: LogsArguments, reload) -> int:
    """Prints the log of a worker; with `follow` until the attempt ends, over broken connections."""
    offset, attempt, silences = 0, 0, 0
    while True:
        require_there(state, "logs")
        require(
            arguments.worker < len(state.workers),
            f"worker must be below {len(state.workers)}, got {arguments.worker}",
        )
        asked = ["log", f"--attempt={attempt}", f"--offset={offset}"]
        try:
            worker = (state.workers[arguments.worker],)
            (found,) = remote.ask(launch.world, state, asked, workers=worker)[:1]
        except Unreachable as error:
            silences += 1
            if not arguments.follow or silences > SILENCES:
                raise
            launch.world.say(f"[{error}]")
            launch.world.sleep(POLL_PAUSE)
            state = reload()
            continue
        silences, attempt, offset = 0, found["attempt"], found["offset"]
        if found["text"]:
            print(found["text"], end="", flush=True)
        if found["over"] or (found["end"] and not arguments.follow):
            return 0
        if not found["text"]:
            launch.world.sleep(LOG_PAUSE)


def stop(launch: Launch, state: State) -> int:
    """Ends the training with a checkpoint."""
    require(
        state.phase in ("starting", "running"),
        f"{state.name} runs nothing (its record says {state.phase})",
    )
    remote.stop(launch.world, state)
    launch.save(dataclasses.replace(state, phase="prepared"))
    launch.world.say(f"attempt {state.attempt} has ended; `babysit` or `run` goes on from there")
    return 0


def delete(launch: Launch, state: State) -> int:
    """Deletes the slice."""
    launch.save(lifecycle.remove(launch, state))
    return 0


def cost(state: State, arguments: CostArguments, now: float) -> int:
    """Prints chip-hours and cost."""
    print("\n".join(cost_lines(state, now, arguments.price_per_chip_hour)))
    return 0


def ls(world: World, folder: Path, arguments: LsArguments) -> int:
    """Lists the records, then what is in a zone and on no record."""
    known = known_slices(folder)
    for state in known:
        spot = "spot" if state.spot else "on demand"
        step = state.step if state.step >= 0 else "none"
        row = f"{state.slice} in {state.zone}, {spot}, {state.phase}, attempt {state.attempt}"
        print(f"{state.name}: {row}, newest step {step}")
    if not arguments.project:
        return 0
    ours = {state.name for state in known if state.zone == arguments.zone}
    for module in (cloud_tpu, compute_engine):
        for call in module.listing(arguments.project, arguments.zone):
            if arguments.dry_run:
                world.say(shlex.join(["gcloud", *call]))
                continue
            for row in look(world, call) or []:
                name = row["name"].rpartition("/")[2]
                said = row.get("state") or row.get("status")
                said = said.get("state") if isinstance(said, dict) else said
                record = "on record" if name in ours else "NOT on record here"
                print(f"{' '.join(call[1:3])}: {name} is {said}, {record}")
    return 0


def require_there(state: State, command: str) -> None:
    """Raises Trouble unless the slice was there when last looked at."""
    if state.phase in ("absent", "requested", "lost"):
        raise Trouble(
            f"{command} needs a slice, and the record of {state.name} says {state.phase}; `create` "
            "or `babysit` brings it"
        )


def without_attempt(launch: Launch, state: State) -> State:
    """The state once its attempt has ended. Raises ValueError while it runs."""
    if state.phase not in ("starting", "running"):
        return state
    try:
        lifecycle.look(launch, state)
    except lifecycle.Ended as error:
        launch.world.say(f"attempt {state.attempt} has ended: {error}")
        return dataclasses.replace(state, phase="prepared")
    require(False, f"attempt {state.attempt} runs on {state.name}; `stop {state.name}` ends it")
    raise AssertionError


def troubled(launch: Launch, state: State, error: GcloudError | Unreachable) -> str:
    """What to tell of a command that failed: also whether the slice was taken away meanwhile."""
    if state.phase in ("absent", "requested", "lost"):
        return str(error)
    try:
        found = lifecycle.observe(launch, state)
    except GcloudError:
        return str(error)
    if found.kind in ("ready", "waiting"):
        return str(error)
    launch.save(lifecycle.lost(launch, state))
    return f"{state.name} was taken ({found.said}); `babysit` brings another and goes on ({error})"
