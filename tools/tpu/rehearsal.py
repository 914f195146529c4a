"""Rehearsal: what --dry-run puts in the world's place: calls are printed, and go as they should."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

from tools.tpu.gcloud import Answer, World
from tools.tpu.slices import slice_of
from tools.tpu.state import State


def rehearsal(state: State, say: Callable[[str], None]) -> World:
    """A world in which what is asked for comes at once and the training ends with exit code 0."""
    there = state.phase not in ("absent", "requested", "lost")
    hosts = slice_of(state.slice).hosts

    def call(argv: list[str], stdin: str, cwd: Path | None, limit: float) -> Answer:
        nonlocal there
        say(shlex.join(argv) + ("  # secrets on standard input" if stdin else ""))
        if "create" in argv or "delete" in argv:
            there = "create" in argv
        if "describe" in argv and not there:
            return Answer(code=1, out="", err="NOT_FOUND")
        return Answer(code=0, out=answer_to(argv, state, hosts), err="")

    def sleep(seconds: float) -> None:
        pass

    return World(call=call, sleep=sleep, now=lambda: 0.0, say=lambda text: say(f"# {text}"))


def answer_to(argv: list[str], state: State, hosts: int) -> str:
    """What the world says when all goes well."""
    if "queued-resources" in argv:
        return json.dumps({"state": {"state": "ACTIVE"}})
    if "list-instances" in argv:
        rows = [
            {"instance": f"{state.name}-{i}", "instanceStatus": "RUNNING"} for i in range(hosts)
        ]
        return json.dumps(rows)
    if "describe" in argv:
        ends = [{}] * hosts
        return json.dumps({"state": "READY", "networkEndpoints": ends, "status": "RUNNING"})
    if "ssh" in argv:
        one = any(word.startswith("--worker=") and word[9:] != "all" for word in argv)
        row = {"grpojax": state.name, "attempt": 1, "exit": 0, "alive": False, "step": -1}
        row |= {"text": "", "offset": 0, "end": True, "over": True}
        return "\n".join([json.dumps(row)] * (1 if one or "tpus" not in argv else hosts))
    return ""
