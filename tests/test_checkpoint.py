"""Checkpoints come back bit for bit, or not at all: damage, kills, full disks and wrong models."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from grpojax.checkpoint import close, open_checkpoints, restore, restore_params, save
from grpojax.types import TrainState


def make_state(seed, width=8, ref=None):
    """A small state of float32, bfloat16 and integer leaves, None leaves, and two of them sharded."""
    mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    sharded = NamedSharding(mesh, PartitionSpec("fsdp"))
    rng = np.random.default_rng(seed)
    kernel = jax.device_put(rng.normal(size=(4, width)).astype(np.float32), sharded)
    scale = jnp.asarray(rng.normal(size=5), jnp.bfloat16)
    return TrainState(
        step=jnp.int32(seed),
        update=jnp.int32(3),
        skipped=jnp.int32(0),
        params={"head": {"kernel": kernel}, "norm": {"scale": scale}},
        opt_state=({"mu": -2 * kernel, "nu": None}, (), jnp.uint32(2**32 - 1)),
        ref_params=ref,
    )


def shape_of(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def assert_same(restored, state):
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(state)):
        assert (ours.dtype, ours.sharding) == (theirs.dtype, theirs.sharding)
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


def save_all(folder, steps, keep=9):
    """Saves `make_state(step)` for every step, with accuracies where `steps` is a dict."""
    manager = open_checkpoints(folder, keep=keep)
    for step in steps:
        save(manager, step, make_state(step), steps[step] if isinstance(steps, dict) else None)
    close(manager)


def folders(folder):
    return sorted(os.listdir(folder))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with checkpoints 1 and 2, to be copied before it is damaged."""
    folder = tmp_path_factory.mktemp("saved")
    save_all(folder, [1, 2])
    return folder


@pytest.fixture
def manager(tmp_path):
    opened = open_checkpoints(tmp_path / "run", keep=9)
    yield opened
    close(opened)


def test_state_comes_back_bit_for_bit_on_its_shardings(manager):
    state = make_state(1)
    save(manager, 1, state, None)
    for like in (shape_of(state), state):
        restored, step = restore(manager, like, pytest.fail)
        assert step == 1
        assert_same(restored, state)


def test_restores_onto_other_shardings_than_were_saved(manager):
    state = make_state(1)
    save(manager, 1, state, None)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    whole = NamedSharding(mesh, PartitionSpec())
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), state)
    restored, _ = restore(manager, like, pytest.fail)
    assert_same(restored, jax.device_put(state, whole))


def test_nothing_saved_restores_nothing(manager):
    assert restore(manager, make_state(1), pytest.fail) is None


def test_arrays_may_be_donated_as_soon_as_save_returns(manager):
    rng = np.random.default_rng(0)
    state = make_state(1)
    big = jax.device_put(
        rng.normal(size=(8, 2**20)).astype(np.float32), state.params["head"]["kernel"].sharding
    )
    state = state.replace(params={"head": {"kernel": big}})
    expected = jax.tree.map(lambda x: np.array(x), state)
    overwrite = jax.jit(lambda x: jax.tree.map(lambda a: a + jnp.ones_like(a), x), donate_argnums=0)
    save(manager, 1, state, None)
    assert "1" not in folders(manager.folder), "the save ended before the donation"
    like = shape_of(state)
    for _ in range(5):
        state = overwrite(state)
    jax.block_until_ready(state)
    jax.tree.map(lambda x: x.delete(), state)
    restored, _ = restore(manager, like, pytest.fail)
    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(expected)):
        np.testing.assert_array_equal(np.asarray(ours), theirs)


def test_saving_a_step_again_changes_nothing(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "run")
    manager = open_checkpoints(folder, keep=9)
    save(manager, 2, make_state(7), None)
    assert_same(restore(manager, make_state(2), pytest.fail)[0], make_state(2))
    close(manager)


