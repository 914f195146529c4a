"""Learning parity: arithmetic of the curves, what is run again, and what is refused."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from grpojax.config import Config, GRPOConfig, ModelConfig, SamplingConfig
from tools.benchmark.parity import cells, curves, grpojax, plot
from tools.benchmark.parity.__main__ import main
from tools.benchmark.parity.record import FILE, Updates
from tools.benchmark.runs import Failed

CONFIG = Config(  # a prompt for each of the tests' devices
    task="few_shot_addition",
    rewards={"accuracy": 1.0},
    tokenizer="bytes",
    steps=3,
    model=ModelConfig(
        vocab_size=258, embed_dim=16, ffw_dim=16, num_layers=1, num_heads=2, num_kv_heads=1,
        head_dim=8,
    ),
    sampling=SamplingConfig(prompt_length=40, completion_length=4, stop=("\n",)),
    grpo=GRPOConfig(prompts_per_step=8, group_size=2, beta=0.0),
)  # fmt: skip
TASK = {"stops": [2, 9], "config": {"sampling": {"completion_length": 3}}, "batches": [[], []]}


def lines(rewards, seconds, peak=10**9):
    """A cell whose updates have these mean rewards and seconds."""
    updates = [
        {"rewards": [2 * r, 0.0], "seconds": s, "completions": [[5, 9], [5]], "grad_norm": 4.0}
        for r, s in zip(rewards, seconds)
    ]
    return [*updates, {"peak": peak}]


def cells_of(*rewards, seconds=(70.0, 10.0, 20.0)):
    """A cell for each of the seeds 0, 1, ..."""
    return {seed: lines(row, seconds, 10**9 * (1 + seed)) for seed, row in enumerate(rewards)}


def test_a_smoothed_curve_holds_the_means_over_the_window():
    values = np.array([[0.0, 1.0, 2.0, 6.0], [4.0, 4.0, 4.0, 4.0]])
    np.testing.assert_array_equal(curves.smoothed(values, 3), [[1.0, 3.0], [4.0, 4.0]])
    with pytest.raises(ValueError, match=r"window must be from 1 to the number of updates = 4"):
        curves.smoothed(values, 5)


def test_a_summary_by_hand():
    found = curves.summarise(cells_of([0.0, 0.2, 0.4], [0.1, 0.3, 0.5], [0.2, 0.4, 0.6]), 2, 0.3)
    np.testing.assert_allclose(found["mean"], [0.2, 0.4])
    # Smoothed, the seeds are 0.1, 0.2, 0.3 at update 2: deviation 0.1, and t(0.975, 2) = 4.302653.
    np.testing.assert_allclose(found["half"], [4.302653 * 0.1 / math.sqrt(3)] * 2, rtol=1e-6)
    np.testing.assert_allclose(found["minutes"], [80 / 60, 100 / 60])
    assert found["to_level"] == [100.0, 100.0, 80.0]
    assert found["to_level_interval"][0] == pytest.approx(280 / 3)
    assert (found["first"], found["step"], found["peak"]) == (70.0, 15.0, 3 * 10**9)
    assert found["length"][0] == [1.5, 1.5, 1.5]


def test_a_level_that_a_seed_never_reached_has_no_time():
    found = curves.summarise(cells_of([0.0, 0.2, 0.4], [0.0, 0.0, 0.0]), 1, 0.4)
    assert found["to_level"] == [100.0, None] and found["to_level_interval"] == [None, None]
    assert "1 of 2 seeds reached it" in curves.describe({"trl": found}, 0.4, 1)


def system(mean, half, first=(0.2, 0.3, 0.1), seeds=(0, 1, 2)):
    return {"mean": mean, "half": half, "seeds": list(seeds), "reward": [[x] for x in first]}


def test_shares_count_the_updates_within_the_other_systems_interval():
    ours = system([0.1, 0.2, 0.3, 0.4], [0.01, 0.2, 0.01, 0.2])
    theirs = system([0.1, 0.3, 0.4, 0.9], [0.1, 0.05, 0.2, 0.1], first=(0.1, 0.2, 0.3))
    found = curves.agreement(ours, theirs)
    assert found["ours_within_theirs"] == 0.5  # updates 1 and 3
    assert found["theirs_within_ours"] == 0.5  # updates 1 and 2
    assert (found["both"], found["updates"]) == (0.25, 4)
    assert found["mean_difference"] == pytest.approx(-0.175)
    assert found["largest_difference"] == pytest.approx(0.5)
    # 0.1, 0.1, -0.2: mean 0, deviation √0.03.
    expected = [0.0, 4.302653 * math.sqrt(0.03 / 3)]
    np.testing.assert_allclose(found["first_update"], expected, rtol=1e-6, atol=1e-12)
    # Student's t with 2 degrees of freedom lies within ±x with probability x / √(2 + x²).
    x = 4.302653 / math.sqrt(2)
    assert found["expected"] == pytest.approx(x / math.sqrt(2 + x * x), abs=1e-6)


def test_equal_systems_expect_what_a_simulation_finds():
    random = np.random.default_rng(0)
    ours, theirs = random.normal(size=(2, 3, 20000))
    half = 4.302653 * theirs.std(axis=0, ddof=1) / math.sqrt(3)
    share = (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) <= half).mean()
    expected = curves.agreement(system([0.0], [1.0]), system([0.0], [1.0]))["expected"]
    assert share == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 20000))


def test_one_seed_has_no_intervals_and_is_still_shown(tmp_path):
    found = curves.summarise(cells_of([0.0, 0.2, 0.4]), 1, 0.4)
    assert found["half"] == [None] * 3
    assert curves.agreement(found, found)["both"] is None
    json.dumps([found, curves.agreement(found, found)], allow_nan=False)
    both = {"grpojax": found, "trl": found}
    assert "within" not in curves.describe(both, 0.4, 1)
    plot.draw(both, 1, 0.4, tmp_path / "parity.png")
    assert (tmp_path / "parity.png").read_bytes().startswith(b"\x89PNG")


def test_three_seeds_of_each_are_told_in_shares():
    found = curves.summarise(cells_of([0.0, 0.2, 0.4], [0.1, 0.3, 0.5], [0.2, 0.4, 0.6]), 1, 0.4)
    told = curves.describe({"grpojax": found, "trl": found}, 0.4, 1)
    assert "| trl | 3 | 15 | 70 | 3.00 | 0.500 ± 0.248 |" in told
    assert "grpojax's mean within trl's 95 % interval 1.00" in told
    assert "0.91 of each is chance" in told


@pytest.fixture
def peer(tmp_path):
    """A work folder whose environment for TRL holds a program that counts its runs, and leaves what
    `answer.jsonl` holds."""
    program = tmp_path / "environments/trl/bin/python"
    program.parent.mkdir(parents=True)
    program.write_text(
        f'#!/bin/sh\necho >> "{tmp_path}/runs"\ncp "{tmp_path}/answer.jsonl" {FILE}\n'
    )
    program.chmod(0o755)
    (tmp_path / "environments/trl/installed.txt").touch()
    answer(tmp_path, lines([0.1, 0.2], [1.0, 1.0]))
    return tmp_path


def answer(folder, found, ids=((5, 9), (5, 6, 7))):
    text = [
        json.dumps(line | ({"completions": ids} if "rewards" in line else {})) for line in found
    ]
    (folder / "answer.jsonl").write_text("\n".join(text) + "\n")


def cell(folder, task=TASK):
    return cells.lines_of("trl", task, folder / "parity/trl-seed0", folder)


def count(folder):
    return len((folder / "runs").read_text().splitlines())


def test_a_cell_that_is_done_is_not_run_again(peer):
    first = cell(peer)
    assert cell(peer) == first and count(peer) == 1
    assert [line["seconds"] for line in first[:-1]] == [1.0, 1.0] and first[-1] == {"peak": 10**9}


def test_a_cell_that_was_killed_is_run_again(peer):
    whole = cell(peer)
    path = peer / "parity/trl-seed0" / FILE
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert cell(peer) == whole and count(peer) == 2


def test_a_done_cell_of_other_settings_is_refused_and_kept(peer):
    whole = cell(peer)
    with pytest.raises(ValueError, match="holds a run with other settings"):
        cell(peer, TASK | {"batches": [[], [], []]})
    assert cell(peer) == whole and count(peer) == 1


def test_a_worker_that_gives_up_says_so(peer):
    (peer / "answer.jsonl").unlink()
    with pytest.raises(Failed, match="failed with exit code 1"):
        cell(peer)


@pytest.mark.parametrize("ids", [[5, 9, 6], [5, 6], [9, 9], []])
def test_completions_that_end_elsewhere_than_at_their_first_stop_or_t_are_refused(peer, ids):
    answer(peer, lines([0.1, 0.2], [1.0, 1.0]), ids=[[2], ids])
    with pytest.raises(ValueError, match=r"first stop token \(\[2, 9\]\) or at 3 tokens, got"):
        cell(peer)


def test_a_run_of_too_few_updates_is_refused(peer):
    answer(peer, lines([0.1], [1.0]))
    with pytest.raises(ValueError, match="must hold 2 updates, got 1"):
        cell(peer)


def gated(rewards=(1.0, 0.0), norms=(10.0, 20.0)):
    return [{"rewards": list(rewards), "grad_norm": norm} for norm in norms] + [{"peak": 1}]


def test_the_gate_tells_how_far_systems_are_apart():
    apart = cells.gate(gated(), gated(norms=(10.0, 20.001)))
    assert apart == {"rewards": 0, "grad_norm": 0.0, "grad_norm of update 2": pytest.approx(5e-5)}


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        (gated(rewards=(1.0, 1.0)), "differ in rewards by 2"),
        (gated(norms=(10.002, 20.0)), "differ in grad_norm by 0.0002"),
        (gated(norms=(10.0, 20.01)), "differ in grad_norm of update 2 by 0.0005"),
        (gated(norms=(math.nan, 20.0)), "differ in grad_norm by nan"),
    ],
)
def test_the_gate_refuses_systems_that_differ(theirs, said):
    with pytest.raises(ValueError, match=said):
        cells.gate(gated(), theirs)


def test_the_gate_refuses_a_gradient_that_says_nothing():
    with pytest.raises(
        ValueError, match="some group must have unequal rewards, got none in update 1"
    ):
        cells.gate(gated(norms=(0.0, 20.0)), gated(norms=(0.0, 20.0)))


def test_input_that_cannot_be_run_ends_in_one_line(capsys, tmp_path):
    for flags in (["--steps", "1"], ["--window", "0"]):
        assert main([*flags, "--workdir", str(tmp_path)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line.split(" ", 1)[0] for line in said] == ["--steps", "--window"]


def test_the_reward_is_read_where_its_package_cannot_be_imported():
    code = (
        "import sys; sys.modules |= dict.fromkeys(('numpy', 'jaxtyping', 'jax'))\n"
        "from grpojax.task import Example\n"
        "from tools.benchmark.parity.reward import reward_named\n"
        "judge = reward_named('grpojax.rewards.accuracy:first_integer')\n"
        "print(*(judge(Example(id=1, prompt='', answer='85'), t) for t in (' 85', ' 8 5')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1.0", "0.0"]


@pytest.fixture(scope="module")
def task():
    return cells.task_of(CONFIG, 2, 2)


def test_the_task_holds_the_prompts_of_each_update_the_stops_and_the_reward(task):
    assert [len(batch) for batch in task["batches"]] == [8, 8]
    ids = [each["id"] for batch in task["batches"] for each in batch]
    assert len(set(ids)) == 16
    for each in task["batches"][1]:
        a, b = divmod(each["id"], 100)
        assert each["prompt"].endswith(f"{a} + {b} =") and each["answer"] == str(a + b)
        assert bytes(each["tokens"]).decode() == each["prompt"]
    assert task["stops"] == [256, 10]
    assert task["reward"] == "grpojax.rewards.accuracy:first_integer"


def test_the_worker_trains_on_the_planned_prompts_and_stops_at_others(task, tmp_path):
    planned = task["batches"]
    others = task | {"output": str(tmp_path), "batches": [*planned, planned[0]]}
    with pytest.raises(ValueError, match="the prompts of step 2 are not those planned"):
        grpojax.main(others)
    assert not cells.is_whole(tmp_path / FILE)
    with (tmp_path / FILE).open("a") as file:
        file.write('{"peak": 1}')
    *updates, _ = cells.read_lines(tmp_path / FILE, task)
    for line in updates:
        assert line["seconds"] > 0 and len(line["rewards"]) == len(line["completions"]) == 16


def test_a_line_is_written_as_each_update_ends(tmp_path):
    updates = Updates(tmp_path)
    updates.end([[7]], [0.0], 2.0)
    updates.end([[1, 2]], [1.0], 3.0)
    first, line = map(json.loads, (tmp_path / FILE).read_text().splitlines())
    assert first["completions"] == [[7]] and line.pop("seconds") >= 0
    assert line == {"completions": [[1, 2]], "rewards": [1.0], "grad_norm": 3.0}
    updates.done()
    assert cells.is_whole(tmp_path / FILE)
