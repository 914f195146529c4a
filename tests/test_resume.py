"""Resume: a run broken off anywhere and started again equals the run that never was.

The reward, a user's code, breaks its own process off: always at the same place, in mid-step.
"""

import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax.core import meta

from grpojax.checkpoint import close, open_checkpoints, restore
from grpojax.config import Config
from grpojax.iteration import reward_optimizer
from grpojax.learner import fresh_state
from grpojax.metrics import read_metrics
from grpojax.model import Policy, init_params
from grpojax.optimizer import make_optimizer
from grpojax.run import read_config
from grpojax.scalar import ScalarModel, fresh_scalar_state, init_scalar
from grpojax.types import TrainState

ROOT = pathlib.Path(__file__).parent.parent
STEPS, EVERY, ROWS = 10, 2, 16  # ROWS: completions of a step, so calls of the reward

CONFIG = f"""
from grpojax.config import *

def get_config():
    return Config(
        task="addition", rewards={{"judge:variety": 1.0}}, steps={STEPS}, seed=3,
        model=ModelConfig(vocab_size=64, embed_dim=32, ffw_dim=48, num_layers=2, num_heads=2,
                          num_kv_heads=1, head_dim=16, max_length=64),
        sampling=SamplingConfig(prompt_length=8, completion_length=12),
        grpo=GRPOConfig(prompts_per_step=4, group_size=4, beta=0.05, minibatches=2,
                        reference="refreshed", reference_every=3),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_updates=4, schedule="linear"),
        evaluation=EvaluationConfig(every=4, examples=6, samples=2),
        checkpoint=CheckpointConfig(every={EVERY}, keep=2),
        logging=LoggingConfig(completions_every=2, tensorboard=False),
    )
"""

# SIGNALS: the number of a call of the reward, and what it sends to its own process then.
# KILL_IN_SAVE: the folder of an unfinished checkpoint, whose first file is the end.
JUDGE = """
import itertools, os, pathlib, signal, threading, time

calls = itertools.count(1)
call, *signals = os.environ.get("SIGNALS", "0").split()

def variety(example, completion):
    if next(calls) == int(call):
        for name in signals:
            os.kill(os.getpid(), signal.Signals[name])
            time.sleep(0.3)  # two at once would be one
    return len(set(completion)) / 12

def kill_in_save(folder):
    while not list(folder.glob("*/*")):
        pass
    os.kill(os.getpid(), signal.SIGKILL)

if "KILL_IN_SAVE" in os.environ:
    folder = pathlib.Path(os.environ["KILL_IN_SAVE"])
    threading.Thread(target=kill_in_save, args=[folder], daemon=True).start()
"""

FINISH = """
import sys
from grpojax.__main__ import main
sys.exit(any([main(["train", "config.py", "--workdir", name]) for name in sys.argv[1:]]))
"""

BROKEN = {  # how a run ends: its environment, and its exit code
    "killed in the first step": ({"SIGNALS": "5 SIGKILL"}, -signal.SIGKILL),
    "killed in a later step": ({"SIGNALS": f"{6 * ROWS + 5} SIGKILL"}, -signal.SIGKILL),
    "killed in a save": ({"KILL_IN_SAVE": "checkpoints/6.unfinished"}, -signal.SIGKILL),
    "asked to end": ({"SIGNALS": f"{4 * ROWS + 5} SIGTERM"}, 75),
    "asked to end twice": ({"SIGNALS": f"{4 * ROWS + 5} SIGTERM SIGTERM"}, -signal.SIGTERM),
}


def grpojax(folder, *args, **environment) -> subprocess.CompletedProcess:
    """Runs `python *args` in `folder`, on one device, with the package and the test's files."""
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
    environment |= {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": cache}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, *args]
    return subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True
    )


