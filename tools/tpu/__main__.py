"""Launcher: `grpojax train` on slices of Cloud TPU, from nothing to a run that ends.

    python -m tools.tpu COMMAND ...

It calls gcloud, and nothing else of Google Cloud's. docs/pods.md goes through a run.
"""

import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grpojax.__main__ import is_wrong_input
from grpojax.checks import require
from grpojax.names import nearest
from grpojax.parsing import HELP, parse
from tools.tpu import arguments as kinds
from tools.tpu import commands
from tools.tpu.gcloud import Call, GcloudError, World, run_process
from tools.tpu.lifecycle import Launch, Trouble
from tools.tpu.rehearsal import rehearsal
from tools.tpu.remote import Unreachable, WorkerFailed
from tools.tpu.state import State, alone, load_state, save_state

COMMANDS: dict[str, type] = {
    "plan": kinds.PlanArguments,
    "create": kinds.CreateArguments,
    "setup": kinds.SetupArguments,
    "run": kinds.RunArguments,
    "status": kinds.StatusArguments,
    "logs": kinds.LogsArguments,
    "babysit": kinds.BabysitArguments,
    "stop": kinds.StopArguments,
    "delete": kinds.DeleteArguments,
    "cost": kinds.CostArguments,
    "ls": kinds.LsArguments,
}
READERS = ("status", "logs", "cost")  # change nothing, so they may run beside `babysit`


def main(
    argv: list[str] | None = None,
    *,
    call: Call = run_process,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.time,
) -> int:
    """Runs the command in `argv` (default: the process's own arguments).

    Returns:
      The exit code: 0 done; 2 wrong input, said in one line before anything is made; 1 it did not
      work out; 130 interrupted, and the slice goes on.
    """
    world = World(call=call, sleep=sleep, now=now, say=functools.partial(print, flush=True))
    try:
        return command(sys.argv[1:] if argv is None else argv, world)
    except SystemExit as shown:  # a help page
        return int(shown.code or 0)
    except KeyboardInterrupt:
        return 130
    except ValueError as error:
        if not is_wrong_input(error):
            raise
        return complain(str(error), 2)
    except (Trouble, Unreachable, WorkerFailed) as error:
        return complain(str(error), 1)
    except GcloudError as error:
        return complain(str(error), 2 if error.kind == "refused" else 1)


def complain(said: str, code: int) -> int:
    line = " ".join(said.split())  # what it quotes may steer a terminal
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
    print(f"error: {shown}", file=sys.stderr)
    return code


def command(argv: list[str], world: World) -> int:
    name, *args = argv or [""]
    if name in HELP:
        rows = (f"  {name:10}{kind.__doc__}" for name, kind in COMMANDS.items())
        print("\n".join(["usage: python -m tools.tpu COMMAND ...", "", *rows]))
        return 0
    if name not in COMMANDS:
        what = f"unknown command {name}{nearest(name, COMMANDS)}" if name else "a command is needed"
        require(False, f"{what}; there are {', '.join(COMMANDS)}")
    at = args.index("--") if "--" in args and name == "run" else len(args)
    read = parse(COMMANDS[name], name, args[:at], program="python -m tools.tpu")
    if name == "plan":
        return commands.plan(read)
    folder = read.state.expanduser()
    if name == "ls":
        return commands.ls(world, folder, read)
    with contextlib.nullcontext() if name in READERS or read.dry_run else alone(folder, read.name):
        return on_slice(name, read, args[at + 1 :], folder, world)


def on_slice(name: str, read: Any, further: list[str], folder: Path, world: World) -> int:
    """Runs a command that is about one slice."""
    if name == "create":
        known = load_state(folder, read.name) if (folder / f"{read.name}.json").exists() else None
        state = commands.new_state(read, known)
    else:
        state = load_state(folder, read.name)
    if name == "cost":
        return commands.cost(state, read, world.now())
    save: Callable[[State], None] = functools.partial(save_state, folder)
    if read.dry_run:
        world = rehearsal(state, world.say)
        save = ignore
    wanted = read.secrets if name == "run" else state.secrets if name == "babysit" else ()
    for secret in wanted:
        require(bool(os.environ.get(secret)), f"secret {secret} must be set in this shell, is not")
    values = {secret: os.environ[secret] for secret in wanted}
    launch = Launch(world=world, repository=Path.cwd(), secrets=values, save=save)
    try:
        match name:
            case "create":
                return commands.create(launch, state, read.queue_hours)
            case "setup":
                return commands.setup(launch, state, read)
            case "run":
                return commands.run(launch, commands.with_job(launch, state, read, further))
            case "logs":
                reload = functools.partial(load_state, folder, read.name)
                return commands.logs(launch, state, read, reload)
            case "babysit":
                return commands.babysit(launch, state, read)
            case "status":
                return commands.status(launch, state)
            case "stop":
                return commands.stop(launch, state)
            case "delete":
                return commands.delete(launch, state)
    except (GcloudError, Unreachable) as error:
        if not read.dry_run and (folder / f"{read.name}.json").exists():
            state = load_state(folder, read.name)  # with what the command had recorded
            raise Trouble(commands.troubled(launch, state, error)) from error
        raise
    raise AssertionError(name)


def ignore(state: State) -> None:
    """What a rehearsal does instead of saving."""


if __name__ == "__main__":
    sys.exit(main())
