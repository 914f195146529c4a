"""Checkpoints come back bit for bit, or not at all: damage, kills, full disks, wrong models."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from grpojax.checkpoint import close, open_checkpoints, restore, restore_params, save
from grpojax.types import TrainState

LARGE = 2**19  # columns that make a state of 16 MB: its save takes a while


def sharding(devices, *axes):
    mesh = jax.make_mesh((devices,), ("fsdp",), (AxisType.Auto,), devices=jax.devices()[:devices])
    return NamedSharding(mesh, PartitionSpec(*axes))


def make_state(seed, columns=8):
    """Leaves of float32 (sharded over 2 devices), bfloat16, int32 and uint32, and None leaves."""
    rng = np.random.default_rng(seed)
    kernel = jax.device_put(rng.random((4, columns), np.float32), sharding(2, "fsdp"))
    scale = jnp.asarray(rng.normal(size=5), jnp.bfloat16)
    return TrainState(
        step=jnp.int32(seed),
        update=jnp.int32(-3),
        skipped=jnp.int32(0),
        params={"head": {"kernel": kernel}, "norm": {"scale": scale}},
        opt_state=({"mu": -2 * kernel, "nu": None}, (), jnp.uint32(2**32 - 1)),
        ref_params=None,
    )


def shape_of(state, on=None):
    form = jax.ShapeDtypeStruct
    return jax.tree.map(lambda x: form(x.shape, x.dtype, sharding=on or x.sharding), state)


def assert_same(restored, state, shardings=True):
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(state)):
        assert ours.dtype == theirs.dtype
        assert not shardings or ours.sharding == theirs.sharding
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


def save_all(folder, accuracies, keep=9):
    """Saves `make_state(step)` for every step."""
    manager = open_checkpoints(folder, keep=keep)
    for step, accuracy in accuracies.items():
        save(manager, step, make_state(step), accuracy)
    close(manager)


def names(folder):
    return sorted(os.listdir(folder))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with checkpoints 1 and 2; `folder` below is a copy of it to damage."""
    folder = tmp_path_factory.mktemp("saved")
    save_all(folder, {1: None, 2: None})
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def test_state_comes_back_bit_for_bit_on_the_shardings_asked_for(tmp_path):
    state, manager = make_state(1), open_checkpoints(tmp_path, keep=1)
    assert restore(manager, state, pytest.fail) is None
    save(manager, 1, state, None)
    for like in (shape_of(state), state):
        assert_same(restore(manager, like, pytest.fail)[0], state)
    restored, step = restore(manager, shape_of(state, on=sharding(4)), pytest.fail)
    assert step == 1
    assert_same(restored, jax.device_put(state, sharding(4)))
    close(manager)


def test_arrays_may_be_donated_as_soon_as_save_returns(tmp_path):
    manager = open_checkpoints(tmp_path, keep=1)
    add_one = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    add_one(make_state(0, LARGE))
    overlapped = []
    for step in range(1, 4):
        state = make_state(step, LARGE)
        expected, like = jax.tree.map(np.array, state), shape_of(state)
        save(manager, step, state, None)
        jax.block_until_ready(add_one(state))
        overlapped.append(str(step) not in names(tmp_path))
        assert_same(restore(manager, like, pytest.fail)[0], expected, shardings=False)
    close(manager)
    assert any(overlapped), "every save ended before the donation"


def test_newest_and_best_are_kept(tmp_path):
    save_all(tmp_path / "a", {1: 0.1, 2: 0.75, 3: None, 4: 0.5, 10: 0.6, 11: None}, keep=2)
    assert names(tmp_path / "a") == ["10", "11", "2"]
    save_all(tmp_path / "b", {1: 0.75, 2: 0.5, 3: 0.75, 4: 0.25}, keep=1)
    assert names(tmp_path / "b") == ["3", "4"]


def damage(file, how, rng):
    content = bytearray(file.read_bytes())
    at = rng.randrange(len(content))
    if how == "flip":
        content[at] ^= 1 << rng.randrange(8)
    file.write_bytes(content if how == "flip" else content[:at])
    if how == "delete":
        file.unlink()