def restored(workdir, config: Config) -> TrainState:
    """The newest checkpoint, which is that of the last step."""
    optimizer = make_optimizer(config.optimizer, config.updates)

    def build():
        params = meta.unbox(init_params(Policy(config.model), jax.random.key(0)))
        state = fresh_state(params, optimizer, config.grpo.beta > 0)
        scalar = meta.unbox(init_scalar(ScalarModel(config.model), jax.random.key(0)))
        if config.algorithm == "ppo":
            critic_optimizer = make_optimizer(config.ppo.critic, config.updates)
            state = state.replace(critic=fresh_scalar_state(scalar, critic_optimizer))
        if config.reward_model.every:
            learnt = fresh_scalar_state(scalar, reward_optimizer(config))
            state = state.replace(reward_model=learnt)
        return state.replace(older_params=params if config.grpo.lag else None)

    checkpoints = open_checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep)
    try:
        state, step = restore(checkpoints, jax.eval_shape(build), print)
    finally:
        close(checkpoints)
    assert step == config.steps
    return state


def state_of(workdir, config: Config) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint, by name."""
    leaves, _ = jax.tree.flatten_with_path(jax.device_get(restored(workdir, config)))
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


TIMED = ("time/", "step_time", "flops_per_second/", "bytes_per_second/", "roofline/")


def without_times(workdir) -> list[dict[str, float]]:
    """The lines of metrics.jsonl, all that a clock did not measure."""
    return [
        {name: x for name, x in line.items() if not name.startswith(TIMED)}
        for line in read_metrics(workdir)
    ]


def assert_equal_runs(workdir, expected):
    """Equal bit for bit: parameters, optimizer, reference, counters, metrics, completions."""
    config = read_config(expected)
    ours, theirs = state_of(workdir, config), state_of(expected, config)
    assert ours.keys() == theirs.keys()
    for name, leaf in theirs.items():
        assert leaf.dtype == ours[name].dtype
        assert leaf.tobytes() == ours[name].tobytes(), name
    np.testing.assert_equal(without_times(workdir), without_times(expected))
    groups = [
        {path.name: path.read_bytes() for path in (folder / "completions").iterdir()}
        for folder in (workdir, expected)
    ]
    assert groups[0] == groups[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Run directories: one of an uninterrupted run, and one of each of BROKEN, gone on with."""
    folder = tmp_path_factory.mktemp("resume")
    (folder / "config.py").write_text(CONFIG)
    (folder / "judge.py").write_text(JUDGE)
    for name, (environment, code) in BROKEN.items():
        if "KILL_IN_SAVE" in environment:
            environment = {"KILL_IN_SAVE": str(folder / name / environment["KILL_IN_SAVE"])}
        args = ["-m", "grpojax", "train", "config.py", "--workdir", name]
        ended = grpojax(folder, *args, **environment)
        assert ended.returncode == code, ended.stderr
        (folder / f"{name}.txt").write_text(ended.stdout)
        shutil.copytree(folder / name, folder / f"{name}.broken")
    ended = grpojax(folder, "-c", FINISH, "uninterrupted", *BROKEN)
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.mark.parametrize("name", BROKEN)
def test_a_run_that_goes_on_equals_the_uninterrupted_one(folder, name):
    assert_equal_runs(folder / name, folder / "uninterrupted")


def test_the_runs_were_broken_off_where_they_should_have_been(folder):
    def saved(name):
        return {path.name for path in (folder / f"{name}.broken" / "checkpoints").iterdir()}

    assert saved("killed in the first step") == set()
    assert "4" in saved("killed in a later step")
    assert "6.unfinished" in saved("killed in a save") and "6" not in saved("killed in a save")
    assert "5" in saved("asked to end")  # no multiple of EVERY
    assert saved("asked to end twice").isdisjoint({"5", "6"})


def test_uninterrupted_run_moves_every_part_of_its_state(folder):
    state = state_of(folder / "uninterrupted", read_config(folder / "uninterrupted"))
    assert (state[".step"], state[".update"], state[".skipped"]) == (STEPS, 2 * STEPS, 0)
    moved = [name for name in state if name.startswith(".params")]
    assert len(moved) == 11
    for name in moved:
        ref = state[name.replace(".params", ".ref_params")]
        assert not np.array_equal(state[name], ref), name
