"""The launcher against a fake Google Cloud: a commit is installed, started and looked at."""

import ast
import json
import stat
import sys
from pathlib import Path

import pytest

from tests.launcher_world import (  # noqa: F401
    PAIR,
    PLACE,
    SPOT,
    WORKDIR,
    git,
    make_repository,
    repository,
    world,
)
from tools.tpu import worker

JOB = ["run", "pod", "configs/tiny.py", "--workdir", WORKDIR]
WAITS = {"steps": 10, "hang": True, "exit": 0}


def test_a_dirty_tree_is_refused_and_allowed_ships_the_commit(world, tmp_path, monkeypatch):
    clone = make_repository(tmp_path / "clone")
    monkeypatch.chdir(clone)
    assert world.run("create", "pod", *SPOT) == 0
    (clone / "configs/tiny.py").write_text("changed = True\n")
    assert world.run("setup", "pod") == 2
    assert "1 files differ, as configs/tiny.py: commit them" in world.err
    assert world.calls("tpu-vm scp") == []
    assert world.run("setup", "pod", "--allow-dirty") == 0
    (shipped,) = world.folder.glob("homes/pod/0/grpojax/*/source/configs/tiny.py")
    assert shipped.read_text() == "def get_config(): ...\n"
    assert git(clone, "rev-parse", "HEAD") == world.state()["commit"]


def test_any_commit_may_be_named_and_must_hold_grpojax(world, tmp_path, monkeypatch):
    clone = make_repository(tmp_path / "clone")
    monkeypatch.chdir(clone)
    assert world.run("create", "pod", *SPOT) == 0
    git(clone, "rm", "-r", "--quiet", "grpojax")
    git(clone, "commit", "--quiet", "--message=second")
    assert world.run("setup", "pod") == 2
    assert "must hold grpojax" in world.err
    assert world.run("setup", "pod", "--commit", "HEAD~1") == 0


