"""The launcher's world in tests: a fake Google Cloud, a clone, and a clock that does not wait."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools.tpu import worker
from tools.tpu.__main__ import COMMANDS, main
from tools.tpu.gcloud import run_process

HERE = Path(__file__).parent
PLACE = ["--project", "my-project", "--zone", "us-west4-a"]
SPOT = ["--slice", "v5litepod-8", *PLACE, "--spot"]  # one host
PAIR = ["--slice", "v5p-16", *PLACE, "--spot"]  # two hosts
WORKDIR = "gs://bucket/runs/tiny"
FILES = {
    "pyproject.toml": "[project]\n",
    "constraints.txt": "jax==0.10.2\n",
    "grpojax/__main__.py": "\n",
    "configs/tiny.py": "def get_config(): ...\n",
}


@pytest.fixture(scope="session")
def repository(tmp_path_factory) -> Path:
    """A clone as a user has it, with one commit and a clean tree."""
    return make_repository(tmp_path_factory.mktemp("clone"))


@pytest.fixture
def world(tmp_path, monkeypatch, capsys, repository):
    """The launcher's world; the current folder is the clone."""
    found = World(tmp_path, capsys, repository.with_suffix(".prepared"))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setenv("FAKE_CLOUD", str(tmp_path))
    monkeypatch.chdir(repository)
    yield found
    found.close()


def make_repository(folder: Path) -> Path:
    """The same, in `folder`."""
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message=first")
    return folder


def git(folder: Path, *arguments: str) -> str:
    own = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *own, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


class World:
    """A fake cloud in `folder`; `run` calls the launcher in it."""

    def __init__(self, folder: Path, capsys, prepared: Path):
        self.folder, self.capsys, self.clock = folder, capsys, 1_000_000_000.0
        self.prepared = prepared  # copies of worlds with a slice that has been set up, by its kind
        self.sleeps = 0
        self.hangs = ""  # part of the next call that will hang, and is not waited for
        self.cloud = {"queued": {}, "nodes": {}, "things": [], "counts": {}, "rules": []}
        self.cloud |= {"waits": 0, "leave_node": False, "broken_install": False}
        self.cloud["trainings"] = [{"steps": 10, "exit": 0}]
        own = f'exec "{sys._base_executable}" -E -S "{HERE}'
        program(folder / "bin/gcloud", f'{own}/fake_gcloud.py" "$@"')
        pip = f'[ "$1" = -m ] && {own}/fake_worker.py" pip "$@"'
        program(folder / "worker_bin/python3", f'{pip}\nexec "{sys._base_executable}" -S "$@"')
        self.script()

    def script(self, rules=(), **changes) -> None:
        """What will go wrong, and whatever else differs from a cloud where all goes well."""
        path = self.folder / "cloud.json"
        if path.exists():
            self.cloud = json.loads(path.read_text())
        self.cloud |= {"rules": [list(rule) for rule in rules]} | changes
        path.write_text(json.dumps(self.cloud))
        (self.folder / "clock").write_text(str(self.clock))

    def run(self, *argv: str) -> int:
        """The launcher's exit code; `out` and `err` are what it printed."""
        state = (
            ["--state", str(self.folder / "state")]
            if argv and argv[0] in COMMANDS and argv[0] != "plan"
            else []
        )
        at = argv.index("--") if "--" in argv else len(argv)
        told = [*argv[:at], *state, *argv[at:]]
        code = main(told, call=self.call, sleep=self.sleep, now=self.now)
        self.out, self.err = self.capsys.readouterr()
        return code

    def launch(self, *kind: str, further: tuple[str, ...] = ()) -> None:
        """A slice called pod whose training has been started."""
        saved = self.prepared / "_".join(kind or SPOT)
        if saved.exists():
            scripted = ("rules", "trainings", "waits", "leave_node", "broken_install")
            changes = {name: self.cloud[name] for name in scripted}
            shutil.copytree(saved, self.folder, dirs_exist_ok=True)
            self.script(**changes)
        else:
            assert self.run("create", "pod", *(kind or SPOT)) == 0, self.err
            assert self.run("setup", "pod") == 0, self.err
            shutil.copytree(self.folder, saved)
        command = ["run", "pod", "configs/tiny.py", "--workdir", WORKDIR, *further]
        assert self.run(*command) == 0, self.err

    def call(self, argv, stdin, cwd, limit):
        hangs = bool(self.hangs) and self.hangs in " ".join(argv)
        self.hangs = "" if hangs else self.hangs
        answer = run_process(argv, stdin, cwd, 0.3 if hangs else limit)
        self.settle()
        return answer

    def now(self) -> float:
        return self.clock

    def sleep(self, seconds: float) -> None:
        """Lets time pass."""
        self.clock += seconds
        self.sleeps += 1
        assert self.sleeps < 150, "the launcher waits for ever"
        (self.folder / "clock").write_text(str(self.clock))

    def settle(self) -> None:
        """Waits until every training has come to where it ends or waits."""
        late = time.monotonic() + 20
        while any(not settled(folder) for folder in self.attempts()):
            assert time.monotonic() < late, "a training did not settle"
            time.sleep(0.005)

    def attempts(self) -> list[Path]:
        return list(self.folder.glob("homes/*/*/grpojax/attempts/*"))

    def calls(self, event: str = "") -> list[dict]:
        """The calls of gcloud so far, or those of one event."""
        path = self.folder / "calls.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [row for row in rows if not event or row["event"] == event]

    def trainings(self) -> list[dict]:
        """How the training was started, each time."""
        path = self.folder / "trainings.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def left(self) -> list[str]:
        """What is still in the cloud."""
        cloud = json.loads((self.folder / "cloud.json").read_text())
        return [*cloud["queued"], *cloud["nodes"], *cloud["things"]]

    def state(self, name: str = "pod") -> dict:
        return json.loads((self.folder / "state" / f"{name}.json").read_text())

    def close(self) -> None:
        """No training outlives its test."""
        for folder in self.attempts():
            while worker.is_alive(folder):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    os.killpg(os.getpgid(int((folder / "pid").read_text())), 9)
                time.sleep(0.005)


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def settled(folder: Path) -> bool:
    done = worker.exit_code(folder) is not None or (folder / "hangs").exists()
    return done or not worker.is_alive(folder)
