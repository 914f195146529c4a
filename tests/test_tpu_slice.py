"""The launcher against a fake Google Cloud: a slice is asked for, waited for, and deleted."""

import json
import stat

import pytest

from tests.launcher_world import PLACE, SPOT, repository, world  # noqa: F401

TPU7X = ["--slice", "tpu7x-16", "--project", "my-project", "--zone", "us-central1-c", "--spot"]


def test_a_slice_is_waited_for(world):
    world.script(waits=3)
    assert world.run("create", "pod", *SPOT) == 0
    assert len(world.calls("queued-resources describe")) == 1 + 3 + 1
    assert world.state()["phase"] == "ready" and world.state()["workers"] == ["0"]


def test_without_a_queue_the_node_is_asked_for_itself(world):
    assert world.run("create", "pod", *SPOT, "--no-queued") == 0
    assert world.calls("queued-resources create") == []
    (call,) = world.calls("tpu-vm create")
    assert "--version=v2-alpha-tpuv5-lite" in call["argv"] and "--spot" in call["argv"]
    assert world.run("delete", "pod") == 0
    assert world.left() == []


def test_a_stuck_queue_is_left_after_the_hours_given(world):
    world.script(waits=10**6)
    assert world.run("create", "pod", *SPOT, "--queue-hours", "0.5") == 1
    assert world.err == "error: no slice after 0.52 of queue_hours=0.5\n"
    assert world.left() == [] and world.state()["phase"] == "absent"


def test_without_quota_nothing_is_left_and_one_line_says_why(world):
    world.script([("queued-resources create", 1, "quota")])
    assert world.run("create", "pod", *SPOT) == 1
    assert world.err.startswith("error: gcloud compute tpus queued-resources create failed")
    assert "Quota limit" in world.err and world.err.count("\n") == 1
    assert world.left() == []


def test_a_project_of_somebody_else_is_wrong_input(world):
    world.script([("queued-resources describe", 1, "denied")])
    assert world.run("create", "pod", *SPOT) == 2
    assert "PERMISSION_DENIED" in world.err and world.err.count("\n") == 1
    assert world.calls("queued-resources create") == []


def test_a_slice_that_is_not_on_record_is_not_touched(world):
    assert world.run("create", "pod", *SPOT) == 0
    (world.folder / "state/pod.json").unlink()
    assert world.run("create", "pod", *SPOT) == 2
    assert "in us-west4-a already and not on record here" in world.err
    assert world.left() == ["pod", "pod"]


def test_the_same_create_goes_on_and_another_one_is_refused(world):
    assert world.run("create", "pod", *SPOT) == 0
    assert world.run("create", "pod", *SPOT) == 0
    assert len(world.calls("queued-resources create")) == 1
    assert world.run("create", "pod", *SPOT[2:], "--slice", "v6e-8") == 2
    assert "on record with slice=v5litepod-8, got v6e-8" in world.err


def test_a_slice_of_another_kind_under_the_name_is_refused(world):
    world.script(waits=1)
    assert world.run("create", "pod", *SPOT) == 0
    record = world.state() | {"slice": "v6e-8", "phase": "requested"}
    (world.folder / "state/pod.json").write_text(json.dumps(record))
    assert world.run("create", "pod", *SPOT[2:], "--slice", "v6e-8") == 2
    assert "is a v5litepod-8, not the v6e-8 of the record" in world.err


def test_an_answer_that_was_lost_is_no_second_request(world):
    world.script([("queued-resources create", 1, "lost")])
    assert world.run("create", "pod", *SPOT) == 1
    assert world.state()["phase"] == "requested"
    assert world.run("create", "pod", *SPOT) == 0
    assert len(world.calls("queued-resources create")) == 1


def test_a_hanging_call_is_killed_at_its_time_limit(world):
    world.script([("queued-resources create", 1, "hang")])
    world.hangs = "queued-resources create"
    assert world.run("create", "pod", *SPOT) == 1
    assert "create gave no answer in 600 s" in world.err
    assert world.run("delete", "pod") == 0


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_a_request_that_fails_in_the_queue_is_said_and_can_be_cleared(world, state):
    world.script([("queued-resources describe", 3, f"queue:{state}")], waits=9)
    assert world.run("create", "pod", *SPOT) == 1
    assert "`delete` clears it away" in world.err and world.state()["phase"] == "lost"
    assert world.run("delete", "pod") == 0
    assert world.left() == []
    assert world.run("create", "pod", *SPOT) == 0


