"""Worker: what runs on every host of a slice, with the Python of its image and nothing else.

    python3 -I grpojax_worker.py COMMAND ...

A command prints one line of JSON and may be called again: gcloud repeats one whose connection
broke. The images have Python 3.10 (22.04) or a newer one that pip may not change (24.04). Python
3.11 comes from uv, itself from the package index: it needs no root, waits for no lock of apt's,
which updates hold after boot, and gives every image the version that constraints.txt was made for.
"""

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

HOME = Path.home() / "grpojax"
ARCHIVE = Path.home() / "grpojax.tar.gz"
SECRETS = HOME / "secrets.json"
UV = "uv==0.13.8"
PYTHON = "3.11"
TAIL = 2_000  # bytes of a log that come with a failure
CHUNK = 60_000  # most bytes of a log in one answer


def main(argv: list[str]) -> int:
    at = argv.index("--") if "--" in argv else len(argv)
    own, arguments = argv[:at], argv[at + 1 :]
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--commit")
    parser.add_argument("--attempt", type=int, default=0)  # 0 is the newest
    parser.add_argument("--env", action="append", default=[])
    parser.add_argument("--secret", action="append", default=[])
    parser.add_argument("--workdir", default="")
    parser.add_argument("--offset", type=int, default=0)
    parser.add_argument("--grace", type=float, default=0)
    parser.add_argument("--lock", type=int)
    options = parser.parse_args(own)
    options.arguments = arguments
    if options.command == "supervise":
        supervise(options)
        return 0
    try:
        said = COMMANDS[options.command](options)
    except (OSError, subprocess.SubprocessError) as error:
        said = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps({"grpojax": os.uname().nodename, **said}))
    return 3 if "error" in said else 0


