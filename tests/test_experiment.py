"""Experiments: cells run once, in order, whatever interrupts or fails; intervals done by hand."""

import dataclasses
import importlib.machinery
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time

import jax
import pytest

from grpojax.comparison import as_table, compare, paired_differences, t_interval
from grpojax.config import Config, GRPOConfig
from grpojax.experiment import STOPPED, Cell, locked, main, run_all, state_of, wait_for
from grpojax.metrics import MetricsWriter, read_metrics
from grpojax.signals import stop_requested
from grpojax.train import STOPPED as STOPPED_BY_TRAIN

METRICS = ("test/accuracy",)
BASELINE = {"group_size": 2}


def cell(group_size: int, seed: int) -> Cell:
    config = Config(seed=seed, steps=2, grpo=GRPOConfig(group_size=group_size))
    return Cell(factors={"group_size": group_size}, config=config)


CELLS = [cell(group_size, seed) for seed in (0, 1) for group_size in (2, 4)]


def record(workdir, cell: Cell, accuracy: float, step: int = 2) -> None:
    """What a run of the cell leaves behind when it ends after `step` steps."""
    folder = workdir / cell.name
    with MetricsWriter(folder, 0, tensorboard=False) as writer:
        writer.write(0, {"test/accuracy": 0.25})
        writer.write(step, {"test/accuracy": accuracy})
    about = {"config": dataclasses.asdict(cell.config), "commit": "abc"}
    (folder / "config.json").write_text(json.dumps(about))


def command_line(cells: list[Cell], folder, *argv: str) -> int:
    spec = importlib.machinery.ModuleSpec("questions.small", None, origin=str(folder / "small.py"))
    argv = [*argv, "--workdir", str(folder / "runs")]
    return main(cells, spec, metrics=METRICS, baseline=BASELINE, argv=argv)


def test_list_shows_every_cell_in_its_order_with_its_state(tmp_path, capsys):
    record(tmp_path / "runs", CELLS[1], 0.5)
    record(tmp_path / "runs", CELLS[2], 0.5, step=1)
    wider = dataclasses.replace(CELLS[3].config, init="elsewhere")
    record(tmp_path / "runs", dataclasses.replace(CELLS[3], config=wider), 0.5)
    for _ in range(2):
        assert command_line(CELLS, tmp_path, "--list") == 0
        assert capsys.readouterr().out.splitlines() == [
            "  0  group_size=2,seed=0  not begun",
            "  1  group_size=4,seed=0  done",
            "  2  group_size=2,seed=1  begun",
            "  3  group_size=4,seed=1  other config",
        ]


def test_an_index_that_no_cell_has_is_refused(tmp_path, capsys):
    for index in ("4", "-1"):
        with pytest.raises(SystemExit, match="2"):
            command_line(CELLS, tmp_path, "--index", index)
        assert f"--index must be from 0 to 3, got {index}" in capsys.readouterr().err


def test_two_cells_of_one_name_and_a_baseline_without_cells_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"got \['group_size=2,seed=0'\] twice"):
        command_line([*CELLS, CELLS[0]], tmp_path, "--list")
    with pytest.raises(ValueError, match=r"baseline .* got \{'group_size': 2\}"):
        command_line(CELLS[1::2], tmp_path, "--list")


def test_t_interval_equals_the_one_worked_by_hand():
    # s² = (2.25 + 0.25 + 0.25 + 2.25) / 3, and a table of Student's t gives t(0.975, 3) = 3.182446.
    mean, half, n = t_interval([4.0, 1.0, 3.0, 2.0])
    assert (mean, n) == (2.5, 4)
    assert half == pytest.approx(3.182446 * math.sqrt(5 / 3) / 2, rel=1e-6)
    # With two values t(0.975, 1) = 12.706205 and s / √n is half of their distance.
    assert t_interval([0.0, 2.0]) == (1.0, pytest.approx(12.706205, rel=1e-6), 2)


def test_too_few_values_give_no_interval():
    mean, half, n = t_interval([0.5])
    assert (mean, n) == (0.5, 1) and math.isnan(half)
    assert math.isnan(t_interval([])[0])


def rows(values: dict[tuple[int, int], float | None]) -> list[dict]:
    return [
        {
            "factors": {"group_size": group_size},
            "seed": seed,
            "last": None if value is None else {"test/accuracy": value},
        }
        for (group_size, seed), value in values.items()
    ]


