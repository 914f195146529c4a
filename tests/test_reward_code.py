"""The reward of programs: tests run in a sandbox, and where there is none nothing runs."""

import shutil
import socket
import subprocess
import time

import pytest

from grpojax.rewards import choose_rewards
from grpojax.rewards.accuracy import last_number
from grpojax.rewards.code import check_sandbox, code_passes_tests, run_tests
from grpojax.task import Example, Task

TESTS = "assert f(1) == 2\nassert f(2) == 3"
TASK = Task(splits={}, rewards={"accuracy": last_number})
NAME = "grpojax.rewards.code:code_passes_tests"


def works() -> bool:
    """Whether this machine has a sandbox. Each test below asserts the refusal where it has none."""
    try:
        check_sandbox()
    except ValueError as error:
        assert "the reward code_passes_tests needs" in str(error) and "\n" not in str(error)
        return False
    return True


SANDBOX = works()


def test_where_bubblewrap_can_make_namespaces_there_is_a_sandbox():
    command = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "true"]
    able = shutil.which("bwrap") and subprocess.run(command, check=False).returncode == 0
    assert able or not SANDBOX
    assert SANDBOX or not able


def block(program):
    return f"First:\n```python\nnothing\n```\nNo, rather:\n```python\n{program}\n```\nDone."


def judged(completion, answer=TESTS):
    example = Example(id=1, prompt="", answer=answer)
    if SANDBOX:
        return code_passes_tests(example, completion)
    if "```" in completion:
        with pytest.raises((OSError, RuntimeError)):
            code_passes_tests(example, completion)
    return None


def agree(value, expected):
    """The value is as expected where there is a sandbox; without one there is no value."""
    return value == expected if SANDBOX else value is None


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("def f(x):\n    return x + 1", 1.0),
        ("import math\n\ndef f(x):\n    return math.floor(x + 1.5)", 1.0),
        ("print('begun')\ndef f(x):\n    return x + 1\nif __name__ == '__main__':\n    1 / 0", 1.0),
        ("def f(x):\n    return 2", 0.0),
        ("def g(x):\n    return x + 1", 0.0),
        ("def f(x:", 0.0),
        ("raise SystemExit(0)", 0.0),
        ("import os\nos._exit(0)", 0.0),
        ("f = 1 / 0", 0.0),
        ("def f(x):\n    return len('x' * 10**10) and x + 1", 0.0),
        ("import os\nfor i in range(3, 20):\n    try:\n        os.write(i, b'x' * 10**6)\n"
         "    except OSError:\n        pass", 0.0),
    ],
)  # fmt: skip
def test_the_last_block_passes_or_not(program, expected):
    assert agree(judged(block(program)), expected)


@pytest.mark.parametrize("completion", ["", "def f(x): return x + 1", "```python\nopen", "```"])
def test_a_completion_without_a_block_is_wrong(completion):
    example = Example(id=1, prompt="", answer=TESTS)
    assert code_passes_tests(example, completion) == 0.0


def test_an_example_without_tests_is_never_right():
    with pytest.raises(ValueError, match="must have tests"):
        code_passes_tests(Example(id=1, prompt="", answer=" "), block("f = 1"))


def test_the_sandbox_hides_files_and_network_and_writes_nowhere(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("x")
    home = [str(secret), "/etc/passwd", __file__]
    places = [str(tmp_path / "left"), "/left", "/usr/left", "/dev/shm/left"]
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    program = f"""
import os, socket
def f(x):
    assert not any(os.path.exists(path) for path in {home!r})
    assert os.listdir("/tmp") == [] and os.environ.get("HOME") is None
    for place in {places!r}:
        try:
            open(place, "w")
        except OSError:
            continue
        return 0
    with socket.socket() as one:
        one.settimeout(1)
        if one.connect_ex(("127.0.0.1", {port})) == 0:
            return 0
    return len([name for name in os.listdir("/proc") if name.isdigit()])
"""
    assert agree(judged(block(program), "assert 1 <= f(0) <= 3"), 1.0)
    listening.close()
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


def test_temporary_files_are_bounded():
    program = "def f(name, n):\n    open(name, 'wb').write(b'x' * n * 2**20)"
    assert agree(judged(block(program), "f('x', 40)"), 1.0)
    assert agree(judged(block(program), "f('x', 80)"), 0.0)
    assert agree(judged(block(program), "f('x', 40)\nf('y', 40)"), 0.0)


def test_too_much_processor_time_is_wrong_and_too_much_time_on_the_clock_says_nothing():
    if not SANDBOX:
        assert judged(block("while True: pass")) is None
        return
    start = time.monotonic()
    assert run_tests("while True: pass", "", seconds=1, clock=60.0) is False
    with pytest.raises(TimeoutError, match="did not end within 1 s"):
        run_tests("import time\ntime.sleep(60)", "", seconds=1, clock=1.0)
    assert time.monotonic() - start < 40


def test_without_bubblewrap_the_reward_is_refused_before_anything_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("bwrap") is None
    with pytest.raises(
        ValueError, match=r"needs bubblewrap .* there is no bwrap; install"
    ) as error:
        choose_rewards([NAME], TASK)
    assert "\n" not in str(error.value)
    with pytest.raises(RuntimeError, match="there is no bwrap"):
        run_tests(f"open({str(tmp_path / 'left')!r}, 'w')", "", seconds=1, clock=9.0)
    assert not list(tmp_path.iterdir())


def test_a_bubblewrap_that_does_not_work_is_refused(monkeypatch, tmp_path):
    (tmp_path / "bwrap").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"needs bubblewrap .* the sandbox did not run"):
        choose_rewards([NAME], TASK)