def test_damage_to_any_file_is_refused_by_name(saved, folder, tmp_path):
    rng = random.Random(0)
    files = sorted(p.relative_to(saved / "2") for p in (saved / "2").rglob("*") if p.is_file())
    assert {"manifest.txt", "_METADATA", "manifest.ocdbt"} <= set(map(str, files))
    good = make_state(1)
    for trial in range(201):
        file, how = files[trial // 3 % len(files)], ("flip", "truncate", "delete")[trial % 3]
        damage(folder / "2" / file, how, rng)
        said = []
        if trial % 10:  # reading the parameters alone changes nothing
            params, step = restore_params(folder, good.params, said.append)
            assert_same(params, good.params)
        else:
            manager = open_checkpoints(folder, keep=1)
            restored, step = restore(manager, good, said.append)
            close(manager)
            assert_same(restored, good)
            (folder / "2.damaged").rename(folder / "2")
        assert step == 1 and len(said) == 1, (file, how)
        assert "checkpoint 2 " in said[0] and str(file) in said[0] and "1 is used" in said[0]
        assert names(folder) == ["1", "2"]
        shutil.copy(saved / "2" / file, folder / "2" / file)
    assert restore_params(folder, good.params, pytest.fail)[1] == 2
    by_hand = ["sha256sum", "--check", "--strict", "manifest.txt"]
    subprocess.run(by_hand, cwd=folder / "2", capture_output=True, check=True)
    with pytest.raises(ValueError, match="no checkpoint 'best' in"):  # none was evaluated
        restore_params(folder, good.params, pytest.fail, "best")


def test_files_that_were_not_saved_as_this_step_are_refused(folder):
    (folder / "2" / "d" / "extra").write_text("")
    shutil.copytree(folder / "1", folder / "3")
    said = []
    assert restore_params(folder, make_state(1).params, said.append)[1] == 1
    assert "manifest.txt: belongs to another checkpoint" in said[0]
    assert "d/extra: not in the manifest" in said[1]


def test_a_damaged_step_can_be_saved_again_and_its_files_are_kept(folder):
    for attempt, aside in enumerate(("2.damaged", "2.damaged1")):
        (folder / "2" / "_METADATA").write_text(f"gone {attempt}")
        manager = open_checkpoints(folder, keep=9)
        with pytest.raises(ValueError, match=r"checkpoint .*2 exists and is damaged \(_METADATA"):
            save(manager, 2, make_state(7), None)
        said = []
        assert restore(manager, make_state(1), said.append)[1] == 1
        assert said[0].endswith(f"2 is now called {aside}")
        assert (folder / aside / "_METADATA").read_text() == f"gone {attempt}"
        for seed in (2, 7):  # the second save finds the step there, and leaves it
            save(manager, 2, make_state(seed), None)
        assert_same(restore(manager, make_state(2), pytest.fail)[0], make_state(2))
        close(manager)
    assert names(folder) == ["1", "2", "2.damaged", "2.damaged1"]


def test_without_a_good_checkpoint_all_are_named_and_none_is_moved(folder):
    (folder / "1" / "manifest.txt").unlink()
    (folder / "2" / "_sharding").unlink()
    manager = open_checkpoints(folder, keep=1)
    with pytest.raises(ValueError, match=r"2: _sharding: missing; 1: .*/1/manifest.txt"):
        restore(manager, make_state(1), pytest.fail)
    assert names(folder) == ["1", "2"]
    save(manager, 3, make_state(3), None)
    close(manager)
    assert names(folder) == ["1", "3"], "a checkpoint with a bad manifest counts for nothing"


def test_a_state_that_does_not_fit_is_refused_by_leaf(folder):
    state, manager = make_state(2), open_checkpoints(folder, keep=1)
    params, scale = state.params, "params/norm/scale is bfloat16[5] in it and"
    for change, message in (
        ({"norm": {"scale": jnp.zeros(6, jnp.bfloat16)}}, f"{scale} bfloat16[6] in this run"),
        ({"norm": {"scale": jnp.zeros(5)}}, f"{scale} float32[5] in this run"),
        ({"bias": jnp.zeros(2)}, "params/bias is absent in it and float32[2]"),
        ({"head": None}, "params/head/kernel is float32[4, 8] in it and absent"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            restore(manager, state.replace(params=params | change), pytest.fail)
        with pytest.raises(ValueError, match=re.escape(message)):
            restore_params(folder, params | change, pytest.fail)
    with pytest.raises(ValueError, match=r"opt_state/2 is uint32\[\] in it and absent"):
        restore(manager, state.replace(opt_state=state.opt_state[:2]), pytest.fail)
    with pytest.raises(ValueError, match=r"ref_params/w is absent in it and float32\[2\]"):
        restore(manager, state.replace(ref_params={"w": jnp.zeros(2)}), pytest.fail)
    close(manager)


def test_parameters_load_alone_newest_best_or_by_step(tmp_path):
    save_all(tmp_path, {1: 0.5, 2: 0.75, 3: 0.75, 4: None})
    like = shape_of(make_state(1).params)
    for which, step in (("newest", 4), ("best", 3), (1, 1)):
        params, found = restore_params(tmp_path, like, pytest.fail, which)
        assert found == step
        assert_same(params, make_state(step).params)
    with pytest.raises(ValueError, match=r"no checkpoint 9 in .*; its steps: \[1, 2, 3, 4\]"):
        restore_params(tmp_path, like, pytest.fail, 9)
    with pytest.raises(ValueError, match="no checkpoint 'newest' in"):
        restore_params(tmp_path / "none", like, pytest.fail)
    (tmp_path / "3" / "manifest.txt").unlink()  # and with it the best accuracy
    said = []
    assert restore_params(tmp_path, like, said.append, "best")[1] == 2
    assert len(said) == 1 and "checkpoint 3 " in said[0]


def test_open_removes_what_killed_saves_left_and_nothing_else(tmp_path):
    left, others = ["7.unfinished", "7.unfinished.x", "3.removed"], ["5.damaged", "unfinished"]
    for name in left + others:
        (tmp_path / name / "d").mkdir(parents=True)
    close(open_checkpoints(tmp_path, keep=1))
    assert names(tmp_path) == others
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"need a folder that can be written, got .*file"):
        open_checkpoints(tmp_path / "file" / "checkpoints", keep=1)


CHILD = """
import resource
from test_checkpoint import *
jax.config.update("jax_num_cpu_devices", 2)

folder, what = sys.argv[1:]
manager = open_checkpoints(folder, keep=1)
save(manager, 1, make_state(1), 0.5)
restore(manager, make_state(1), print)
if what == "full":  # no file may grow beyond 1 MB: an error like a full disk's
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
save(manager, 2, make_state(2, LARGE), 0.75)
if what != "full":
    while not {what, "2"} & set(os.listdir(folder)):
        pass
    os.kill(os.getpid(), signal.SIGKILL)
with pytest.raises(OSError) as at_save:
    save(manager, 3, make_state(3), 0.75)
save(manager, 3, make_state(3), 0.25)
save(manager, 4, make_state(4, LARGE), None)
with pytest.raises(OSError) as at_close:
    close(manager)
print(at_save.value, at_close.value, sep="\\n")
"""


def run_child(folder, what):
    """Runs CHILD, in which warnings are errors, to its end."""
    command = [sys.executable, "-W", "error", "-c", CHILD, str(folder), what]
    here = os.path.dirname(__file__)
    return subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("moment", ["2.unfinished.orbax-checkpoint-tmp", "2.unfinished"])
def test_a_save_killed_half_way_leaves_the_older_checkpoint_in_use(tmp_path, moment):
    child = run_child(tmp_path, moment)
    assert (child.returncode, child.stdout, child.stderr) == (-signal.SIGKILL, "", "")
    assert moment in names(tmp_path) and "2" not in names(tmp_path)
    manager = open_checkpoints(tmp_path, keep=1)
    assert names(tmp_path) == ["1"]
    assert_same(restore(manager, make_state(1), pytest.fail)[0], make_state(1))
    save(manager, 2, make_state(2), 0.75)
    assert_same(restore(manager, make_state(2), pytest.fail)[0], make_state(2))
    close(manager)


def test_a_full_disk_is_one_error_of_the_next_call_and_costs_no_checkpoint(tmp_path):
    child = run_child(tmp_path, "full")
    assert child.returncode == 0, child.stderr
    assert "background save thread" not in child.stderr, "Orbax logs an error that is raised too"
    for step, line in zip((2, 4), child.stdout.splitlines(), strict=True):
        assert line.startswith(f"checkpoint {tmp_path}/{step} was not saved (")
        assert "File too large" in line
    close(open_checkpoints(tmp_path, keep=1))
    assert names(tmp_path) == ["1", "3"]  # the best and the newest
    for step in (1, 3):
        restore_params(tmp_path, make_state(step).params, pytest.fail, step)
