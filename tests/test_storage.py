"""A run directory in a bucket is the one on disk: kills, resumes, damage, copies, and every command
that reads it. The bucket stands on this machine (bucket_server.py)."""

import importlib.util
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from bucket_server import running_bucket
from test_checkpoint import assert_same, make_state, shape_of
from test_hosts import CONFIG, JUDGE, STEPS, codes, together
from test_resume import assert_equal_runs

from grpojax.__main__ import main
from grpojax.checkpoint import close, open_checkpoints, restore, restore_params, save, saved_steps
from grpojax.export import export_run
from grpojax.metrics import MetricsWriter, read_metrics
from grpojax.pairs import load_pairs, require_pairs
from grpojax.storage import place, save_arrays, written_locally

# These tests have eight devices, and the run eight prompts a step in two minibatches.
FEWER = ["--mesh.data", "1", "--mesh.fsdp", "4", "--mesh.tensor", "2"]


@pytest.fixture(scope="module")
def bucket():
    with running_bucket() as bucket, pytest.MonkeyPatch.context() as patch:
        for name, value in bucket.environment().items():
            patch.setenv(name, value)
        yield bucket


def copied(bucket, name, folder):
    """What is in the bucket below `name`, in a folder on disk."""
    for path in bucket.names():
        if path.startswith(f"{name}/"):
            file = folder / path.removeprefix(f"{name}/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(bucket.content(path))
    return folder


def uploaded(bucket, folder, name):
    for file in folder.rglob("*"):
        if file.is_file():
            bucket.write(f"{name}/{file.relative_to(folder)}", file.read_bytes(), None)


def saved(folder, steps, accuracies=None, keep=9):
    manager = open_checkpoints(folder, keep=keep)
    for step in steps:
        save(manager, step, make_state(step), (accuracies or {}).get(step))
    close(manager)


def restored(folder, said):
    manager = open_checkpoints(folder, keep=9)
    try:
        return restore(manager, shape_of(make_state(0)), said.append)
    finally:
        close(manager)


@pytest.mark.parametrize("name", ["runs/a", "/runs/a", "gs_bucket/a", "~/a"])
def test_a_name_without_an_address_is_a_path_on_disk(name):
    assert place(name) == Path(name) and type(place(name)) is type(Path(name))


@pytest.mark.parametrize("name", ["gs://", "gs://bucket", "gs:///a", "s3://bucket/a", "http://a/b"])
def test_other_addresses_are_refused(name):
    with pytest.raises(ValueError, match=r"file system or at gs://BUCKET/FOLDER, got "):
        place(name)


def test_without_the_extra_a_bucket_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"gs://b/a needs the extra gcs; .*'grpojax\[gcs\]'"):
        place("gs://b/a")


def test_a_state_comes_back_bit_for_bit(bucket):
    saved("gs://bucket/exact", [1, 2])
    state, step = restored("gs://bucket/exact", [])
    assert step == 2
    assert_same(state, make_state(2))
    params, step = restore_params("gs://bucket/exact", shape_of(make_state(1)).params, print, 1)
    assert_same(params, make_state(1).params)


def test_newest_and_best_are_kept(bucket):
    saved("gs://bucket/kept", range(1, 6), {1: 0.5, 2: 0.9, 3: 0.1}, keep=2)
    assert saved_steps(place("gs://bucket/kept")) == [2, 4, 5]
    assert {name.split("/")[1] for name in bucket.names() if name.startswith("kept/")} == set("245")


def test_the_manifest_is_written_last_and_deleted_first(bucket):
    """So a save or a deletion that is killed leaves no checkpoint."""
    saved("gs://bucket/order", [1, 2], keep=1)
    first, second = (
        [x for x in bucket.asked if x.startswith(("POST /upload", "DELETE")) and f"order/{n}" in x]
        for n in (1, 2)
    )
    assert second[-1].startswith("POST") and "order/2/manifest.txt" in second[-1]
    sealed = next(i for i, x in enumerate(first) if "order/1/manifest.txt" in x)
    assert sealed > 5 and all(x.startswith("DELETE") for x in first[sealed + 1 :])
    assert first[sealed + 1].endswith("order/1/manifest.txt") and len(first) > sealed + 5