def setup(options: argparse.Namespace) -> dict:
    """Unpacks the archive and installs it with all it needs into an environment of its own."""
    folder = HOME / options.commit
    if (folder / "ready").exists():
        return {"commit": options.commit}
    shutil.rmtree(folder, ignore_errors=True)
    source, python = folder / "source", folder / "env/bin/python"
    source.mkdir(parents=True)
    uv = HOME / "uv/bin/uv"
    install = [uv, "pip", "install", "--quiet", "--python", python]
    pip = ["python3", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for step in (
        ["tar", "-xzf", ARCHIVE, "-C", source],
        [*pip, "--upgrade", "--target", HOME / "uv", UV],
        [uv, "venv", "--quiet", "--python", PYTHON, folder / "env"],
        [*install, "--constraint", source / "constraints.txt", f"{source}[tpu,gcs]"],
    ):
        done = subprocess.run([str(word) for word in step], capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
            what = " ".join(Path(word).name for word in step[:3])
            return {"error": f"{what} ended with exit code {done.returncode}: {last:.400}"}
    (folder / "ready").touch()
    return {"commit": options.commit}


def secrets(options: argparse.Namespace) -> dict:
    """Keeps the secrets from standard input in a file that only its owner may read."""
    values = json.load(sys.stdin)
    HOME.mkdir(exist_ok=True)
    SECRETS.unlink(missing_ok=True)
    descriptor = os.open(SECRETS, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(values, file)
    return {"secrets": sorted(values)}


def start(options: argparse.Namespace) -> dict:
    """Starts `grpojax` with the arguments after `--`, detached; once for each attempt."""
    folder = HOME / "attempts" / str(options.attempt)
    others = [path for path in (HOME / "attempts").glob("[0-9]*") if path != folder]
    if alive := [path.name for path in others if is_alive(path)]:
        return {"error": f"attempt {alive[0]} still runs here"}
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return {"attempt": options.attempt, "started": False}
    # Whoever holds the lock is alive: a number of a process may be another's by then.
    with open(folder / "lock", "w") as lock, open(folder / "log", "ab") as log:
        fcntl.flock(lock, fcntl.LOCK_EX)
        env = [f"--env={pair}" for pair in options.env]
        env += [f"--secret={name}" for name in options.secret]
        own = [sys.executable, "-I", __file__, "supervise"]
        own += [f"--commit={options.commit}", f"--attempt={options.attempt}", *env]
        subprocess.Popen(
            [*own, f"--lock={lock.fileno()}", "--", *options.arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[lock.fileno()],
            start_new_session=True,
        )
    return {"attempt": options.attempt, "started": True}


def supervise(options: argparse.Namespace) -> None:
    """Runs the training as a child and writes its exit code into a file when it ends."""
    folder = HOME / "attempts" / str(options.attempt)
    program = HOME / options.commit / "env/bin/grpojax"
    kept = json.loads(SECRETS.read_text()) if options.secret else {}
    secret = {name: kept[name] for name in options.secret}
    given = dict(pair.split("=", 1) for pair in options.env)
    try:
        child = subprocess.Popen(
            [str(program), *options.arguments],
            cwd=HOME / options.commit / "source",
            env=os.environ | given | secret,
            pass_fds=[options.lock],
        )
    except OSError as error:
        print(error, file=sys.stderr, flush=True)
        put(folder / "exit", 127)
        return
    put(folder / "pid", child.pid)
    code = child.wait()
    put(folder / "exit", 128 - code if code < 0 else code)


def poll(options: argparse.Namespace) -> dict:
    """How an attempt stands: its exit code, whether it is alive, the newest step on this host."""
    folder = HOME / "attempts" / str(options.attempt)
    code, alive = exit_code(folder), is_alive(folder)
    said = {"attempt": options.attempt, "exit": code, "alive": alive, "step": -1}
    if options.workdir:
        seals = Path(options.workdir, "checkpoints").glob("*/manifest.txt")
        steps = [int(seal.parent.name) for seal in seals if seal.parent.name.isdigit()]
        said["step"] = max(steps, default=-1)
    if code not in (None, 0, 75) or (code is None and not alive):
        path = folder / "log"
        size = path.stat().st_size if path.exists() else 0
        said["tail"] = read_log(path, max(0, size - TAIL), TAIL)
    return said


def log(options: argparse.Namespace) -> dict:
    """The log of an attempt from a byte on, and where the next call goes on."""
    attempt = options.attempt or newest_attempt()
    folder = HOME / "attempts" / str(attempt)
    code = exit_code(folder)  # first, so that a log that ended is read to its end
    path = folder / "log"
    size = path.stat().st_size if path.exists() else 0
    end = min(size, options.offset + CHUNK)
    text = read_log(path, options.offset, end - options.offset) if end > options.offset else ""
    said = {"attempt": attempt, "offset": max(end, options.offset), "text": text}
    return said | {"end": end == size, "over": code is not None and end == size}


def stop(options: argparse.Namespace) -> dict:
    """Asks an attempt to save and end (SIGTERM), and kills it if it has not by `grace` seconds."""
    attempt = options.attempt or newest_attempt()
    folder = HOME / "attempts" / str(attempt)
    late = time.monotonic() + options.grace
    asked = False
    while is_alive(folder) and time.monotonic() < late:
        if not asked and (folder / "pid").exists():  # written when the training has begun
            with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(int((folder / "pid").read_text()), signal.SIGTERM)
            asked = True
        time.sleep(0.02)
    if is_alive(folder) and (folder / "pid").exists():
        with contextlib.suppress(ProcessLookupError):
            group = os.getpgid(int((folder / "pid").read_text()))  # with supervisor and children
            os.killpg(group, signal.SIGKILL)
        put(folder / "exit", 128 + signal.SIGKILL)
    return {"attempt": attempt, "exit": exit_code(folder)}


def newest_attempt() -> int:
    """The number of the newest attempt, 0 if there was none."""
    return max((int(path.name) for path in (HOME / "attempts").glob("[0-9]*")), default=0)


def exit_code(folder: Path) -> "int | None":
    """The exit code of an attempt that has ended, None before."""
    path = folder / "exit"
    return int(path.read_text()) if path.exists() else None


def is_alive(folder: Path) -> bool:
    """Whether the supervisor of an attempt or its training lives."""
    try:
        with open(folder / "lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def read_log(path: Path, offset: int, size: int) -> str:
    """A part of a log, without the bytes that steer a terminal."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(offset)
        text = file.read(size).decode(errors="replace")
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def put(path: Path, value: int) -> None:
    """Writes a number so that no reader sees half of it."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(f"{value}\n")
    new.replace(path)


COMMANDS = {
    "setup": setup,
    "secrets": secrets,
    "start": start,
    "supervise": supervise,
    "poll": poll,
    "log": log,
    "stop": stop,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
