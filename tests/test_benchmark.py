"""The benchmark's arithmetic and its gate; and that grpojax's worker does the planned work."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from conftest import load_folder

from grpojax import model, sampling, scoring, slices
from grpojax.model import Policy
from grpojax.pretrained import read_model_config
from grpojax.tokenizer import load_tokenizer
from tools.benchmark import gate, plot, results
from tools.benchmark.rows import ROWS, Row, Shape, bars
from tools.benchmark.runs import ABLATIONS, SYSTEMS, reason, task_of
from tools.benchmark.weights import make_folder, tensors, text_of
from tools.benchmark.work import OUT_OF_MEMORY, ids_of, reward
from tools.benchmark.workers import grpojax

SHAPE = Shape(
    name="tiny", vocab_size=40, embed_dim=16, ffw_dim=24,
    num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8,
)  # fmt: skip
ROW = Row(  # a prompt for each of the tests' devices
    name="tiny", shape=SHAPE, prompts=8, group_size=2, prompt_length=5, completion_length=6,
    beta=0.04, scripted=True, warmup=1, timed=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("weights"), ROW)


def test_weights_are_a_function_of_the_seed():
    first, again, other = (tensors(SHAPE, seed) for seed in (0, 0, 1))
    assert first.keys() == again.keys()
    for name, values in first.items():
        np.testing.assert_array_equal(values, again[name])
    query = "model.layers.1.self_attn.q_proj.weight"
    assert (first[query] != other[query]).mean() > 0.9


def test_the_folder_is_a_model_and_a_tokenizer_that_reads_the_same_ids(folder):
    tokenizer = load_tokenizer(str(folder))
    assert (tokenizer.pad_id, tokenizer.eos_ids) == (0, (1,))
    for ids in ROW.prompt_ids().tolist():
        assert tokenizer.encode(text_of(ids)) == ids
    params = load_folder(folder, read_model_config(folder))
    stored = tensors(SHAPE, 0)["model.embed_tokens.weight"]
    np.testing.assert_array_equal(params["embed"]["embedding"], stored)


def test_padding_and_end_of_sequence_are_never_drawn(folder):
    model = read_model_config(folder)
    params, policy = {"params": load_folder(folder, model)}, Policy(model)
    logits = jax.jit(policy.apply)(params, ROW.prompt_ids())[:, 0]
    logps = jax.nn.log_softmax(logits)
    assert logps[:, :2].max() < -20 < logps[:, 2:].min()


@pytest.mark.parametrize("name", ROWS)
def test_scripted_lengths_have_the_planned_spread_and_the_others_none(name):
    row = ROWS[name]
    lengths = row.lengths()
    assert lengths.shape == (row.prompts, row.group_size) and lengths.max() == row.completion_length
    expected = 0.36 if row.scripted else 1.0
    assert lengths.mean() / lengths.max() == pytest.approx(expected, abs=0.01)


def test_scripted_lengths_by_hand():
    row = dataclasses.replace(ROW, prompts=2, completion_length=8)
    # 8 u^1.78 at u = 1/4, 1/2, 3/4, 1 is 0.7, 2.3, 4.8, 8.
    assert sorted(row.lengths().flatten().tolist()) == [1, 3, 5, 8]


def test_every_system_sees_the_same_reward():
    ids = [2, 3, 5, 4, 9, 1, 0]  # 2 of 5 words are even; the last two are no words
    assert reward(ids) == 0.4
    assert ids_of(f"{text_of(ids[:5])} <eos> <pad>") == ids[:5]


def found(**changes):
    """What a system leaves for the gate, by default the same for all."""
    values = {
        "greedy": np.arange(6).reshape(2, 3),
        "logps": np.linspace(-9.0, -1.0, 5),
        "loss": np.array([0.0, 0.5]),
        "grad_norm": np.array([10.0, 20.0]),
        "second": np.arange(10, 16).reshape(2, 3),
        "behind": np.array([[1.0, 1.0, 1.0], [1.0, 3.9e-4, 1.0]]),
    }
    return values | changes


def test_the_gate_lets_systems_pass_that_agree_within_the_bounds():
    near = found(logps=np.linspace(-9.0, -1.0, 5) + 9e-5, grad_norm=np.array([10.0009, 20.0]))
    (apart,) = gate.check(ROW, {"grpojax": found(), "trl": near}).values()
    assert apart["greedy"] == apart["loss"] == 0
    assert apart["logps"] == pytest.approx(9e-5)
    assert apart["grad_norm"] == pytest.approx(9e-5)


def test_the_gate_lets_completions_part_at_a_tie():
    parted = found(greedy=np.array([[0, 1, 2], [3, 14, 77]]))  # 14 is second, 3.9e-4 behind
    assert gate.check(ROW, {"grpojax": found(), "trl": parted})["trl"]["greedy"] == 0


@pytest.mark.parametrize(
    ("quantity", "change"),
    [
        ("greedy", {"greedy": np.array([[0, 1, 2], [3, 4, 15]])}),  # second, but 1.0 behind
        ("greedy", {"greedy": np.array([[0, 1, 2], [3, 15, 5]])}),  # at the tie, but not second
        ("greedy", {"greedy": np.array([[0, 1, 2], [9, 14, 5]])}),  # before the tie too
        ("logps", {"logps": np.array([-9.0, -7.0, -5.0, -2.9997, -1.0])}),
        ("logps", {"logps": np.array([-9.0, -7.0, np.nan, -3.0, -1.0])}),
        ("loss", {"loss": np.array([6e-6, 0.5])}),
        ("loss of update 2", {"loss": np.array([0.0, 0.50001])}),
        ("grad_norm", {"grad_norm": np.array([10.002, 20.0])}),
        ("grad_norm of update 2", {"grad_norm": np.array([10.0, 20.003])}),
        ("greedy", {"greedy": np.arange(4).reshape(2, 2)}),
    ],
)
def test_the_gate_refuses_a_system_that_differs(quantity, change):
    systems = {"grpojax": found(), "trl": found(), "tunix": found(**change)}
    with pytest.raises(ValueError, match=rf"row tiny: tunix differs from grpojax in {quantity} by"):
        gate.check(ROW, systems)


def run(*wholes, peak=10**9):
    """A run with these seconds of whole steps, of which generation is half and update a quarter."""
    parts = {"whole": 1.0, "generation": 0.5, "reference": 0.0, "update": 0.25}
    seconds = {part: [share * s for s in wholes] for part, share in parts.items()}
    return {"seconds": seconds, "first": 7.0, "peak": peak}


def test_a_run_is_read_without_its_warmup_and_refused_if_it_made_other_tokens(tmp_path):
    planned = int(ROW.lengths().sum())
    lines = [{"whole": s, "update": s / 2, "tokens": planned} for s in (9.0, 1.0, 2.0)]

    def read(lines):
        text = "".join(json.dumps(line) + "\n" for line in [*lines, {"peak": 123}])
        (tmp_path / "steps.jsonl").write_text(text)
        return results.read_run(ROW, tmp_path)

    read_back = read(lines)
    assert read_back["seconds"]["whole"] == [1.0, 2.0]
    assert read_back["seconds"]["update"] == [0.5, 1.0]
    assert read_back["seconds"]["reference"] == [0.0, 0.0]
    assert (read_back["first"], read_back["peak"]) == (9.0, 123)
    lines[2]["tokens"] -= 1
    with pytest.raises(ValueError, match=f"must make {planned} tokens"):
        read(lines)


def test_medians_are_over_all_steps_and_the_spread_over_rounds():
    summary = results.summarise([run(1.0, 2.0, 9.0), run(3.0, 4.0, 5.0, peak=2 * 10**9)])
    assert summary["median"]["whole"] == 3.5  # of 1 2 3 4 5 9
    assert summary["spread"]["whole"] == [2.0, 4.0]
    assert summary["median"]["generation"] == 1.75
    assert summary["peak"] == 2 * 10**9


def test_ratios_are_taken_against_the_bars_and_a_peer_without_result_stays_in_the_table():
    asked = bars("trl", whole=3.0, generation=3.5, peak=0.5) + bars("tunix", whole=1.0)
    row = dataclasses.replace(ROW, bars=asked)
    systems = {
        "grpojax": results.summarise([run(1.0)]),
        "trl": results.summarise([run(3.0, peak=4 * 10**9)]),
        "tunix": {"failed": OUT_OF_MEMORY},
    }
    measured = results.ratios(row, systems)
    assert [(bar["ratio"], bar["held"]) for bar in measured] == [
        (3.0, True), (3.0, False), (0.25, True), (None, None),
    ]  # fmt: skip
    table = results.as_table(row.title, systems, measured)
    assert "| tunix | out of memory |" in table
    assert "generation against trl: 3.00x as fast (>= 3.5x: MISSED)" in table
    assert "peak against trl: 0.25x of its peak (<= 0.5x: held)" in table
    assert "whole against tunix: not measured" in table


def test_the_plot_shows_the_whole_step_and_a_system_without_result(tmp_path):
    measured = results.summarise([run(2.0)])
    assert plot.shares(measured) == {
        "generation": 1.0, "reference": 0.0, "update": 0.5, "other": 0.5,
    }  # fmt: skip
    systems = {"grpojax": measured, "tunix": {"failed": OUT_OF_MEMORY}}
    plot.draw([{"title": ROW.title, "systems": systems}], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        (-9, "", OUT_OF_MEMORY),
        (1, "XlaRuntimeError: RESOURCE_EXHAUSTED: 43 GB\nmore", OUT_OF_MEMORY),
        (1, "Traceback\nKeyError: 'x'\n", "failed with exit code 1: KeyError: 'x' (all of it in"),
    ],
)
def test_why_a_worker_ended_is_said_in_a_few_words(tmp_path, code, text, expected):
    log = tmp_path / "log.txt"
    log.write_text(text)
    assert reason(code, log).startswith(expected)


def work(kind, folder, tmp_path, **changes):
    task = task_of(ROW, SYSTEMS["grpojax"], kind, folder, threads=2)
    grpojax.main(task | {"output": str(tmp_path)} | changes)


def test_the_worker_times_the_planned_work(folder, tmp_path):
    work("measure", folder, tmp_path)
    measured = results.read_run(ROW, tmp_path)  # which refuses other tokens than planned
    seconds = measured["seconds"]
    for whole, *parts in zip(*(seconds[part] for part in results.PARTS)):
        assert 0 < sum(parts) <= whole
    assert measured["first"] > seconds["whole"][0] and measured["peak"] > 10**8


@pytest.mark.parametrize("name", [name for name in ABLATIONS if name != "grpojax"])
def test_what_an_ablation_names_is_taken_away(name, tmp_path, monkeypatch):
    for module, constant in ((sampling, "SHORTEST"), (sampling, "draw"), (slices, "SHORTEST")):
        monkeypatch.setattr(module, constant, getattr(module, constant))
    monkeypatch.setattr(slices, "MOST_SLICES", 8)
    monkeypatch.setattr(scoring, "CHUNK_ELEMENTS", 2**24)
    monkeypatch.setattr(model, "PRODUCTS", model.PRODUCTS)

    def state(task):
        of_slices = slices.members_of_slice(1, 64, 4096), slices.slice_lengths(4096)
        shapes = sampling.decode_shapes(4096, 64)
        return task, of_slices, shapes, sampling.draw, scoring.CHUNK_ELEMENTS, model.PRODUCTS

    row = dataclasses.replace(ROW, group_size=4)
    task = task_of(row, ABLATIONS[name], "measure", tmp_path, 2) | {"completion_length": 4096}
    before = state(task | {"remat": True})
    after = state(grpojax.take_away(task | {"remat": True}))
    assert sum(old != new for old, new in zip(before, after)) == 1
    drawn = [np.ravel(task["lengths"]).tolist() for task in (before[0], after[0])]
    assert drawn[0] == drawn[1] and len(after[0]["prompts"]) * after[0]["group_size"] == 32


def test_the_worker_leaves_what_the_gate_compares(folder, tmp_path):
    work("gate", folder, tmp_path, learning_rate=1e-2)
    left = gate.read_gate(tmp_path)
    assert left["greedy"].shape == left["second"].shape == (8, 6)
    assert (left["greedy"] != left["second"]).all() and (left["behind"] > 0).all()
    assert left["logps"].shape == (8 * (3 + 6),)  # two completions a prompt, of 3 and 6 tokens
    # Advantages of a group sum to 0, and so does the surrogate; the second update has a KL.
    assert abs(left["loss"][0]) < 1e-6 < 1e-4 < left["loss"][1]
    (apart,) = gate.check(ROW, {"grpojax": left, "again": left}).values()
    assert set(apart.values()) == {0.0}
