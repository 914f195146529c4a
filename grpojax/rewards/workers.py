"""Workers: processes that judge completions, each killed and replaced when it exceeds its time.

For judges that may burn time or memory without end, such as computer algebra on what a policy
wrote: a thread cannot be stopped, a process can. They speak JSON lines over pipes; no pickle.
"""

import atexit
import collections
import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from grpojax.rewards.failure import Failed
from grpojax.task import Example

STARTING = 120.0  # seconds that a worker may take to import and prepare its reward
DIED = "lost its worker, which ran out of memory or crashed"
# Nothing of the user's environment, and one order of sets in every worker.
ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "OPENBLAS_NUM_THREADS": "1",  # each reserves address space, which is limited
    "PATH": os.defpath,
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",
}


class Workers:
    """`count` processes that run the reward `function` ("module:function"), started when needed.

    `replaced` counts those that were killed for their time or died. Safe to call from any thread.
    """

    def __init__(self, function: str, *, count: int, memory: int):
        self.function, self.count, self.memory = function, count, memory
        self.replaced = 0
        self.crew: list[Worker] = []
        self.lock = threading.Lock()
        atexit.register(self.close)

    def call_all(self, cases: Sequence[tuple[Example, str]], limit: float) -> list[Any | Failed]:
        """What the reward says of each case, in their order; `limit` seconds for each.

        The time of a worker's start is not charged to any case.

        Raises:
          RuntimeError: a worker could not import or prepare the reward.
        """
        results: list[Any | Failed] = [None] * len(cases)
        todo = collections.deque(range(len(cases)))

        def work(place: int) -> None:
            while True:
                try:
                    case = todo.popleft()
                except IndexError:
                    return
                results[case] = self.call(place, *cases[case], limit)

        with self.lock:
            places = range(min(self.count, len(cases)))
            self.crew += [Worker(self.function, self.memory) for _ in places[len(self.crew) :]]
            with ThreadPoolExecutor(max(len(places), 1)) as threads:
                list(threads.map(work, places))
        return results

    def call(self, place: int, example: Example, completion: str, limit: float) -> Any | Failed:
        """One call of the worker in a `place` of the crew, and another worker for it if it died."""
        worker = self.crew[place]
        if worker.process.poll() is not None and worker.child:  # since it was last asked
            worker.kill()
            self.replaced += 1
            worker = self.crew[place] = Worker(self.function, self.memory)
        request = {
            "example": dataclasses.asdict(example),
            "completion": completion,
            "seconds": limit,
        }
        answer = worker.ask(request, limit)
        if isinstance(answer, Failed):
            self.replaced += 1
            return answer
        return answer["value"] if "value" in answer else Failed(f"raised {answer['error']}")

    def close(self) -> None:
        """Ends all workers; they start again when they are needed."""
        while self.crew:
            self.crew.pop().kill()


class Worker:
    """One process of `grpojax.rewards.worker` in a session of its own, and the pipes to it."""

    def __init__(self, function: str, memory: int):
        self.function, self.unread = function, b""
        self.child = 0  # the process that judges now; 0 until it says that it is ready
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-s", "-m", "grpojax.rewards.worker", function, str(memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)},
            start_new_session=True,  # a Ctrl-C is the asking process's affair
        )

    def wait_until_ready(self) -> None:
        """Waits until the reward is imported and prepared, and a child is there to judge.

        Raises:
          RuntimeError: it could not be.
        """
        deadline = time.monotonic() + STARTING
        while not self.child:
            try:
                line = self.read_line(deadline - time.monotonic())
            except EOFError:
                line = b'{"broken": "its process died; judging.worker_memory may be too little"}'
            said = {"broken": "it took too long"} if line is None else {}
            with contextlib.suppress(ValueError):  # what a killed child left half said
                said = said or json.loads(line)
            if "broken" in said:
                raise RuntimeError(
                    f"no worker could prepare the reward {self.function}: {said['broken']}"
                )
            self.child = said.get("ready", 0)

    def ask(self, request: dict, limit: float) -> dict | Failed:
        """The answer to a request, or why there is none; then another child takes over."""
        self.wait_until_ready()
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            line = b"\n"
            deadline = time.monotonic() + limit
            while line is not None and not line.strip():
                line = self.read_line(deadline - time.monotonic())
        except (BrokenPipeError, EOFError):
            return Failed(DIED)
        if line is None:
            os.kill(self.child, signal.SIGKILL)
            self.child = 0
            return Failed(f"took longer than {limit:g} s", timed_out=True)
        answer = json.loads(line)
        if "ready" in answer:  # so the child before it has died
            self.child = answer["ready"]
            return Failed(DIED)
        return answer

    def read_line(self, limit: float) -> bytes | None:
        """The next line that the process writes; None if there is none within `limit` seconds.

        Raises:
          EOFError: the process has ended.
        """
        deadline, poll = time.monotonic() + limit, select.poll()
        poll.register(self.process.stdout, select.POLLIN)
        while b"\n" not in self.unread:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                return None
            read = os.read(self.process.stdout.fileno(), 65536)
            if not read:
                raise EOFError
            self.unread += read
        line, _, self.unread = self.unread.partition(b"\n")
        return line

    def kill(self) -> None:
        """Ends the process and its child, and waits until they are gone."""
        self.process.stdin.close()
        if self.child and self.process.poll() is None:
            # Its parent sees it off, and ends as there is no more input.
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.kill(self.child, signal.SIGKILL)
                self.process.wait(5)
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()