def test_a_node_that_outlives_its_queued_resource_is_deleted_too(world):
    assert world.run("create", "pod", *SPOT) == 0
    world.script(leave_node=True)
    assert world.run("delete", "pod") == 0
    assert len(world.calls("tpu-vm delete")) == 1
    assert world.left() == []


def test_a_delete_that_fails_is_tried_again(world):
    assert world.run("create", "pod", *SPOT) == 0
    world.script([("queued-resources delete", 1, "error"), ("queued-resources delete", 2, "lost")])
    assert world.run("delete", "pod") == 0
    assert world.left() == [] and world.state()["phase"] == "absent"


def test_a_delete_that_never_works_says_that_money_is_spent(world):
    assert world.run("create", "pod", *SPOT) == 0
    world.script([("queued-resources delete", 0, "denied")])
    assert world.run("delete", "pod") == 1
    assert "pod in us-west4-a may still be there and cost money" in world.err
    assert world.state()["phase"] == "ready"


def test_delete_of_what_is_gone_already_is_done(world):
    assert world.run("create", "pod", *SPOT) == 0
    world.script(queued={}, nodes={})
    assert world.run("delete", "pod") == 0


def test_tpu7x_on_one_host_is_an_instance(world):
    assert world.run("create", "pod", *TPU7X[2:], "--slice", "tpu7x-8") == 0
    (call,) = world.calls("instances create")
    assert "--machine-type=tpu7x-standard-4t" in call["argv"]
    assert "--provisioning-model=SPOT" in call["argv"]
    assert world.state()["workers"] == ["pod"]
    assert world.run("delete", "pod") == 0
    assert world.left() == []


def test_tpu7x_on_two_hosts_is_a_group_under_a_policy_and_all_three_are_deleted(world):
    assert world.run("create", "pod", *TPU7X) == 0
    events = [call["event"] for call in world.calls() if call["event"].endswith("create")]
    events = [event.split()[0] for event in events]
    assert events == ["resource-policies", "instance-templates", "managed"]
    assert world.state()["workers"] == ["pod-0", "pod-1"]
    assert world.run("delete", "pod") == 0
    assert world.left() == []


def test_the_record_is_its_owners_alone_and_never_half_written(world):
    assert world.run("create", "pod", *SPOT) == 0
    folder = world.folder / "state"
    assert stat.S_IMODE((folder / "pod.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert sorted(path.name for path in folder.iterdir()) == ["pod.json", "pod.lock"]


def test_cost_is_chip_hours_times_the_price_from_when_the_slice_was_made(world):
    assert world.run("create", "pod", *SPOT) == 0
    world.sleep(1.5 * 3600)
    assert world.run("cost", "pod", "--price-per-chip-hour", "2") == 0
    assert world.out.splitlines()[-1] == "pod: 12.00 chip-hours at 2 = 24.00"
    assert world.run("delete", "pod") == 0
    world.sleep(3600)
    assert world.run("cost", "pod") == 0  # and 15 s until it was seen that nothing is left
    assert "pod: 12.03 chip-hours; --price-per-chip-hour" in world.out


def test_ls_shows_what_is_there_and_on_no_record(world):
    assert world.run("create", "pod", *SPOT) == 0
    assert world.run("create", "other", *SPOT) == 0
    (world.folder / "state/other.json").unlink()
    assert world.run("ls", *PLACE) == 0
    assert "pod: v5litepod-8 in us-west4-a, spot, ready, attempt 0" in world.out
    assert "tpus queued-resources: pod is ACTIVE, on record\n" in world.out
    assert "tpus queued-resources: other is ACTIVE, NOT on record here\n" in world.out
    assert "tpus tpu-vm: other is READY, NOT on record here\n" in world.out
