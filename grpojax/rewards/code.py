"""Code: does a completion's program pass the example's tests? Run by bubblewrap, or not at all.

The sandbox has no network, no files of the user's, a read-only system, namespaces of its own and
limits of time, memory, processes and output. It protects the machine, not the score: a program
shares its process with the tests, and one that hunts for them there could pass without a solution.
"""

import json
import os
import re
import secrets
import select
import shutil
import subprocess
import sys
import tempfile
import time

from grpojax.task import Example, prepared

SECONDS = 5  # of processor time of each process
CLOCK = 30.0  # seconds that pass, as other programs run beside it
MEMORY = 512  # MiB of address space of each process
TEMPORARY = 64  # MiB of files
BLOCK = re.compile(r"^```(?:python|py)?[ \t]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
PYTHON = os.path.realpath(getattr(sys, "_base_executable", sys.executable))  # no packages
SANDBOX = [
    *("--unshare-all", "--unshare-user", "--die-with-parent", "--new-session"),
    *("--uid", "65534", "--gid", "65534", "--cap-drop", "ALL", "--proc", "/proc"),
    *("--dev", "/dev", "--remount-ro", "/dev", "--size", str(TEMPORARY * 2**20)),
    *("--tmpfs", "/tmp", "--chdir", "/tmp"),
]
BEGUN = b"begun\n"
# Runs inside: reads the program, runs it, then the tests in the program's names, then says so.
INSIDE = """
import json, os, resource
asked, say = os.fdopen(os.dup(0), "rb"), os.dup(1)
null = os.open(os.devnull, os.O_RDWR)
for standard in (0, 1, 2):
    os.dup2(null, standard)
given = json.loads(asked.readline())
for name, most in given["limits"]:
    resource.setrlimit(getattr(resource, name), (most, most))
os.write(say, b"begun\\n")
names = {"__name__": "solution"}
exec(compile(given["program"], "solution", "exec"), names)
rest = json.loads(asked.readline())
exec(compile(rest["tests"], "tests", "exec"), names)
os.write(say, rest["word"].encode())
os._exit(0)
"""


def check_sandbox() -> None:
    """Raises ValueError unless a program can be run in a sandbox here."""
    try:
        passed, why = (
            run_tests("answer = 42", "assert answer == 42", seconds=SECONDS, clock=CLOCK),
            "a failure",
        )
    except (OSError, RuntimeError) as error:
        passed, why = False, str(error)
    if not passed:
        raise ValueError(
            f"the reward code_passes_tests needs bubblewrap and user namespaces, got: {why}; "
            "install bwrap, or allow it to make namespaces"
        )


@prepared(check_sandbox)
def code_passes_tests(example: Example, completion: str) -> float:
    """1.0 if the completion's last fenced block of Python passes the tests in the example's answer.

    Tests are Python statements that raise where the program is wrong; they see its names, and both
    have the standard library alone. A program that fails, ends the process or exceeds its 5 seconds
    of processor time, its 512 MiB or another limit is wrong, as is a completion without a block.

    Raises:
      ValueError: the example has no tests.
      TimeoutError: 30 seconds went by on the clock, so that nothing is known.
      OSError, RuntimeError: the sandbox does not work.
    """
    if not example.answer.strip():
        raise ValueError(f"example {example.id} must have tests as its answer, got none")
    blocks = BLOCK.findall(completion)
    if not blocks:
        return 0.0
    return float(run_tests(blocks[-1], example.answer, seconds=SECONDS, clock=CLOCK))


def run_tests(program: str, tests: str, *, seconds: int, clock: float) -> bool:
    """Whether `program`, then `tests` among its names, run to their end inside a sandbox.

    `seconds` are of processor time, and to exceed them is not to pass.

    Raises:
      TimeoutError: `clock` seconds went by before that.
      OSError, RuntimeError: the sandbox does not work.
    """
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise RuntimeError("there is no bwrap")
    word = secrets.token_hex(16)  # said after the tests: to end early is not to pass
    limits = [
        ("RLIMIT_CPU", seconds),
        ("RLIMIT_AS", MEMORY * 2**20),
        ("RLIMIT_FSIZE", TEMPORARY * 2**20),
        ("RLIMIT_NPROC", 32),  # the kernel does not hold root to it; the clock ends that too
        ("RLIMIT_CORE", 0),
    ]
    lines = [{"program": program, "limits": limits}, {"tests": tests, "word": word}]
    with tempfile.TemporaryFile() as asked:
        for line in lines:
            asked.write(json.dumps(line).encode() + b"\n")
        asked.seek(0)
        process = subprocess.Popen(
            [bwrap, *SANDBOX, *visible(), PYTHON, "-I", "-c", INSIDE],
            stdin=asked,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
        )
    try:
        said = read_until_end(process.stdout.fileno(), seconds=clock)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    if not said.startswith(BEGUN):
        raise RuntimeError("the sandbox did not run the program")
    return said == BEGUN + word.encode()


def read_until_end(pipe: int, *, seconds: float) -> bytes:
    """The first bytes written to `pipe`, once it is closed or more than a verdict was written.

    Raises:
      TimeoutError: neither happened within `seconds`.
    """
    said, deadline, poll = b"", time.monotonic() + seconds, select.poll()
    poll.register(pipe, select.POLLIN)
    while len(said) < 1000:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError(f"the program did not end within {seconds:g} s")
        read = os.read(pipe, 1000)
        if not read:
            break
        said += read
    return said


def visible() -> list[str]:
    """bwrap's arguments for the files that a program may read: the system's and Python's."""
    shown = ["--ro-bind", "/usr", "/usr", "--ro-bind", sys.base_prefix, sys.base_prefix]
    for folder in ("/lib", "/lib64", "/bin"):
        if os.path.islink(folder):
            shown += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            shown += ["--ro-bind", folder, folder]
    return [*shown, "--remount-ro", "/"]
