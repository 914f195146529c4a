"""The launcher against a fake Google Cloud: a run is kept going until it is done or hopeless."""

from tests.launcher_world import PAIR, SPOT, WORKDIR, repository, world  # noqa: F401
from tools.tpu import remote

DONE = {"steps": 10, "exit": 0}
WAITS = {"steps": 10, "hang": True, "exit": 0}  # until it is told to end


def steps(world):
    """The checkpoints of the run directory."""
    return sorted(int(p.name) for p in (world.folder / "gs/bucket/runs/tiny/checkpoints").iterdir())


def test_a_run_goes_from_nothing_to_done_and_leaves_nothing(world):
    world.launch()
    assert world.run("babysit", "pod") == 0
    assert "done after 1 attempts" in world.out
    assert world.left() == [] and steps(world) == [10]


def test_every_worker_runs_the_commit_with_the_same_arguments(world):
    world.launch(*PAIR, further=("--", "--grpo.beta", "0.04"))
    assert world.run("babysit", "pod") == 0
    first, second = sorted(world.trainings(), key=lambda row: row["worker"])
    assert (first["worker"], second["worker"]) == ("0", "1")
    for row in (first, second):
        told = ["train", "configs/tiny.py", "--workdir", WORKDIR, "--grpo.beta", "0.04"]
        assert row["argv"] == told
        assert row["cwd"].endswith("/source")


def test_75_goes_on_at_once(world):
    world.script(trainings=[{"steps": 5, "exit": 75}, {"steps": 5, "exit": 75}, DONE])
    world.launch()
    before = world.clock
    assert world.run("babysit", "pod") == 0
    assert len(world.trainings()) == 3 and steps(world) == [5, 10, 20]
    assert world.clock - before == 15  # of the deletion


def test_2_is_never_tried_again(world):
    world.script(trainings=[{"steps": 0, "exit": 2}])
    world.launch()
    assert world.run("babysit", "pod") == 2
    assert len(world.trainings()) == 1 and world.left() == []
    assert "training 1 on worker 0" in world.out and "\x1b" not in world.out  # the log's end


def test_a_crash_is_tried_again_after_a_pause_that_doubles(world):
    world.script(trainings=[{"exit": 1}, {"exit": 137}, DONE])
    world.launch()
    before = world.clock
    assert world.run("babysit", "pod") == 0
    assert len(world.trainings()) == 3
    assert world.clock - before == 30 + 60 + 15


def test_three_attempts_without_a_new_step_are_enough(world):
    world.script(trainings=[{"steps": 5, "exit": 1}, {"exit": 1}])
    world.launch()
    assert world.run("babysit", "pod") == 1
    assert len(world.trainings()) == 4
    assert "3 attempts in a row reached no new step; the last: exit code 1" in world.out
    assert "newest step 5" in world.out and world.left() == []


def test_75_without_a_new_step_ends_too(world):
    world.script(trainings=[{"exit": 75}])
    world.launch()
    assert world.run("babysit", "pod") == 1
    assert len(world.trainings()) == 3


def test_a_new_step_begins_the_count_again(world):
    crash, moves = {"exit": 1}, {"steps": 1, "exit": 1}
    world.script(trainings=[crash, crash, moves, crash, crash, DONE])
    world.launch()
    assert world.run("babysit", "pod") == 0
    assert len(world.trainings()) == 6


def test_a_step_that_cannot_be_read_is_not_taken_for_progress(world):
    world.script([("storage ls", 1, "error")], trainings=[{"exit": 1}])
    world.launch()
    assert world.run("babysit", "pod") == 1
    assert "the newest step is not known" in world.out and len(world.trainings()) == 3


def test_when_one_worker_crashes_the_others_are_stopped_and_all_start_again(world):
    lame = WAITS | {"workers": {"1": {"hang": False, "exit": 1}}}
    world.script(trainings=[lame, DONE])
    world.launch(*PAIR)
    assert world.run("babysit", "pod", "--keep") == 0
    assert [row["worker"] for row in world.trainings()].count("0") == 2
    assert "exit code 1; attempt 1, newest step 10" in world.out
    (ended,) = world.folder.glob("homes/pod/0/grpojax/attempts/1/exit")
    assert ended.read_text() == "75\n"  # before the next one began


def test_a_worker_that_ends_well_waits_for_the_others(world):
    late = {"steps": 10, "exit": 0, "workers": {"1": {"hang": True}}}
    world.script(trainings=[late, DONE])
    world.launch(*PAIR)
    assert world.run("babysit", "pod") == 0
    assert (
        "exit code 75; attempt 1, newest step 10" in world.out
    )  # of the one that had to be stopped


def test_a_training_killed_without_a_word_is_started_again(world):
    world.script(trainings=[WAITS, DONE])
    world.launch()
    world.script([("ssh poll", 2, "kill")])
    assert world.run("babysit", "pod") == 0
    assert "no exit code: it was killed; attempt 1, newest step 10" in world.out
    assert len(world.calls("queued-resources create")) == 1


