"""docs/pods.md is true: its transcript is what the launcher prints, and what it then calls."""

import re
import shlex
from pathlib import Path

import pytest

from tests.launcher_world import PAIR, WORKDIR, git, make_repository, repository, world  # noqa: F401

DOCS = (Path(__file__).parent.parent / "docs/pods.md").read_text()
SECTION = DOCS.partition("## From nothing to a running pod\n")[2].partition("\n## ")[0]
CONFIG = "configs/quickstart.py"


def transcript():
    """The commands shown, each with what it prints."""
    blocks = re.findall(r"^```console\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)
    parts = re.split(r"^\$ ", "".join(blocks), flags=re.MULTILINE)[1:]
    for part in parts:
        command, _, printed = part.partition("\n")
        yield shlex.split(command.replace("\\\n", ""))[3:], printed


def called(text):
    """The calls of gcloud in what a rehearsal printed."""
    lines = [line.partition("  # secrets")[0] for line in text.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("gcloud ")]


@pytest.fixture
def clone(tmp_path, monkeypatch):
    folder = make_repository(tmp_path / "clone")
    (folder / CONFIG).write_text("")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message=config")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_TOKEN", "x")
    return folder


def test_the_transcript_is_what_the_commands_print_and_then_call(world, clone):
    world.script(trainings=[{"steps": 10, "hang": True, "exit": 0}, {"steps": 10, "exit": 0}])
    commit, shown = git(clone, "rev-parse", "HEAD"), []
    for arguments, printed in transcript():
        shown.append(arguments[0])
        assert world.run(*arguments) == 0, world.err
        assert world.out.replace(commit, "COMMIT") == printed, " ".join(arguments)
        if "--dry-run" not in arguments:
            continue
        before = world.calls()
        assert world.run(*(word for word in arguments if word != "--dry-run")) == 0, world.err
        assert [call["argv"] for call in world.calls()[len(before) :]] == called(
            printed.replace("COMMIT", commit)
        )
    assert shown == ["plan", "create", "setup", "run", "logs", "stop", "babysit", "delete"]
    assert world.left() == []


def test_the_rehearsal_on_compute_engine_is_what_is_called_too(world, clone):
    kind = ["--slice", "tpu7x-16", "--project", "my-project", "--zone", "us-central1-c", "--spot"]
    for arguments in (
        ["create", "pod", *kind],
        ["setup", "pod"],
        ["run", "pod", CONFIG, "--workdir", WORKDIR, "--", "--steps", "5"],
        ["babysit", "pod"],
    ):
        assert world.run(*arguments[:2], "--dry-run", *arguments[2:]) == 0, world.err
        rehearsed, before = called(world.out), len(world.calls())
        assert world.run(*arguments) == 0, world.err
        assert [call["argv"] for call in world.calls()[before:]] == rehearsed
    assert world.left() == []


def test_a_rehearsal_runs_and_records_nothing(world, clone):
    assert world.run("create", "pod", *PAIR, "--dry-run") == 0
    assert world.calls() == [] and not (world.folder / "state").exists()


def test_every_flag_of_the_page_exists(world):
    for name in ("create", "setup", "run", "babysit", "logs", "ls", "cost", "plan"):
        assert world.run(name, "--help") == 0
        world.known = getattr(world, "known", "") + world.out
    ours = re.findall(r"`(--[a-z-]+)", SECTION)
    assert ours and set(ours) <= set(re.findall(r"--[a-z-]+", world.known))
