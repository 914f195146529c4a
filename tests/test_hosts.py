"""Hosts: two processes make the run that one makes with as many devices, and end together."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from test_resume import CONFIG, ROOT, state_of, without_times

from grpojax.arguments import HostsArguments
from grpojax.metrics import read_groups
from grpojax.run import read_config

DEVICES, STEPS, HEARTBEAT = 4, 4, 5
CONFIG = (
    CONFIG.replace("steps=10", f"steps={STEPS}")
    .replace("prompts_per_step=4", "prompts_per_step=8")
    .replace("every=4, examples=6", "every=3, examples=5")
)

# What each host judges is in a file of its own. SIGNAL: host, call of its reward, what it sends to
# itself then.
JUDGE = """
import itertools, os, signal
import jax

calls = itertools.count(1)
host, call, name = os.environ.get("SIGNAL", "-1 0 SIGTERM").split()

def variety(example, completion):
    index = jax.process_index()
    with open(f"judged.{index}", "a") as file:
        file.write(f"{example.id}\\\\n")
    if index == int(host) and next(calls) == int(call):
        os.kill(os.getpid(), signal.Signals[name])
    return len(set(completion)) / 12
""".replace("\\\\", "\\")


def start(folder, args, hosts: int, index: int, port: int, **environment) -> subprocess.Popen:
    """One host of a run in `folder`, with its part of the devices."""
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
    flags = f"--xla_force_host_platform_device_count={DEVICES // hosts}"
    environment |= {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": cache}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PLATFORMS": "cpu"}
    environment |= {"XLA_FLAGS": f"{flags} --xla_backend_optimization_level=0"}
    if hosts > 1:
        args = [*args, "--hosts.coordinator", f"127.0.0.1:{port}", "--hosts.count", str(hosts)]
        args += ["--hosts.index", str(index), "--hosts.heartbeat", str(HEARTBEAT)]
    command = [sys.executable, "-m", "grpojax", *args]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=os.environ | environment, **pipes)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def together(folder, args, hosts: int, **environment) -> list[tuple[int, str, str, float]]:
    """Code, output, errors and time of the end of each host."""
    port = free_port()
    processes = [start(folder, args, hosts, i, port, **environment) for i in range(hosts)]
    ends: dict[int, float] = {}
    try:
        limit = time.monotonic() + 300
        while len(ends) < hosts and time.monotonic() < limit:
            for i, process in enumerate(processes):
                if i not in ends and process.poll() is not None:
                    ends[i] = time.monotonic()
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
    said = [process.communicate() for process in processes]
    return [(p.returncode, *said[i], ends.get(i, np.inf)) for i, p in enumerate(processes)]


def own_lines(said: str) -> list[str]:
    """What a host itself wrote to its output. Gloo's threads write there too, piece by piece and
    into one another's lines."""
    pieces = ("[Gloo] Rank ", " is connected to ", " peer ranks. ")
    for piece in (*pieces, "Expected number of connected peer ranks is : "):
        said = said.replace(piece, "")
    return [line for line in said.splitlines() if re.search(r"\D", line)]


def train(name):
    return ["train", "config.py", "--workdir", name]


