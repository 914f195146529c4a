"""gcloud: one call with a time limit, and what its error means.

The world (processes, clock, sleep, screen) comes in as functions, so that a rehearsal and the tests
bring their own.
"""

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from grpojax.checks import require


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a process said; `code` is None if it was killed at its time limit."""

    code: int | None
    out: str
    err: str


# Of an argument list, text for standard input, the folder to run in, a time limit in seconds.
Call = Callable[[list[str], str, Path | None, float], Answer]


@dataclass(frozen=True, kw_only=True)
class World:
    """What is outside of the launcher."""

    call: Call
    sleep: Callable[[float], None]
    now: Callable[[], float]  # seconds since the epoch
    say: Callable[[str], None]


# absent: no such thing. exists: already there. short: quota or no capacity, for now. refused: it
# will never work so. failed: anything else, perhaps for now. silent: killed at its time limit.
Kind = Literal["absent", "exists", "short", "refused", "failed", "silent"]

KINDS: dict[Kind, str] = {
    "short": r"quota|RESOURCE_EXHAUSTED|no more capacity|stockout|STOCKOUT|enough resources",
    "exists": r"ALREADY_EXISTS|already exists",
    "refused": (
        r"PERMISSION_DENIED|INVALID_ARGUMENT|UNAUTHENTICATED|required permission|gcloud auth login|"
        r"unrecognized arguments|Invalid choice|Invalid value|has not been used in project|"
        r"Failed to find project|The project property|Permission denied on 'locations"
    ),
    "absent": r"NOT_FOUND|was not found|not found|matched no objects",
}


class GcloudError(Exception):
    """A call of gcloud's that failed: its kind and what gcloud said, in one line."""

    def __init__(self, kind: Kind, said: str):
        super().__init__(said)
        self.kind = kind


def gcloud(
    world: World,
    arguments: list[str],
    *,
    stdin: str = "",
    cwd: Path | None = None,
    limit: float = 120.0,
) -> str:
    """Calls gcloud and returns its standard output. Raises GcloudError."""
    answer = world.call(["gcloud", *arguments], stdin, cwd, limit)
    if answer.code == 0:
        return answer.out
    what = "gcloud " + " ".join(word for word in arguments[:4] if not word.startswith("-"))
    if answer.code is None:
        raise GcloudError("silent", f"{what} gave no answer in {limit:g} s")
    lines = [line.strip() for line in answer.err.splitlines() if line.strip()]
    said = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "")
    kind = next((k for k, form in KINDS.items() if re.search(form, answer.err)), "failed")
    raise GcloudError(kind, f"{what} failed with exit code {answer.code}: {said:.400}")


def look(world: World, arguments: list[str]) -> Any:
    """What `describe` or a listing says as JSON, None if there is no such thing. Raises
    GcloudError."""
    try:
        said = gcloud(world, arguments)
    except GcloudError as error:
        if error.kind != "absent":
            raise
        return None
    try:
        return json.loads(said)
    except ValueError:
        raise GcloudError("failed", f"gcloud answered with no JSON: {said!r:.100}") from None


def run_process(argv: list[str], stdin: str, cwd: Path | None, limit: float) -> Answer:
    """`World.call` for real.

    Raises:
      ValueError: there is no such program.
    """
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            text=True,
            errors="replace",
            start_new_session=True,  # what it starts (ssh) is killed with it
        )
    except FileNotFoundError:
        require(False, f"{argv[0]} must be on the PATH, found none; install the Google Cloud CLI")
        raise
    with process:
        try:
            out, err = process.communicate(stdin, timeout=limit)
        except subprocess.TimeoutExpired:
            return Answer(code=None, out="", err="")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return Answer(code=process.returncode, out=out, err=err)