def test_what_has_no_manifest_is_no_checkpoint_and_is_tidied_up(bucket):
    saved("gs://bucket/killed", [1, 2, 21])
    for step in (2, 21):
        del bucket.objects[f"killed/{step}/manifest.txt"]
    assert saved_steps(place("gs://bucket/killed")) == [1]
    _, step = restore_params("gs://bucket/killed", shape_of(make_state(1)).params, print)
    assert step == 1  # and whoever only reads deletes nothing
    assert any(name.startswith("killed/2/") for name in bucket.names())
    assert restored("gs://bucket/killed", [])[1] == 1
    assert not any(name.startswith(("killed/2/", "killed/21/")) for name in bucket.names())


@pytest.mark.parametrize("damage", ["changed", "missing", "new"])
def test_damage_is_named_and_the_older_checkpoint_is_used(bucket, damage):
    folder, said = f"damage_{damage}", []
    saved(f"gs://bucket/{folder}", [1, 2])
    if damage == "new":
        name = "d/other"
        bucket.write(f"{folder}/2/{name}", b"x", None)
    else:
        name = next(n for n in bucket.names() if n.startswith(f"{folder}/2/d/"))
        content = bytearray(bucket.content(name))
        content[len(content) // 2] ^= 1
        if damage == "changed":
            bucket.write(name, content, None)
        else:
            del bucket.objects[name]
        name = name.removeprefix(f"{folder}/2/")
    state, step = restored(f"gs://bucket/{folder}", said)
    assert step == 1
    assert_same(state, make_state(1))
    assert f"checkpoint 2 in gs://bucket/{folder} is damaged ({name}: " in said[0]
    assert "2 is now called 2.damaged" in said[0]
    assert saved_steps(place(f"gs://bucket/{folder}")) == [1]
    assert any(n.startswith(f"{folder}/2.damaged/") for n in bucket.names())


def test_a_save_that_is_refused_is_one_error_and_costs_no_checkpoint(bucket):
    folder = "gs://bucket/refused"
    saved(folder, [1])
    manager = open_checkpoints(folder, keep=9)
    bucket.refused = "refused/2/d/"
    try:
        save(manager, 2, make_state(2), None)
        with pytest.raises(OSError, match=r"checkpoint gs://bucket/refused/2 was not saved"):
            close(manager)
    finally:
        bucket.refused = ""
    assert restored(folder, [])[1] == 1


def test_checkpoints_may_be_copied_out_of_a_bucket_and_into_it(bucket, tmp_path):
    saved("gs://bucket/there", [1])
    copied(bucket, "there", tmp_path / "here")
    assert_same(restored(tmp_path / "here", [])[0], make_state(1))
    saved(tmp_path / "disk", [2])
    uploaded(bucket, tmp_path / "disk", "from_disk")
    assert_same(restored("gs://bucket/from_disk", [])[0], make_state(2))
    name = next(n for n in bucket.names() if n.startswith("from_disk/2/d/"))
    bucket.write(name, bucket.content(name)[:-1] + b"?", None)
    with pytest.raises(ValueError, match="changed since it was written"):
        restored("gs://bucket/from_disk", [])


def test_metrics_grow_line_by_line_and_a_resumed_run_cuts_what_it_makes_again(bucket):
    with MetricsWriter("gs://bucket/metrics", 0, tensorboard=True) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"loss": step / 10})
            assert len(read_metrics("gs://bucket/metrics")) == step
            writer.write_groups(step, [])
    with MetricsWriter("gs://bucket/metrics", 3, tensorboard=False) as writer:
        writer.write(3, {"loss": 7})
    lines = [(line["step"], line["loss"]) for line in read_metrics("gs://bucket/metrics")]
    assert lines == [(1, 0.1), (2, 0.2), (3, 7.0)]
    names = [name for name in bucket.names() if name.startswith("metrics/completions")]
    assert names == [f"metrics/completions/0000000{step}.jsonl" for step in (1, 2)]
    assert any(name.startswith("metrics/tb/events") for name in bucket.names())


def test_what_writes_to_disk_alone_ends_up_in_the_bucket(bucket):
    with written_locally(place("gs://bucket/profile")) as folder:
        (folder / "plugins").mkdir()
        (folder / "plugins" / "trace").write_bytes(b"trace")
    assert bucket.content("profile/plugins/trace") == b"trace"
    assert not folder.exists()