def test_newest_and_best_are_kept(tmp_path):
    save_all(tmp_path, {1: 0.1, 2: 0.75, 3: None, 4: 0.5, 5: 0.6, 6: None}, keep=2)
    assert folders(tmp_path) == ["2", "5", "6"]


def test_a_best_checkpoint_is_dropped_for_a_better_or_newer_equal(tmp_path):
    save_all(tmp_path, {1: 0.75, 2: 0.5, 3: 0.75, 4: 0.25}, keep=1)
    assert folders(tmp_path) == ["3", "4"]


def test_close_waits_for_the_save_in_flight(tmp_path):
    manager = open_checkpoints(tmp_path, keep=1)
    state = make_state(1, width=2**20)
    save(manager, 1, state, None)
    assert folders(tmp_path) != ["1"], "the save ended before close began"
    close(manager)
    assert folders(tmp_path) == ["1"]
    manager = open_checkpoints(tmp_path, keep=1)
    assert_same(restore(manager, state, pytest.fail)[0], state)
    close(manager)


def test_manifest_is_read_by_sha256sum(saved):
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", "manifest.txt"], cwd=saved / "2", capture_output=True
    )
    assert checked.returncode == 0, checked.stderr
    files = [p for p in (saved / "2").rglob("*") if p.is_file() and p.name != "manifest.txt"]
    assert len(checked.stdout.splitlines()) == len(files)


def flip(file, rng):
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def truncate(file, rng):
    os.truncate(file, rng.randrange(file.stat().st_size))


def delete(file, rng):
    file.unlink()


def append(file, rng):
    with file.open("ab") as out:
        out.write(rng.randbytes(rng.randrange(1, 9)))


def test_damage_to_any_file_is_refused_by_name(saved, tmp_path):
    rng = random.Random(0)
    names = sorted(p.relative_to(saved / "2") for p in (saved / "2").rglob("*") if p.is_file())
    assert {"manifest.txt", "_METADATA", "manifest.ocdbt"} <= set(map(str, names))
    params, good = make_state(1).params, make_state(1)
    for trial in range(240):
        name, damage = names[trial % len(names)], (flip, truncate, delete, append)[trial % 4]
        name = rng.choice(names) if trial >= 4 * len(names) else name
        folder = shutil.copytree(saved, tmp_path / str(trial))
        damage(folder / "2" / name, rng)
        said = []
        if trial % 8 < 7:  # reading alone changes nothing, and costs no manager
            restored, step = restore_params(folder, params, said.append)
            assert_same(restored, params)
            assert folders(folder) == ["1", "2"]
        else:
            manager = open_checkpoints(folder, keep=1)
            restored, step = restore(manager, good, said.append)
            assert_same(restored, good)
            close(manager)
            assert folders(folder) == ["1", "2.damaged"]
        assert step == 1 and len(said) == 1, (name, damage)
        assert "checkpoint 2 " in said[0] and str(name) in said[0] and "1 is used" in said[0]


def test_a_file_that_was_never_saved_is_refused(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "run")
    (folder / "2" / "d" / "extra").write_text("")
    said = []
    assert restore_params(folder, make_state(1).params, said.append)[1] == 1
    assert "d/extra: not in the manifest" in said[0]


def test_a_checkpoint_under_another_steps_name_is_refused(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "run")
    (folder / "2").rename(folder / "3")
    said = []
    assert restore_params(folder, make_state(1).params, said.append)[1] == 1
    assert "manifest.txt: belongs to another checkpoint" in said[0]


def test_a_damaged_step_can_be_saved_again_and_its_files_are_kept(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "run")
    for attempt in range(2):
        (folder / "2" / "_METADATA").write_text(f"gone {attempt}")
        manager = open_checkpoints(folder, keep=1)
        with pytest.raises(ValueError, match=r"checkpoint .*2 exists and is damaged \(_METADATA"):
            save(manager, 2, make_state(2), None)
        said = []
        assert restore(manager, make_state(1), said.append)[1] == 1
        aside = "2.damaged" if attempt == 0 else "2.damaged1"
        assert said[0].endswith(f"2 is now called {aside}")
        assert (folder / aside / "_METADATA").read_text() == f"gone {attempt}"
        manager.keep = 9
        save(manager, 2, make_state(2), None)
        assert_same(restore(manager, make_state(2), pytest.fail)[0], make_state(2))
        close(manager)
    assert folders(folder) == ["1", "2", "2.damaged", "2.damaged1"]