def test_python_3_11_and_the_extras_are_installed_under_the_constraints(world):
    assert world.run("create", "pod", *PAIR) == 0
    assert world.run("setup", "pod") == 0
    rows = [json.loads(row) for row in (world.folder / "installs.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 2
    assert rows[0][:4] == ["venv", "--quiet", "--python", "3.11"]
    assert rows[1][-3] == "--constraint" and rows[1][-2].endswith("/source/constraints.txt")
    assert rows[1][-1].endswith("/source[tpu,gcs]")
    assert world.run("setup", "pod") == 0  # again: all of it is there
    assert len((world.folder / "installs.jsonl").read_text().splitlines()) == 2 * 2


def test_setup_says_what_failed_on_which_worker(world):
    world.script(broken_install=True)
    assert world.run("create", "pod", *SPOT) == 0
    assert world.run("setup", "pod") == 1
    assert "uv pip install ended with exit code 1: error: No solution found" in world.err


@pytest.mark.parametrize("event", ["tpu-vm scp", "ssh setup", "ssh start"])
def test_preempted_under_a_command_by_hand_it_is_said_and_babysit_goes_on(world, event):
    world.script([(event, 1, "preempt")])
    assert world.run("create", "pod", *SPOT) == 0
    if world.run("setup", "pod") == 0:
        assert world.run(*JOB) == 1
    assert "pod was taken (SUSPENDED); `babysit` brings another and goes on" in world.err
    if event != "ssh start":  # the job is put on record all the same
        assert world.run(*JOB) == 1
        assert "record of pod says lost; `create` or `babysit` brings it" in world.err
    assert world.run("babysit", "pod") == 0
    assert len(world.trainings()) == 1


def test_a_run_needs_a_config_of_the_commit(world):
    assert world.run("create", "pod", *SPOT) == 0
    assert world.run(*JOB) == 2
    assert "`setup pod` installs it" in world.err
    assert world.run("setup", "pod") == 0
    assert world.run("run", "pod", "configs/absent.py", "--workdir", WORKDIR) == 2
    assert "config 'configs/absent.py' must be in commit" in world.err
    assert world.trainings() == []


@pytest.mark.parametrize("kind", [SPOT, PAIR[:2] + PLACE], ids=["spot", "two hosts"])
def test_a_run_directory_on_a_disk_that_goes_or_is_not_shared_is_refused(world, kind):
    assert world.run("create", "pod", *kind) == 0
    assert world.run("setup", "pod") == 0
    assert world.run("run", "pod", "configs/tiny.py", "--workdir", "/runs/tiny") == 2
    assert "workdir must be gs://BUCKET/PATH on a spot slice" in world.err


def test_one_run_at_a_time(world):
    world.script(trainings=[WAITS])
    world.launch()
    for command in (JOB, ["setup", "pod"]):
        assert world.run(*command) == 2
        assert "attempt 1 runs on pod; `stop pod` ends it" in world.err


def test_after_a_run_that_has_ended_another_may_start(world):
    world.launch()
    assert world.run(*JOB) == 0
    assert "attempt 1 has ended: exit code 0" in world.out
    assert world.state()["attempt"] == 2 and len(world.trainings()) == 2


def test_the_program_of_the_workers_needs_python_3_10_and_nothing_else():
    tree = ast.parse(Path(worker.__file__).read_text(), feature_version=(3, 10))
    names = [alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert set(names) <= sys.stdlib_module_names


def test_the_run_directory_is_named_once(world):
    assert world.run("create", "pod", *SPOT) == 0
    assert world.run("setup", "pod") == 0
    for flags in (["--workdir", "x"], ["--workdir=x"]):
        assert world.run(*JOB, "--", *flags) == 2
        assert "--workdir must stand before --" in world.err


def test_secrets_are_on_no_line_no_disk_but_one_and_in_no_log(world, monkeypatch):
    secret = "hf_the_secret_of_the_test"
    monkeypatch.setenv("HF_TOKEN", secret)
    world.launch(*PAIR, further=("--secrets", "HF_TOKEN", "--env", "MODE=x"))
    said = world.out + world.err
    assert world.run("status", "pod") == 0
    assert world.run("logs", "pod") == 0
    said += world.out + world.err
    assert [row["env"]["HF_TOKEN"] for row in world.trainings()] == [secret] * 2
    assert [row["env"]["MODE"] for row in world.trainings()] == ["x"] * 2
    for call in world.calls():
        assert secret not in json.dumps(call["argv"])
        assert (secret in call["stdin"]) == (call["event"] == "ssh secrets")
    assert secret not in said
    (world.folder / "calls.jsonl").unlink()  # what the fakes wrote down themselves
    (world.folder / "trainings.jsonl").unlink()
    files = [path for path in world.folder.rglob("*") if path.is_file()]
    holding = [path for path in files if secret.encode() in path.read_bytes()]
    assert sorted(str(path.relative_to(world.folder)) for path in holding) == [
        "homes/pod/0/grpojax/secrets.json",
        "homes/pod/1/grpojax/secrets.json",
    ]
    assert {stat.S_IMODE(path.stat().st_mode) for path in holding} == {0o600}


def test_a_secret_that_is_not_set_is_missed_before_anything_is_done(world, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert world.run("create", "pod", *SPOT) == 0
    assert world.run("setup", "pod") == 0
    assert world.run(*JOB, "--secrets", "HF_TOKEN") == 2
    assert world.err == "error: secret HF_TOKEN must be set in this shell, is not\n"
    assert world.run(*JOB, "--env", "HF_TOKEN=abc") == 2
    assert "looks like a secret" in world.err and "abc" not in world.err


def test_status_shows_slice_attempt_and_step(world):
    world.script(trainings=[WAITS])
    world.launch(*PAIR)
    assert world.run("status", "pod") == 0
    lines = world.out.splitlines()
    assert lines[0] == "pod: v5p-16 in us-west4-a, READY; record: running"
    assert [line.startswith("attempt 1 runs on ") for line in lines[1:3]] == [True, True]
    assert lines[3] == f"newest step 10 in {WORKDIR}"


def test_logs_are_followed_to_the_end_over_a_broken_connection(world):
    world.launch()
    world.script([("ssh log", 1, "hang"), ("ssh log", 2, "255")])
    world.hangs = "log --attempt"
    assert world.run("logs", "pod", "--follow") == 0
    assert world.out.count("training 1 on worker 0") == 1
    assert "[0 of 1 workers answered; ssh" in world.out


def test_logs_of_a_slice_that_was_taken_say_so(world):
    world.script(trainings=[WAITS])
    world.launch()
    world.script([("ssh log", 1, "preempt")])
    assert world.run("logs", "pod") == 1
    assert "pod was taken (SUSPENDED)" in world.err
    assert world.run("logs", "pod") == 1
    assert "logs needs a slice, and the record of pod says lost" in world.err


def test_a_log_cannot_steer_the_terminal(world):
    world.launch()
    assert world.run("logs", "pod") == 0
    assert "\x1b" not in world.out and "\N{REPLACEMENT CHARACTER}" in world.out


def test_on_compute_engine_every_worker_is_called_by_its_name(world):
    kind = ["--slice", "tpu7x-16", "--project", "my-project", "--zone", "us-central1-c", "--spot"]
    world.script(trainings=[WAITS, {"steps": 10, "exit": 0}])
    world.launch(*kind)
    world.script([("ssh poll", 3, "preempt")])
    assert world.run("babysit", "pod") == 0, world.out
    assert sorted(row["worker"] for row in world.trainings()) == ["0", "0", "1", "1"]
    assert len(world.calls("managed create")) == 2 and world.left() == []


# A case a line: the arguments, a part of the one line that answers.
WRONG = [
    ([], "a command is needed; there are plan, create,"),
    (["creat"], "unknown command creat (did you mean create?)"),
    (["create", "pod", "--slice", "v5e-8", *PLACE], "slice must be one of v4-N, v5litepod-N"),
    (["create", "pod", "--slice", "v6e-9", *PLACE], "chips of 1, 4, 8, 16, 32, 64, 128, 256, got"),
    (["create", "pod", "--slice", "v6e-8", *PLACE[:2]], "create needs --zone"),
    (["create", "pod", *SPOT, "--zone", "us-west4"], "a region has no letter), got 'us-west4'"),
    (["create", "pod", *SPOT, "--project", "My Project"], "project must be a project id"),
    (["create", "Pod", *SPOT], "name must be 1 to 40 of a-z"),
    (["create", "pod", *SPOT, "--queue-hours", "0"], "queue_hours must be above 0"),
    (["create", "pod", *SPOT, "--spto"], "(did you mean --spot?)"),
    (["status", "nobody"], "no slice called nobody in"),
    (["plan", "v5p-16", "--price-per-chip-hour", "-1"], "price_per_chip_hour must be above 0"),
    (["ls", "--project", "my-project"], "zone must be a zone"),
    (["babysit", "pod"], "pod has nothing to run; `run pod CONFIG` does"),
    (["babysit", "pod", "--max-cost", "5"], "pod has nothing to run"),
    (["logs", "pod", "--worker", "-1"], "worker must be 0 or more"),
    (["logs", "pod", "--worker", "1"], "worker must be below 1, got 1"),
]


@pytest.mark.parametrize("arguments, part", WRONG, ids=[" ".join(row) for row, _ in WRONG])
def test_wrong_input_is_one_line_and_exit_code_2(world, arguments, part):
    if arguments[:1] in (["babysit"], ["logs"]):
        assert world.run("create", "pod", *SPOT) == 0
    before = len(world.calls())
    assert world.run(*arguments) == 2
    assert part in world.err and world.err.count("\n") == 1
    assert len(world.calls()) == before


LIMITS = [
    (["--max-cost", "5"], "max_cost needs --price-per-chip-hour"),
    (["--max-hours", "0"], "max_hours must be above 0, got 0"),
    (["--max-cost", "nan", "--price-per-chip-hour", "1"], "max_cost must be above 0, got nan"),
]


def test_a_limit_that_means_nothing_is_refused(world):
    world.launch()
    for flags, part in LIMITS:
        assert world.run("babysit", "pod", *flags) == 2
        assert part in world.err and world.left() == ["pod", "pod"]


def test_what_a_slice_s_name_means(world):
    assert world.run("plan", "v5p-16", "--config", "configs/tiny.py") == 0
    lines = dict(line.split("  ", 1) for line in world.out.splitlines()[1:-1])
    found = {key: value.strip() for key, value in lines.items()}
    assert found["topology"] == "v5p:2x2x2" and found["hosts"] == "2"
    assert (found["chips"], found["cores"]) == ("8", "16")
    assert found["price per hour"] == "unknown; give --price-per-chip-hour"
    assert world.out.splitlines()[-1] == "grpojax plan configs/tiny.py --topology v5p:2x2x2"


@pytest.mark.parametrize(
    "name, topology, chips, hosts",
    [
        ("v4-8", "v4:2x2x1", 4, 1),
        ("v4-32", "v4:2x2x4", 16, 4),
        ("v5litepod-1", "v5e:1x1", 1, 1),
        ("v5litepod-8", "v5e:2x4", 8, 1),
        ("v5litepod-16", "v5e:4x4", 16, 4),
        ("v5litepod-256", "v5e:16x16", 256, 64),
        ("v5p-128", "v5p:4x4x4", 64, 16),
        ("v5p-256", "v5p:4x4x8", 128, 32),
        ("v6e-4", "v6e:2x2", 4, 1),
        ("v6e-128", "v6e:8x16", 128, 32),
        ("tpu7x-8", "tpu7x:2x2x1", 4, 1),
        ("tpu7x-128", "tpu7x:4x4x4", 64, 16),
    ],
)
def test_topologies_chips_and_hosts(world, name, topology, chips, hosts):
    assert world.run("plan", name) == 0
    rows = [line.split()[-1] for line in world.out.splitlines()]
    assert rows[1:3] == [topology, str(chips)] and rows[4] == str(hosts)