def test_differences_are_within_a_seed_whatever_the_order_of_the_cells():
    assert paired_differences({2: 0.5, 0: 0.25}, {0: 0.125, 1: 9.0, 2: 0.0}) == [0.5, 0.125]
    found = rows({(2, 0): 0.0, (2, 1): 0.5, (4, 1): 0.75, (4, 0): 0.25})
    baseline, other = (entry["test/accuracy"] for entry in compare(found, METRICS, BASELINE))
    # Unpaired, the values differ by 0.25 too, but not by the same in both seeds.
    assert other["difference"] == (0.25, 0.0, 2)
    assert "difference" not in baseline
    assert other["mean"][1] == pytest.approx(12.706205 * 0.25, rel=1e-6)


def test_a_seed_without_its_pair_is_left_out_and_the_table_says_so():
    found = rows({(2, 0): 0.0, (2, 1): 0.5, (2, 2): None, (4, 0): 0.25, (4, 1): None, (4, 2): 1.0})
    entries = compare(found, METRICS, BASELINE)
    assert entries[1]["test/accuracy"]["difference"][::2] == (0.25, 1)
    *_, first, second = as_table(entries, METRICS).splitlines()
    assert first == "| 2 | 0.250 ± 3.177 (2 of 3 seeds) | baseline |"
    assert second == "| 4 | 0.625 ± 4.765 (2 of 3 seeds) | +0.250 (1 of 3 seeds) |"


def test_summarize_says_which_cells_are_missing_and_writes_what_is_there(tmp_path, capsys):
    for each, accuracy in zip(CELLS[:3], (0.5, 0.75, 0.25)):
        record(tmp_path / "runs", each, accuracy)
    assert command_line(CELLS, tmp_path, "--summarize") == 0
    said = capsys.readouterr().out
    assert "| 4 | 0.750 (1 of 2 seeds) | +0.250 (1 of 2 seeds) |" in said
    assert said.count("missing: ") == 1 and "missing: group_size=4,seed=1 (not begun)" in said
    written = json.loads((tmp_path / "small.json").read_text())
    assert written["cells"][1]["first"] == {"test/accuracy": 0.25}
    assert [row["last"] for row in written["cells"]] == [
        *({"test/accuracy": accuracy} for accuracy in (0.5, 0.75, 0.25)),
        None,
    ]
    assert written["combinations"][1]["test/accuracy"]["difference"] == [0.25, None, 1]


# Stands for a cell's process: notes that it ran, leaves what a run that ended well would, and exits
# with the code wanted of it.
PROCESS = """
import shutil, sys
folder, codes, _, index, _, workdir = sys.argv[1:]
print(index, file=open(f"{folder}/ran", "a"))
code = int(codes.split()[int(index)])
if code == 0:
    shutil.copytree(f"{folder}/{index}", workdir, dirs_exist_ok=True)
sys.exit(code)
"""


@pytest.fixture
def run_cells(tmp_path):
    """`run_cells(codes)`: `--all` of cells that exit with these codes; its own, and who was run."""
    for i, each in enumerate(CELLS):
        record(tmp_path / str(i), each, 0.5)

    def run_cells(codes: str) -> tuple[int, list[int]]:
        ran = tmp_path / "ran"
        ran.write_text("")
        command = [sys.executable, "-c", PROCESS, str(tmp_path), codes]
        code = run_all(CELLS, tmp_path / "runs", METRICS, command)
        return code, [int(line) for line in ran.read_text().split()]

    return run_cells


def test_a_failing_cell_is_said_and_does_not_stop_the_others(run_cells, capsys):
    assert run_cells("0 1 2 0") == (1, [0, 1, 2, 3])
    said = capsys.readouterr().out.splitlines()
    assert said[-3:] == [
        "2 cells run, 2 failed",
        "failed: group_size=4,seed=0 (exit code 1)",
        "failed: group_size=2,seed=1 (exit code 2)",
    ]


def test_all_after_an_interruption_runs_only_what_is_missing(run_cells):
    assert STOPPED == STOPPED_BY_TRAIN == 75
    assert run_cells("0 75 0 0") == (75, [0, 1])
    assert run_cells("0 0 0 75") == (75, [1, 2, 3])
    assert run_cells("0 0 0 0") == (0, [3])
    assert run_cells("0 0 0 0") == (0, [])


