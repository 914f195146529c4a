"""Export: what a run wrote is read back bit for bit, and adapters go out and come in."""

import dataclasses
import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load_folder
from test_resume import without_times
from test_train import CONFIG

from grpojax.__main__ import main
from grpojax.checkpoint import restore_params
from grpojax.export import export_run
from grpojax.lora import merge, split
from grpojax.mesh import make_mesh
from grpojax.pretrained import read_model_config
from grpojax.run import initial_params, open_run, trained_params
from grpojax.sharding import use_mesh
from grpojax.train import train


def run_of(folder, **fields):
    config = dataclasses.replace(CONFIG, steps=1, **fields)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train(config, folder / "run") == 0
    return config


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run that trained everything, and its config."""
    folder = tmp_path_factory.mktemp("plain")
    return folder / "run", run_of(folder)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory, plain):
    """A run of adapters on what `plain` exported, and its config."""
    folder = tmp_path_factory.mktemp("adapted")
    export_run(plain[0], folder / "base", step=None, dtype="float32", adapters=False)
    model = dataclasses.replace(plain[1].model, lora_rank=2, lora_alpha=8.0)
    return folder / "run", run_of(folder, init=str(folder / "base"), model=model)


def params_of(run):
    workdir, config = run
    mesh = make_mesh(config.mesh)
    with use_mesh(mesh):
        return trained_params(workdir, mesh, pytest.fail)[0]


def test_an_export_is_read_back_bit_for_bit(plain, tmp_path, capsys):
    workdir, config = plain
    out = tmp_path / "models/out"
    assert main(["export", str(workdir), "--out", str(out)]) == 0
    assert "step 1 of" in capsys.readouterr().out
    assert read_model_config(out) == config.model
    chex.assert_trees_all_equal(load_folder(out, config.model), params_of(plain))
    config_json = json.loads((out / "config.json").read_text())
    assert config_json["architectures"] == ["LlamaForCausalLM"]
    assert config_json["torch_dtype"] == "float32"
    assert (out / "tokenizer.bytes").exists()


def test_a_run_of_a_pod_is_exported_on_a_cpu(plain, tmp_path, capsys):
    """Another mesh than there are devices here, and products that a CPU has not."""
    shutil.copytree(plain[0], tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    about = json.loads(path.read_text())
    about["config"]["mesh"] |= {"data": 4, "fsdp": 64, "tensor": 16}
    about["config"]["model"]["compute_dtype"] = "bfloat16"
    path.write_text(json.dumps(about))
    for run, out in ((plain[0], "here"), (tmp_path / "run", "pod")):
        assert main(["export", str(run), "--out", str(tmp_path / out)]) == 0, capsys.readouterr()
    weights = [(tmp_path / x / "model.safetensors").read_bytes() for x in ("here", "pod")]
    assert weights[0] == weights[1]


def test_a_cast_is_said_and_rounds_to_the_nearest(plain, tmp_path):
    workdir, config = plain
    said = export_run(workdir, tmp_path / "half", step=1, dtype="bfloat16", adapters=False)
    assert "as bfloat16" in said
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(x.dtype), params_of(plain))
    chex.assert_trees_all_equal(load_folder(tmp_path / "half", config.model), rounded)


def test_a_large_export_is_several_files_with_an_index(plain, tmp_path, monkeypatch):
    workdir, config = plain
    monkeypatch.setattr("grpojax.pretrained.FILE_BYTES", 8_000)
    export_run(workdir, tmp_path / "out", step=None, dtype="float32", adapters=False)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors" and len(files) > 2
    assert max((tmp_path / "out" / file).stat().st_size for file in files[1:]) < 9_000
    chex.assert_trees_all_equal(load_folder(tmp_path / "out", config.model), params_of(plain))


def test_a_run_of_adapters_goes_on_bit_for_bit_and_saves_them_alone(adapted, tmp_path):
    _, config = adapted
    config = dataclasses.replace(config, steps=4)
    for name in ("whole", "broken"):
        assert train(config, tmp_path / name) == 0
    shutil.rmtree(tmp_path / "broken/checkpoints/4")
    assert train(config, tmp_path / "broken") == 0
    assert_equal_metrics(tmp_path / "broken", tmp_path / "whole")
    runs = [(tmp_path / name, config) for name in ("broken", "whole")]
    chex.assert_trees_all_equal(*map(params_of, runs))
    adapters, _ = split(params_of(runs[0]))
    # Loading asks for exactly the leaves that were saved: there are no others.
    assert restore_params(tmp_path / "whole/checkpoints", adapters, pytest.fail)[1] == 4


def assert_equal_metrics(ours, theirs):
    np.testing.assert_equal(without_times(ours), without_times(theirs))


def test_an_export_of_a_run_of_adapters_has_them_merged(adapted, tmp_path):
    workdir, config = adapted
    export_run(workdir, tmp_path / "out", step=None, dtype="float32", adapters=False)
    params, base = params_of(adapted), read_model_config(tmp_path / "out")
    assert base == dataclasses.replace(config.model, lora_rank=0, lora_alpha=base.lora_alpha)
    chex.assert_trees_all_equal(load_folder(tmp_path / "out", base), merge(params, config.model))
    trained, _ = split(params)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(trained))


def test_adapters_go_out_and_come_in_merged_into_their_base(adapted, tmp_path):
    """A run that starts from the PEFT folder starts from what the run of adapters ended with."""
    workdir, config = adapted
    export_run(workdir, tmp_path / "peft", step=None, dtype="float32", adapters=True)
    names = {path.name for path in (tmp_path / "peft").iterdir()}
    assert names == {"adapter_model.safetensors", "adapter_config.json", "tokenizer.bytes"}
    model = dataclasses.replace(config.model, lora_rank=0)
    started = dataclasses.replace(config, init=str(tmp_path / "peft"), model=model)
    run = open_run(started, tmp_path / "next")
    with use_mesh(run.mesh):
        found = initial_params(run, pytest.fail)
    chex.assert_trees_all_equal(found, merge(params_of(adapted), config.model))


def test_adapters_of_a_merged_base_are_not_exported_alone(adapted, tmp_path):
    workdir, config = adapted
    run_of(tmp_path, init=str(workdir), model=config.model)
    with pytest.raises(ValueError, match="have no base that peft could load"):
        export_run(tmp_path / "run", tmp_path / "out", step=None, dtype="float32", adapters=True)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_exported_is_refused(plain, tmp_path):
    workdir, _ = plain
    with pytest.raises(ValueError, match="trained no adapters"):
        export_run(workdir, tmp_path / "out", step=None, dtype="float32", adapters=True)
    with pytest.raises(ValueError, match="no checkpoint 7 in"):
        export_run(workdir, tmp_path / "out", step=7, dtype="float32", adapters=False)
    with pytest.raises(ValueError, match="must be new or empty"):
        export_run(workdir, workdir, step=None, dtype="float32", adapters=False)
    assert list(tmp_path.iterdir()) == []