def codes(ended):
    assert {code for code, *_ in ended} != {1}, ended
    return [code for code, *_ in ended]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Run directories: of one process; of two that went on with it, were asked to end, and went on;
    of two of which one was killed."""
    folder = tmp_path_factory.mktemp("hosts")
    (folder / "config.py").write_text(CONFIG)
    (folder / "judge.py").write_text(JUDGE)
    assert codes(together(folder, train("alone"), 1)) == [0]
    shutil.copytree(folder / "alone", folder / "resumed")
    shutil.rmtree(folder / "resumed" / "checkpoints" / str(STEPS))
    for path in folder.glob("judged.*"):
        path.unlink()
    return folder


@pytest.fixture(scope="module")
def resumed(folder):
    """What two hosts said that went on from step 2, until one was asked to end; and then again."""
    asked = together(folder, train("resumed"), 2, SIGNAL="1 3 SIGTERM")
    kept = sorted(path.name for path in (folder / "resumed" / "checkpoints").iterdir())
    return asked, kept, together(folder, train("resumed"), 2)


def test_a_signal_to_one_host_ends_all_after_the_same_step_with_a_checkpoint(resumed):
    asked, kept, _ = resumed
    assert codes(asked) == [75, 75]
    assert kept == ["2", "3"]


def assert_same_numbers(workdir, expected):
    """To 1e-5, of all that a clock did not measure."""
    ours, theirs = without_times(workdir), without_times(expected)
    theirs = theirs[: len(ours)]
    assert [line.keys() for line in ours] == [line.keys() for line in theirs]
    for line, other in zip(ours, theirs):
        for name, value in line.items():
            np.testing.assert_allclose(value, other[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_two_hosts_go_on_with_the_run_of_one_as_one_does(folder, resumed):
    _, _, ended = resumed
    assert codes(ended) == [0, 0]
    assert_same_numbers(folder / "resumed", folder / "alone")
    config = read_config(folder / "alone")
    ours, theirs = (state_of(folder / name, config) for name in ("resumed", "alone"))
    for name, leaf in theirs.items():
        np.testing.assert_allclose(ours[name], leaf, rtol=1e-5, atol=1e-5, err_msg=name)
    for step in (2, 4):
        ours, theirs = (read_groups(folder / name, step) for name in ("resumed", "alone"))
        assert [group["texts"] for group in ours] == [group["texts"] for group in theirs]


def test_the_config_on_disk_says_nothing_of_hosts(folder, resumed):
    about = [json.loads((folder / n / "config.json").read_text()) for n in ("resumed", "alone")]
    assert about[0]["config"] == about[1]["config"]


def test_each_host_judges_groups_of_its_own_and_the_first_alone_writes(folder, resumed):
    judged = [(folder / f"judged.{i}").read_text().split() for i in (0, 1)]
    assert len(judged[0]) == len(judged[1]) > 0
    assert set(judged[0]).isdisjoint(judged[1])
    *_, (_, said, errors, _) = resumed[-1]
    assert own_lines(said) == []
    assert "Traceback" not in errors
    assert "step 4/4" in resumed[-1][0][1]


@pytest.fixture(scope="module")
def killed(folder):
    """Two new hosts, of which the second is killed in its second step."""
    return together(folder, train("killed"), 2, SIGNAL="1 20 SIGKILL")


def test_two_new_hosts_begin_as_one_does(folder, killed):
    lines = without_times(folder / "killed")
    assert lines[-1]["step"] == 1 and "loss" in lines[-1]
    assert_same_numbers(folder / "killed", folder / "alone")


def test_when_a_host_is_killed_the_other_ends_within_two_heartbeats_and_says_why(killed):
    (code, _, errors, end), (killed_code, _, _, killed_at) = killed
    assert killed_code == -signal.SIGKILL
    assert end - killed_at < 2 * HEARTBEAT
    assert code not in (0, 2, 75)
    assert "lost touch with another host" in errors or "another task died" in errors


WRONG = [
    ({"coordinator": "10.0.0.1"}, "hosts.coordinator must be host:port"),
    ({"coordinator": "10.0.0.1:x", "count": 2}, "hosts.coordinator must be host:port"),
    ({"coordinator": "10.0.0.1:70000", "count": 2}, "hosts.coordinator must be host:port"),
    ({"coordinator": "10.0.0.1:80"}, "need each other, got '10.0.0.1:80' and 1"),
    ({"count": 2}, "need each other, got '' and 2"),
    ({"coordinator": "a:80", "count": 2, "index": 2}, "from 0 to hosts.count - 1 = 1, got 2"),
    ({"heartbeat": 0}, "heartbeat must be above 0"),
]


@pytest.mark.parametrize(("flags", "said"), WRONG, ids=[str(flags) for flags, _ in WRONG])
def test_wrong_flags_are_refused(flags, said):
    with pytest.raises(ValueError) as refused:
        HostsArguments(**flags)
    assert said in str(refused.value)


def test_a_host_whose_others_do_not_appear_says_where_it_waits_and_ends(tmp_path):
    (tmp_path / "config.py").write_text(CONFIG)
    (tmp_path / "judge.py").write_text(JUDGE)
    port = free_port()
    process = start(tmp_path, [*train("alone"), "--hosts.patience", "2"], 2, 1, port)
    _, errors = process.communicate(timeout=60)
    assert process.returncode not in (0, 75)
    said = f"host 1 of 2 waits up to 2 s for all to meet at 127.0.0.1:{port}\n"
    assert errors.startswith(said)
    assert not (tmp_path / "alone").exists()