def test_without_a_good_checkpoint_all_are_named_and_none_is_touched(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "run")
    (folder / "1" / "manifest.txt").unlink()
    (folder / "2" / "_sharding").unlink()
    manager = open_checkpoints(folder, keep=1)
    with pytest.raises(ValueError, match=r"2: _sharding: missing; 1: manifest.txt: No such file"):
        restore(manager, make_state(1), pytest.fail)
    close(manager)
    assert folders(folder) == ["1", "2"]


def test_damaged_checkpoints_are_not_counted_among_the_kept(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "run")
    (folder / "2" / "manifest.txt").write_text("nothing")
    manager = open_checkpoints(folder, keep=2)
    save(manager, 3, make_state(3), 0.5)
    close(manager)
    assert folders(folder) == ["1", "2", "3"]


def with_leaf(state, **params):
    return state.replace(params=state.params | params)


MISFITS = {
    "params/norm/scale is bfloat16[5] in it and bfloat16[6]": lambda s: with_leaf(
        s, norm={"scale": jnp.zeros(6, jnp.bfloat16)}
    ),
    "params/norm/scale is bfloat16[5] in it and float32[5]": lambda s: with_leaf(
        s, norm={"scale": jnp.zeros(5)}
    ),
    "params/bias is absent in it and float32[2]": lambda s: with_leaf(s, bias=jnp.zeros(2)),
    "params/head/kernel is float32[4, 8] in it and absent": lambda s: s.replace(
        params={"norm": s.params["norm"]}
    ),
    "opt_state/2 is uint32[] in it and absent": lambda s: s.replace(opt_state=s.opt_state[:2]),
    "ref_params/w is absent in it and float32[2]": lambda s: s.replace(
        ref_params={"w": jnp.zeros(2)}
    ),
}


@pytest.mark.parametrize("message", MISFITS)
def test_a_state_that_does_not_fit_is_refused_by_leaf(saved, tmp_path, message):
    like = MISFITS[message](make_state(2))
    manager = open_checkpoints(shutil.copytree(saved, tmp_path / "run"), keep=1)
    with pytest.raises(ValueError) as caught:
        restore(manager, like, pytest.fail)
    close(manager)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    if message.startswith("params"):
        with pytest.raises(ValueError) as caught:
            restore_params(saved, like.params, pytest.fail)
        assert message in str(caught.value)


def test_parameters_load_alone_by_step_newest_or_best(tmp_path):
    save_all(tmp_path, {1: 0.5, 2: 0.75, 3: 0.75, 4: None})
    like = shape_of(make_state(1).params)
    for which, step in (("newest", 4), ("best", 3), (1, 1)):
        params, found = restore_params(tmp_path, like, pytest.fail, which)
        assert found == step
        assert_same(params, make_state(step).params)
    with pytest.raises(ValueError, match=r"no checkpoint 9 in .*; its steps: \[1, 2, 3, 4\]"):
        restore_params(tmp_path, like, pytest.fail, 9)
    (tmp_path / "3" / "manifest.txt").unlink()  # its accuracy is lost with it
    said = []
    assert restore_params(tmp_path, like, said.append, "best")[1] == 2
    assert "checkpoint 3 " in said[0]
    with pytest.raises(ValueError, match=r"3: manifest.txt: No such file"):
        restore_params(tmp_path, like, pytest.fail, 3)


def test_no_best_without_an_evaluated_checkpoint(saved, tmp_path):
    with pytest.raises(ValueError, match="no checkpoint 'best' in"):
        restore_params(saved, make_state(1).params, pytest.fail, "best")
    with pytest.raises(ValueError, match="no checkpoint 'newest' in"):
        restore_params(tmp_path / "none", make_state(1).params, pytest.fail)


