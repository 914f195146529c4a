"""No text of a user's leaves its place: it is refused in one line, or stays one argument."""

import json
import os
import subprocess

import pytest

from grpojax.parsing import HELP
from tests.hostile_texts import TEXTS
from tests.launcher_world import PLACE, SPOT, WORKDIR, World, git, repository, world  # noqa: F401
from tools.tpu import remote, texts
from tools.tpu.gcloud import Answer
from tools.tpu.gcloud import World as Outside
from tools.tpu.state import State

CREATE = ["--slice", "v6e-8", *PLACE]
# Where a text is part of a command of gcloud's or git's, by the flag or place.
PLACES = {
    "name": lambda text: ["create", text, *CREATE],
    "slice": lambda text: ["create", "pod", f"--slice={text}", *PLACE],
    "project": lambda text: ["create", "pod", *CREATE, f"--project={text}"],
    "zone": lambda text: ["create", "pod", *CREATE, f"--zone={text}"],
    "runtime_version": lambda text: ["create", "pod", *CREATE, f"--runtime-version={text}"],
    "commit": lambda text: ["setup", "pod", f"--commit={text}"],
    "config": lambda text: ["run", "pod", text, "--workdir", WORKDIR],
    "workdir": lambda text: ["run", "pod", "configs/tiny.py", f"--workdir={text}"],
    "env": lambda text: ["run", "pod", "configs/tiny.py", "--workdir", WORKDIR, f"--env={text}"],
    "secrets": lambda text: [
        *("run", "pod", "configs/tiny.py", "--workdir", WORKDIR, f"--secrets={text}")
    ],
}
# What is well formed there after all.
FINE = {("runtime_version", ""), ("runtime_version", "1abc"), ("env", "a=b"), ("secrets", "A")} | {
    ("runtime_version", "a" * 41),
    ("secrets", "under_score"),
    ("secrets", "a" * 41),
}
HELD = State(
    name="pod",
    slice="v6e-8",
    project="my-project",
    zone="us-west4-a",
    spot=False,
    queued=True,
    runtime_version="",
    commit="c" * 40,
    config="configs/tiny.py",
    workdir=WORKDIR,
    phase="prepared",
    workers=("0",),
)
each = pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text)[:24].encode().hex())


def test_there_are_more_than_enough():
    assert len(set(TEXTS)) == len(TEXTS) >= 67


@each
def test_where_it_would_be_part_of_a_command_it_is_refused_before_anything_is_made(world, text):
    (world.folder / "state").mkdir()
    record = json.dumps(vars(HELD))
    (world.folder / "state/pod.json").write_text(record)
    for place, arguments in PLACES.items():
        if (place, text) in FINE or text in HELP:
            continue
        absolute = place == "workdir" and text.startswith("/")  # may be any, but not lead up
        assert world.run(*arguments(f"{text}/.." if absolute else text)) == 2, (
            place,
            world.out,
            world.err,
        )
        assert world.err.startswith("error: ") and world.err.count("\n") == 1, place
        assert world.err[:-1].isprintable()
    assert world.calls() == []
    assert (world.folder / "state/pod.json").read_text() == record


@each
def test_where_it_is_carried_it_is_one_argument_of_the_real_shell(tmp_path, text):
    """What ssh would be given is run by sh, where `python3` writes down its arguments."""
    stub = tmp_path / "python3"
    stub.write_text(
        f'#!/bin/sh\nprintf "%s\\0" "$@" > {tmp_path}/seen\necho \'{{"grpojax": "x"}}\'\n'
    )
    stub.chmod(0o755)
    inside = tmp_path / "home"
    inside.mkdir()

    def call(argv, stdin, cwd, limit):
        (command,) = (word[10:] for word in argv if word.startswith("--command="))
        own = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(inside)}
        done = subprocess.run(["sh", "-c", command], cwd=inside, env=own, capture_output=True)
        return Answer(code=done.returncode, out=done.stdout.decode(), err="")

    outside = Outside(call=call, sleep=pytest.fail, now=float, say=pytest.fail)
    state = State(**vars(HELD) | {"env": (f"X={text}",), "arguments": (text, f"--x={text}")})
    try:
        texts.require_carried("a flag of grpojax", text)
        texts.require_variables(state.env, ())
        remote.start(outside, state)
    except ValueError as error:
        assert "\0" in text or len(text) > texts.LONGEST // 2, error
        return
    seen = (tmp_path / "seen").read_bytes().split(b"\0")[:-1]
    own = ["start", f"--commit={state.commit}", "--attempt=0", f"--env=X={text}", "--"]
    told = ["train", "configs/tiny.py", "--workdir", WORKDIR, text, f"--x={text}"]
    assert seen == [os.fsencode(w) for w in ["-I", "grpojax_worker.py", *own, *told]]
    assert list(inside.iterdir()) == []


def test_all_of_them_reach_the_training_as_they_were(world):
    fit = [text for text in TEXTS if "\0" not in text and len(text) < 1_000]
    env = [f"X{i}={text}" for i, text in enumerate(fit)]
    world.launch(further=("--env", *env, "--", *fit))
    world.settle()
    (row,) = world.trainings()
    assert row["argv"] == ["train", "configs/tiny.py", "--workdir", WORKDIR, *fit]
    assert [row["env"][f"X{i}"] for i in range(len(fit))] == fit
    assert not canaries(world)


def test_a_config_and_a_workdir_may_have_odd_names(world, tmp_path, monkeypatch, repository):
    clone = tmp_path / "it's a clone; touch canary"
    git(tmp_path, "clone", "--quiet", str(repository), str(clone))
    monkeypatch.chdir(clone)
    config = "configs/$(touch canary) `x` 'y\" \n.py"
    (clone / config).write_text("")
    git(clone, "add", ".")
    git(clone, "commit", "--quiet", "--message=odd")
    workdir = f"{tmp_path}/disk/'; touch canary; $(touch canary)"
    on_demand = [word for word in SPOT if word != "--spot"]
    assert world.run("create", "pod", *on_demand) == 0
    assert world.run("setup", "pod") == 0
    assert world.run("run", "pod", config, "--workdir", workdir) == 0, world.err
    assert world.run("babysit", "pod", "--keep") == 0
    (row,) = world.trainings()
    assert row["argv"][:4] == ["train", config, "--workdir", workdir]
    assert not canaries(world)


def canaries(world: World) -> list:
    """Files that only a text that got out would make."""
    return [p for p in world.folder.rglob("canary") if p.parent.name != "disk"]
