"""Remote: the program of the workers, called over ssh, and where the run directory is read.

ssh hands a shell one string. That string is made here and nowhere else, by `shlex.join` of an
argument list.
"""

import contextlib
import json
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import Any

from grpojax.checks import require
from grpojax.manifest import MANIFEST
from tools.tpu import cloud_tpu, compute_engine, worker
from tools.tpu.archive import write_archive
from tools.tpu.gcloud import GcloudError, World, gcloud
from tools.tpu.slices import slice_of
from tools.tpu.state import State
from tools.tpu.texts import LONGEST

PROGRAM = "grpojax_worker.py"
GRACE = 120  # seconds that a training has to save and end
COPY_LIMIT, SETUP_LIMIT = 600.0, 1_800.0  # seconds; gcloud tries to connect for a minute by itself


class Unreachable(Exception):
    """Not every worker answered; the line says why."""


class WorkerFailed(Exception):
    """A worker could not do what it was asked for; the line says why."""


def backend_of(state: State) -> Any:
    """The module that speaks for the slice: of Compute Engine or of Cloud TPU."""
    return compute_engine if slice_of(state.slice).generation.topology == "tpu7x" else cloud_tpu


def ask(
    world: World,
    state: State,
    arguments: list[str],
    *,
    workers: tuple[str, ...] = (),
    stdin: str = "",
    limit: float = 180.0,
) -> list[dict[str, Any]]:
    """What each of `workers` (by default all) answers to `arguments`.

    Raises:
      ValueError: the command is longer than an argument can be.
      Unreachable: there are fewer answers than workers.
      WorkerFailed: a worker answered with an error.
    """
    workers = workers or state.workers
    command = shlex.join(["python3", "-I", PROGRAM, *arguments])
    size = len(command.encode(errors="surrogateescape"))
    require(size <= LONGEST, f"a remote command must have at most {LONGEST} bytes, got {size}")
    answers, said = [], ""
    for call in backend_of(state).ssh(state, workers, command):
        answer = world.call(["gcloud", *call], stdin, None, limit)
        if answer.code is None:
            said = f"ssh gave no answer in {limit:g} s"
        elif answer.code:
            last = [line.strip() for line in answer.err.splitlines() if line.strip()]
            said = f"ssh ended with exit code {answer.code}: {last[-1] if last else 'nothing':.300}"
        answers += answers_in(answer.out)
    for found in answers:
        if "error" in found:
            raise WorkerFailed(f"{found['grpojax']}: {found['error']}")
    if len(answers) < len(workers):
        raise Unreachable(f"{len(answers)} of {len(workers)} workers answered; {said}")
    return answers


def answers_in(text: str) -> list[dict[str, Any]]:
    """The answers of workers among whatever else a shell and ssh print."""
    found = []
    for line in text.splitlines():
        if line.startswith('{"grpojax"'):
            with contextlib.suppress(ValueError):  # a connection broke in the middle of it
                found.append(json.loads(line))
    return found


def send(world: World, state: State, repository: Path) -> None:
    """Copies the program of the workers and the archive of the commit to every worker. Raises
    GcloudError."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(worker.__file__, Path(folder, PROGRAM))
        write_archive(repository, state.commit, Path(folder, worker.ARCHIVE.name))
        for call in backend_of(state).copy(state, [PROGRAM, worker.ARCHIVE.name]):
            gcloud(world, call, cwd=Path(folder), limit=COPY_LIMIT)


def set_up(world: World, state: State) -> None:
    """Makes every worker ready to run the commit."""
    ask(world, state, ["setup", f"--commit={state.commit}"], limit=SETUP_LIMIT)


def give_secrets(world: World, state: State, values: dict[str, str]) -> None:
    """Hands the secrets to each worker on its standard input, one worker after another: calls at
    once would share it."""
    for name in state.workers if values else ():
        ask(world, state, ["secrets"], workers=(name,), stdin=json.dumps(values))


def start(world: World, state: State) -> None:
    """Starts the training on every worker, detached; an attempt is started once."""
    env = [f"--env={pair}" for pair in state.env]
    env += [f"--secret={name}" for name in state.secrets]
    own = ["start", f"--commit={state.commit}", f"--attempt={state.attempt}", *env]
    ask(world, state, [*own, "--", *training(state)])


def training(state: State) -> list[str]:
    """The arguments of grpojax."""
    return ["train", state.config, "--workdir", state.workdir, *state.arguments]


def poll(world: World, state: State) -> list[dict[str, Any]]:
    """How the attempt stands on every worker."""
    where = [] if state.workdir.startswith("gs://") else [f"--workdir={state.workdir}"]
    return ask(world, state, ["poll", f"--attempt={state.attempt}", *where])


def stop(world: World, state: State) -> None:
    """Ends the attempt on every worker, with a checkpoint if there is time."""
    asked = ["stop", f"--attempt={state.attempt}", f"--grace={GRACE}"]
    ask(world, state, asked, limit=GRACE + 120.0)


def newest_step(world: World, state: State) -> int:
    """The newest sealed checkpoint of the run directory, -1 if there is none.

    Raises:
      GcloudError, Unreachable, WorkerFailed: it cannot be read now.
    """
    if not state.workdir.startswith("gs://"):
        return max(found["step"] for found in poll(world, state)) if state.workers else -1
    try:
        listed = gcloud(world, ["storage", "ls", f"{state.workdir}/checkpoints/*/{MANIFEST}"])
    except GcloudError as error:
        if error.kind != "absent":
            raise
        return -1
    steps = [line.strip().split("/")[-2] for line in listed.splitlines() if line.strip()]
    return max((int(step) for step in steps if step.isdigit()), default=-1)