def test_leftovers_of_killed_saves_and_deletions_are_removed_and_nothing_else(tmp_path):
    leftovers = ["7.unfinished", "7.unfinished.orbax-checkpoint-tmp", "3.removed"]
    others = ["5.damaged", "notes", "unfinished"]
    for name in leftovers + others:
        (tmp_path / name / "d").mkdir(parents=True)
    close(open_checkpoints(tmp_path, keep=1))
    assert folders(tmp_path) == others


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="need a folder that can be written, got .*file"):
        open_checkpoints(tmp_path / "file" / "checkpoints", keep=1)


@pytest.mark.parametrize("accuracy", [-0.1, 1.5, float("nan")])
def test_accuracy_outside_0_to_1_is_refused(manager, accuracy):
    with pytest.raises(ValueError, match=r"accuracy must be in \[0, 1\]"):
        save(manager, 1, make_state(1), accuracy)


CHILD = """
    import os, signal, sys, resource
    import jax, numpy as np
    import jax.numpy as jnp
    from grpojax.checkpoint import close, open_checkpoints, restore, save
    from grpojax.types import TrainState

    folder, until = sys.argv[1:]
    number = jnp.int32(0)
    large = jnp.asarray(np.random.default_rng(0).integers(0, 2**32, 12 * 2**20, dtype=np.uint32))
    def state(step, leaf):
        return TrainState(
            step=jnp.int32(step), update=number, skipped=number, params={"w": leaf},
            opt_state=None, ref_params=None,
        )
    manager = open_checkpoints(folder, keep=1)
    save(manager, 1, state(1, large), 0.5)
    restore(manager, state(1, large), print)
"""
KILL = """
    save(manager, 2, state(2, large), 0.75)
    while not os.path.exists(os.path.join(folder, until)):
        pass
    os.kill(os.getpid(), signal.SIGKILL)
"""
FULL = """
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**22, 2**22))  # like a full disk, from here on
    save(manager, 2, state(2, large), 0.75)
    try:
        if until == "save":
            save(manager, 3, state(3, large[:9]), 0.75)
        else:
            close(manager)
    except OSError as error:
        print(error)
    if until == "save":
        save(manager, 3, state(3, large[:9]), 0.5)
        close(manager)
"""


def run_child(code, *arguments):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(CHILD + code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("moment", ["2.unfinished.orbax-checkpoint-tmp", "2.unfinished"])
def test_a_save_killed_half_way_leaves_the_older_checkpoint_in_use(tmp_path, moment):
    child = run_child(KILL, tmp_path, moment)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert moment in folders(tmp_path) and "2" not in folders(tmp_path)
    manager = open_checkpoints(tmp_path, keep=1)
    assert folders(tmp_path) == ["1"]
    words = np.random.default_rng(0).integers(0, 2**32, 12 * 2**20, dtype=np.uint32)
    state = make_state(1).replace(params={"w": jnp.asarray(words)}, opt_state=None)
    restored, step = restore(manager, shape_of(state), pytest.fail)
    assert step == 1
    np.testing.assert_array_equal(restored.params["w"], words)
    save(manager, 2, make_state(2), 0.75)
    assert restore(manager, make_state(2), pytest.fail)[1] == 2
    close(manager)


@pytest.mark.parametrize("surfaces", ["save", "close"])
def test_a_full_disk_is_one_error_of_the_next_call_and_costs_no_checkpoint(tmp_path, surfaces):
    child = run_child(FULL, tmp_path, surfaces)
    assert child.returncode == 0 and child.stderr == "", child.stderr
    assert len(child.stdout.splitlines()) == 1, child.stdout
    assert f"checkpoint {tmp_path}/2 was not saved" in child.stdout
    assert folders(tmp_path) == (["1", "3"] if surfaces == "save" else ["1"])[-1:]
    manager = open_checkpoints(tmp_path, keep=1)
    close(manager)