def test_a_cell_that_ends_well_without_its_metric_has_failed(run_cells, tmp_path, capsys):
    record(tmp_path / "3", CELLS[3], 0.5, step=1)
    assert run_cells("0 0 0 0") == (1, [0, 1, 2, 3])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "failed: group_size=4,seed=1 (begun: without test/accuracy at its last step)"


def test_a_stop_reaches_the_running_cell_once_and_is_waited_for(tmp_path):
    script = """import signal, sys, time
count = []
signal.signal(signal.SIGTERM, lambda *_: count.append(1))
signal.signal(signal.SIGINT, lambda *_: count.append(1))
open(sys.argv[1], "w").close()
end = time.time() + 10
while not count and time.time() < end:
    time.sleep(0.01)
time.sleep(0.3)
sys.exit(70 + len(count))
"""
    ready = tmp_path / "ready"

    def interrupt():
        while not ready.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with stop_requested("") as requested:
        assert wait_for([sys.executable, "-c", script, str(ready)], requested) == 71
    thread.join()


def test_a_folder_that_one_process_runs_is_waited_for(tmp_path):
    order = []

    def second():
        with locked(tmp_path / "cell"):
            order.append("second")

    with locked(tmp_path / "cell"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


SMALL = """
import dataclasses, sys
from grpojax.config import *
from grpojax.experiment import Cell, main
from grpojax.task import Example, Task

def easy(data):
    examples = [Example(id=i, prompt=f"{i}", answer="", completion="ab") for i in range(8)]
    splits = {"train": examples[:4], "validation": examples[4:6], "test": examples[6:]}
    return Task(splits=splits, rewards={"accuracy": lambda example, completion: 1.0})

CONFIG = Config(
    task="small:easy", rewards={"accuracy": 1.0}, tokenizer="bytes", steps=2,
    model=ModelConfig(
        vocab_size=258, embed_dim=16, ffw_dim=16, num_layers=1, num_heads=2, head_dim=8
    ),
    sampling=SamplingConfig(prompt_length=4, completion_length=3),
    grpo=GRPOConfig(prompts_per_step=2, group_size=2, beta=0.0),
    evaluation=EvaluationConfig(every=0, examples=2, samples=2),
    sft=SFTConfig(max_steps=2, check_every=2, examples_per_step=2),
)

def cell(task, steps):
    config = dataclasses.replace(CONFIG, task=task, steps=steps)
    return Cell(factors={"task": task, "steps": steps}, config=config, before=CONFIG)

CELLS = [cell("small:absent", 2), cell("small:easy", 2)]

if __name__ == "__main__":
    baseline = {"task": "small:easy", "steps": 2}
    sys.exit(main(CELLS, __spec__, metrics=("test/accuracy",), baseline=baseline))
"""


@pytest.mark.long
def test_cells_of_a_seed_start_from_one_supervised_stage(tmp_path, monkeypatch):
    (tmp_path / "small.py").write_text(SMALL)
    cache = {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    done = subprocess.run(
        [sys.executable, "-m", "small", "--all", "--workdir", "runs"],
        cwd=tmp_path, env={**os.environ, **cache}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert done.stdout.endswith(
        "1 cells run, 1 failed\nfailed: task=small:absent,steps=2,seed=0 (exit code 1)\n"
    )
    assert "ValueError" in done.stderr and "small:absent" in done.stderr
    runs = tmp_path / "runs"
    stages = [path for path in runs.iterdir() if path.is_dir() and "cold_start" in path.name]
    assert [path.name for path in stages] == ["cold_start,seed=0"]
    assert [line["step"] for line in read_metrics(stages[0]) if "loss" in line] == [1, 2]
    assert done.stdout.count("step 2: validation accuracy 1.000 ± 0.000 greedy\n") == 1

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    broken, whole = importlib.import_module("small").CELLS
    states = [state_of(each, runs, ("test/accuracy",)) for each in (broken, whole)]
    assert states == ["not begun", "done"]
    recorded = json.loads((runs / whole.name / "config.json").read_text())["config"]
    assert recorded["init"] == "runs/cold_start,seed=0"