def test_max_cost_stops_with_a_checkpoint_and_deletes(world):
    world.script(trainings=[WAITS])
    world.launch()
    # 8 chips at 3 are 24 an hour: by the look after 6 minutes it would be more than 2.
    assert world.run("babysit", "pod", "--max-cost", "2", "--price-per-chip-hour", "3") == 1
    assert "max_cost: 2.40 of 2 by the next look" in world.out
    assert len(world.calls("ssh stop")) == 1 and world.left() == []


def test_max_cost_counts_the_slices_before(world):
    world.script(trainings=[WAITS])
    world.launch()
    world.script([("ssh poll", 3, "preempt"), ("ssh poll", 5, "preempt")])
    assert world.run("babysit", "pod", "--max-cost", "2", "--price-per-chip-hour", "3") == 1
    assert "max_cost:" in world.out
    spans = world.state()["spans"]
    assert len(spans) == 3 and all(end for _, end in spans)


def test_max_hours_stops_and_deletes(world):
    world.script(trainings=[WAITS])
    world.launch()
    assert world.run("babysit", "pod", "--max-hours", "0.1") == 1
    assert "max_hours: 0.12 of 0.1 by the next look" in world.out
    assert world.left() == []


def test_what_does_not_end_when_asked_is_killed(world, monkeypatch):
    monkeypatch.setattr(remote, "GRACE", 0.2)
    world.script(trainings=[WAITS | {"hang": "deaf"}])
    world.launch()
    world.sleep(1)
    assert world.run("stop", "pod") == 0
    assert [path.read_text() for path in world.folder.glob("homes/**/exit")] == ["137\n"]


def test_a_stopped_run_goes_on_later(world):
    world.script(trainings=[WAITS, DONE])
    world.launch()
    world.sleep(1)
    assert world.run("stop", "pod") == 0
    assert world.run("stop", "pod") == 2
    assert "pod runs nothing" in world.err
    assert world.run("babysit", "pod") == 0
    assert steps(world) == [10, 20]


def test_two_launchers_do_not_work_on_one_slice(world, monkeypatch):
    world.script(trainings=[WAITS])
    world.launch()
    codes = []

    def second(seconds):
        codes.append(world.run("babysit", "pod"))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(world, "sleep", second)
        assert world.run("babysit", "pod") == 130
    assert codes == [2]


def test_kept_the_slice_stays(world):
    world.launch()
    assert world.run("babysit", "pod", "--keep") == 0
    assert world.left() == ["pod", "pod"]
    assert "pod is kept, and costs money until it is deleted" in world.out


def test_signed_out_the_launcher_ends_and_the_run_goes_on(world):
    world.script(trainings=[WAITS])
    world.launch()
    world.script([("ssh poll", 2, "255"), ("queued-resources describe", 0, "denied")])
    assert world.run("babysit", "pod") == 2
    assert "PERMISSION_DENIED" in world.out and world.calls("ssh stop") == []
    assert world.state()["phase"] == "running"


def test_a_worker_in_trouble_is_stopped_before_it_starts_again(world):
    world.script(trainings=[WAITS, DONE])
    world.launch()
    world.script([("ssh poll", 2, "trouble")])
    assert world.run("babysit", "pod", "--keep") == 0, world.out
    assert "No space left on device; attempt 1, newest step 10" in world.out
    assert len(world.trainings()) == 2
    (ended,) = world.folder.glob("homes/pod/0/grpojax/attempts/1/exit")
    assert ended.read_text() == "75\n"


def test_done_but_not_deleted_is_said_and_is_no_success(world):
    world.launch()
    world.script([("queued-resources delete", 0, "denied")])
    assert world.run("babysit", "pod") == 1
    assert "may still be there and cost money" in world.out


def test_an_install_that_fails_three_times_is_given_up_with_its_reason(world):
    world.script(trainings=[WAITS])
    world.launch()
    world.script([("ssh poll", 1, "preempt")], broken_install=True)
    assert world.run("babysit", "pod") == 1
    assert "uv pip install ended with exit code 1: error: No solution found" in world.out


def test_a_run_on_a_worker_s_own_disk_is_read_there(world):
    on_demand = [word for word in SPOT if word != "--spot"]
    world.script(trainings=[{"steps": 5, "exit": 1}, {"exit": 1}, DONE])
    assert world.run("create", "pod", *on_demand) == 0
    assert world.run("setup", "pod") == 0
    workdir = str(world.folder / "disk/run")
    assert world.run("run", "pod", "configs/tiny.py", "--workdir", workdir) == 0
    assert world.run("babysit", "pod") == 2
    assert "goes with the slice" in world.err
    assert world.run("babysit", "pod", "--keep") == 0
    assert "newest step 5" in world.out and world.calls("storage ls") == []
