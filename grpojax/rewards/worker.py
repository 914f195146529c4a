"""Worker: a process that judges completions one at a time, `python -m grpojax.rewards.worker`.

It imports the reward `MODULE:FUNCTION`, prepares it, and then forks a child for each life: the
child says `{"ready": PID}` and answers each line on its standard input (an example and a
completion, as JSON) by a line on its standard output. When it is killed or dies, the next is forked
in an instant. All end when the input does, so none outlives the process that asks. `workers.py`
starts it.
"""

import json
import math
import os
import resource
import sys
from collections.abc import Callable
from typing import TextIO

from grpojax.names import find_function
from grpojax.task import Example, Reward


def main(name: str, memory: int) -> None:
    """Judges with the reward `name` until the input ends, in at most `memory` MiB."""
    requests, answers = private_pipes()
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_AS, memory * 2**20)

    def say(what: dict) -> None:
        answers.write(json.dumps(what, default=float) + "\n")
        answers.flush()

    try:
        reward = find_function("reward", name, {})
        getattr(reward, "prepare", lambda: None)()
    except Exception as error:
        say({"broken": f"{type(error).__name__}: {error}"})
        return
    while True:
        child = os.fork()
        if not child:
            # The last child may have been killed in the middle of a line.
            answers.write("\n")
            say({"ready": os.getpid()})
            for line in requests:
                say(judged(reward, json.loads(line)))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status == 0:
            return


def judged(reward: Reward | Callable, request: dict) -> dict:
    """What `reward` says of a request: `{"value": ...}`, or `{"error": ...}` if it raised."""
    spent = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    # A judge that the parent cannot kill, as it is gone itself, ends by this.
    limit(resource.RLIMIT_CPU, math.ceil(spent + request["seconds"]) + 1, hard=False)
    try:
        value = reward(Example(**request["example"]), request["completion"])
        json.dumps(value, default=float)
    except BaseException as error:  # sys.exit() among them: whatever it is concerns one completion
        return {"error": f"{type(error).__name__}: {error}"}
    return {"value": value}


def private_pipes() -> tuple[TextIO, TextIO]:
    """Standard input and output under other numbers; what is judged finds /dev/null in theirs."""
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    return requests, answers


def limit(what: int, most: int, hard: bool = True) -> None:
    """Sets a limit of this process, and that to which it may be raised again if `hard`."""
    _, ceiling = resource.getrlimit(what)
    if ceiling != resource.RLIM_INFINITY:
        most = min(most, ceiling)
    resource.setrlimit(what, (most, most if hard else ceiling))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