def test_damaged_pairs_are_named(bucket):
    folder = place("gs://bucket/pairs")
    save_arrays(folder / "00000001.npz", {"tokens": np.ones(3)})
    require_pairs(folder, range(1, 2))
    with pytest.raises(ValueError, match=r"gs://bucket/pairs/00000002.npz, which is not there"):
        require_pairs(folder, range(1, 3))
    with pytest.raises(ValueError, match=r"gs://bucket/pairs/00000001.npz .* is damaged"):
        load_pairs(folder, range(1, 2))


@pytest.fixture(scope="module")
def runs(bucket, tmp_path_factory):
    """A run on disk, and the same in the bucket, which was asked to end at step 2 and went on."""
    folder = tmp_path_factory.mktemp("storage")
    (folder / "config.py").write_text(CONFIG)
    (folder / "judge.py").write_text(JUDGE)
    there, about = ["train", "config.py", "--workdir", "gs://bucket/runs/there"], {}
    assert codes(together(folder, ["train", "config.py", "--workdir", "here"], 1)) == [0]
    about = bucket.environment()
    assert codes(together(folder, there, 1, **about, SIGNAL="0 10 SIGTERM")) == [75]
    assert codes(together(folder, there, 1, **about)) == [0]
    return folder


def test_a_run_in_a_bucket_that_was_interrupted_equals_one_on_disk_that_was_not(bucket, runs):
    there = copied(bucket, "runs/there", runs / "there")
    assert_equal_runs(runs / "here", there)
    files = [
        {p.relative_to(f).as_posix() for p in f.rglob("*") if "checkpoints" not in p.parts}
        for f in (runs / "here", there)
    ]
    assert {name for name in files[0] ^ files[1] if not name.startswith("tb/")} == set()


def test_every_command_that_reads_a_run_reads_one_in_a_bucket(bucket, runs, capsys, monkeypatch):
    monkeypatch.chdir(runs)
    monkeypatch.syspath_prepend(runs)
    for args in (
        ["report", "gs://bucket/runs/there"],
        ["evaluate", "gs://bucket/runs/there", "--examples", "2", "--samples", "2"],
        ["sample", "gs://bucket/runs/there", "--prompt", "1+", "--completion-length", "4"],
        ["export", "gs://bucket/runs/there", "--out", "exported"],
        [
            "train",
            "config.py",
            "--workdir",
            "next",
            *FEWER,
            "--dry-run",
            "--init",
            "gs://bucket/runs/there",
        ],
    ):
        assert main(args) == 0, capsys.readouterr()
    said = capsys.readouterr().out
    assert "gs://bucket/runs/there" in said and (runs / "exported" / "config.json").exists()
    copied(bucket, "runs/there", runs / "again")
    shutil.rmtree(runs / "exported")
    assert f"step {STEPS} of" in export_run(
        runs / "again", runs / "exported", step=None, dtype="float32", adapters=False
    )


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--workdir", "gs://other/a"], "gs://other/a cannot be used ("),
        (
            ["--workdir", "gs://bucket"],
            "a run directory must be on a file system or at gs://BUCKET",
        ),
        (["--workdir", "s3://bucket/a"], "a run directory must be on a file system or at gs://"),
        (
            ["--workdir", "gs://bucket/a", "--init", "gs://bucket/none"],
            "init=gs://bucket/none does",
        ),
        (["--workdir", "gs://bucket/a", "--init", "gs://bucket/exact"], "holds no run; weights of"),
        (["--workdir", "gs://bucket/forbidden"], "gs://bucket/forbidden cannot be used (Forbidden"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(bucket, runs, args, said, capsys, monkeypatch):
    monkeypatch.chdir(runs)
    monkeypatch.setattr(bucket, "refused", "forbidden/")
    saved("gs://bucket/exact", [1])
    capsys.readouterr()
    assert main(["train", "config.py", *args, *FEWER]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1
    assert said in printed


def test_nothing_of_a_bucket_is_written_to_this_folder(runs):
    assert not [name for name in os.listdir(runs) if name.startswith("gs")]
