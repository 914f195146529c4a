"""The launcher against a fake Google Cloud: slices taken away, broken calls, a killed launcher."""

import pytest

from tests.launcher_world import PAIR, SPOT, WORKDIR, repository, world  # noqa: F401

DONE = {"steps": 10, "exit": 0}
WAITS = {"steps": 10, "hang": True, "exit": 0}  # until it is told to end


def steps(world):
    """The checkpoints of the run directory."""
    return sorted(int(p.name) for p in (world.folder / "gs/bucket/runs/tiny/checkpoints").iterdir())


@pytest.mark.parametrize("event", ["ssh poll", "ssh start", "ssh setup", "tpu-vm scp"])
def test_preempted_in_any_phase_the_run_goes_on_on_another_slice(world, event):
    world.script(trainings=[WAITS, DONE])
    world.launch()
    nth = len(world.calls(event)) + 1
    rules = [(event, nth, "preempt")]
    if event != "ssh poll":  # what comes before it happens again only after a preemption
        rules = [("ssh poll", 2, "preempt"), *rules]
    world.script(rules)
    assert world.run("babysit", "pod") == 0, world.out + world.err
    assert len(world.calls("queued-resources create")) == 2 + (event != "ssh poll")
    assert world.left() == [] and max(steps(world)) >= 20


def test_a_request_that_fails_in_the_queue_is_made_again(world):
    world.script(trainings=[WAITS, DONE])
    world.launch()
    looks = len(world.calls("queued-resources describe"))
    # Looks: going on, after the broken call, two of the deletion, three in the queue.
    rules = [("ssh poll", 1, "preempt"), ("queued-resources describe", looks + 7, "queue:FAILED")]
    world.script(rules, waits=9)
    assert world.run("babysit", "pod") == 0, world.out
    assert len(world.calls("queued-resources create")) == 3


def test_a_stuck_queue_ends_it_after_the_hours_given(world):
    world.script(trainings=[WAITS])
    world.launch()
    world.script([("ssh poll", 1, "preempt")], waits=10**6)
    assert world.run("babysit", "pod", "--queue-hours", "0.2") == 1
    assert "queue_hours: no slice after" in world.out
    assert world.left() == []


def test_without_quota_three_times_it_gives_up(world):
    world.script(trainings=[{"steps": 0, "hang": True, "exit": 0}])
    world.launch()
    world.script([("ssh poll", 1, "preempt"), ("queued-resources create", 0, "quota")])
    assert world.run("babysit", "pod") == 1
    assert "3 attempts in a row reached no new step; the last: gcloud compute tpus" in world.out
    assert "Quota limit" in world.out


def test_without_capacity_once_it_asks_again(world):
    world.script(trainings=[WAITS, DONE])
    world.launch()
    world.script([("ssh poll", 1, "preempt"), ("queued-resources create", 2, "stockout")])
    assert world.run("babysit", "pod") == 0
    assert len(world.calls("queued-resources create")) == 3


def test_the_right_to_create_withdrawn_ends_it_at_once(world):
    world.script(trainings=[WAITS])
    world.launch()
    world.script([("ssh poll", 1, "preempt"), ("queued-resources create", 2, "denied")])
    assert world.run("babysit", "pod") == 2
    assert "PERMISSION_DENIED" in world.out


def test_connections_that_break_are_tried_again(world):
    world.script(trainings=[{"steps": 10, "exit": 0}])
    world.launch()
    world.script([("ssh poll", n, "255") for n in (1, 2, 3)])
    assert world.run("babysit", "pod") == 0
    assert "0 of 1 workers answered; ssh ended with exit code 255" in world.out
    assert len(world.calls("queued-resources create")) == 1


def test_a_slice_that_never_answers_is_replaced(world):
    world.script(trainings=[WAITS, DONE])
    world.launch()
    world.script([("ssh poll", n, "255") for n in range(1, 7)])
    assert world.run("babysit", "pod") == 0
    assert "no answer 6 times in a row" in world.out
    assert len(world.calls("queued-resources create")) == 2


def test_a_hanging_connection_is_killed_and_tried_again(world):
    world.launch()
    world.script([("ssh poll", 1, "hang")])
    world.hangs = "poll --attempt"
    assert world.run("babysit", "pod") == 0
    assert "ssh gave no answer in" in world.out


def test_a_node_that_vanished_is_replaced(world):
    world.script(trainings=[WAITS, DONE])
    world.launch()
    world.script([("ssh poll", 2, "vanish")])
    assert world.run("babysit", "pod") == 0
    assert "the slice was taken: no node" in world.out
    assert len(world.calls("queued-resources create")) == 2


def test_one_worker_that_does_not_answer_starts_later_and_the_other_once(world):
    world.script([("ssh start", 1, "worker:1")])
    assert world.run("create", "pod", *PAIR) == 0
    assert world.run("setup", "pod") == 0
    assert world.run("run", "pod", "configs/tiny.py", "--workdir", WORKDIR) == 1
    assert "1 of 2 workers answered" in world.err
    assert world.run("babysit", "pod") == 0
    assert sorted(row["worker"] for row in world.trainings()) == ["0", "1"]


def test_a_start_whose_answer_was_lost_is_no_second_start(world):
    world.script([("ssh start", 1, "lost")])
    assert world.run("create", "pod", *SPOT) == 0
    assert world.run("setup", "pod") == 0
    world.run("run", "pod", "configs/tiny.py", "--workdir", WORKDIR)
    assert world.run("babysit", "pod") == 0
    assert len(world.trainings()) == 1


def test_a_launcher_that_was_killed_goes_on_with_the_same_attempt(world, monkeypatch):
    world.script(trainings=[WAITS])
    world.launch()
    with monkeypatch.context() as patched:
        patched.setattr(world, "sleep", interrupt)
        assert world.run("babysit", "pod") == 130
    assert world.left() == ["pod", "pod"]
    assert world.run("babysit", "pod", "--max-hours", "0.1") == 1
    assert world.state()["attempt"] == 1
    assert len(world.trainings()) == 1


@pytest.mark.parametrize(
    "event", ["queued-resources create", "ssh start", "ssh setup", "tpu-vm scp"]
)
def test_a_launcher_killed_during_a_call_goes_on_from_there(world, monkeypatch, event):
    world.script(trainings=[WAITS, DONE])
    world.launch()
    world.script([("ssh poll", 2, "preempt")])
    real = world.call

    def call(argv, stdin, cwd, limit):
        answer = real(argv, stdin, cwd, limit)
        if len(world.calls(event)) == 2:
            raise KeyboardInterrupt
        return answer

    with monkeypatch.context() as patched:
        patched.setattr(world, "call", call)
        assert world.run("babysit", "pod") == 130
    if event == "ssh start":  # so that `stop` knows of it
        assert world.state()["phase"] == "starting"
    assert world.run("babysit", "pod") == 0, world.out
    assert len(world.calls("queued-resources create")) == 2
    assert len(world.trainings()) == 2 and world.left() == []


def interrupt(seconds):
    raise KeyboardInterrupt
