"""Pretrained models: folders read into parameters, and whatever does not fit refused by name."""

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from conftest import load_folder
from test_gguf import MODEL, D, F, N, V, folder, weights  # noqa: F401

from grpojax.config import ModelConfig
from grpojax.pretrained import check_model, read_model_config


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["BertModel"]}, "must be one of LlamaForCausalLM, .*, got BertModel"),
        ({"architectures": ...}, "must be one of LlamaForCausalLM, .*, got None"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_type must be one of .*, got yarn"),
        ({"rope_scaling": {"type": "linear"}}, "'factor'"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor must be 1"),
        ({"quantization_config": {"bits": 4}}, "'quantization_config' is not supported"),
        (
            {"rope_scaling": {"rope_type": "default", "mrope_section": [4]}},
            "'mrope_section' is not",
        ),
        ({"new_feature": None}, "the field 'new_feature' is not supported"),
        ({"attention_bias": True}, "attention_bias must be False, got True"),
        ({"mlp_bias": True}, "mlp_bias must be False"),
        ({"hidden_act": "relu"}, "hidden_act must be one of silu, .*, got relu"),
        ({"hidden_size": ...}, "lacks the field 'hidden_size'"),
        ({"hidden_size": "32"}, "no model that can be loaded"),
        ({"head_dim": 7}, "head_dim must be even"),
    ],
)
def test_a_config_of_another_network_is_refused_by_name(copy, change, message):
    write_config(copy, change)
    with pytest.raises(ValueError, match=message):
        read_model_config(copy)


def write_config(folder: Path, change: dict) -> None:
    """Changes fields of `config.json`; `...` removes one."""
    path = folder / "config.json"
    values = json.loads(path.read_text()) | change
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))


def test_fields_that_llama_files_leave_out_have_llamas_values(copy):
    left_out = ("num_key_value_heads", "head_dim", "rope_theta", "tie_word_embeddings")
    write_config(copy, dict.fromkeys((*left_out, "rope_scaling"), ...))
    model = read_model_config(copy)
    assert (model.num_kv_heads, model.head_dim, model.rope_base) == (N, D // N, 10_000.0)
    assert not model.tied_embeddings
    write_config(copy, {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}})
    assert read_model_config(copy).rope_base == 7.0


def test_a_model_may_differ_from_its_folder_only_where_the_weights_do_not_care(folder):
    check_model(folder, MODEL)
    free = {"compute_dtype": "bfloat16", "remat": True, "max_length": 64}
    check_model(folder, ModelConfig(**(vars(MODEL) | free)))
    changes = {"rope_base": 1e4, "norm_epsilon": 1e-6, "num_kv_heads": 4, "max_length": 129}
    changes |= {"tied_embeddings": False, "qkv_bias": True, "vocab_size": V + 1}
    for name, value in changes.items():
        other = ModelConfig(**(vars(MODEL) | {name: value}))
        wanted = f"model.{name} must be {getattr(MODEL, name)}, as in .*, got {value}"
        with pytest.raises(ValueError, match=wanted):
            check_model(folder, other)
        with pytest.raises(ValueError, match=wanted):
            load_folder(folder, other)


def save_changed(folder: Path, change: dict) -> None:
    """Changes tensors of `model.safetensors`; None removes one."""
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path) | change
    safetensors.numpy.save_file({k: v for k, v in tensors.items() if v is not None}, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.norm.weight": None}, "lacks tensors, 1 in all: model.norm.weight"),
        ({"lm_head.weight": np.ones((V, D))}, "has superfluous tensors, 1 in all: lm_head.weight"),
        ({"model.norm.weight": np.ones(F)}, r"norm.weight must have shape \[32\], got \[64\]"),
        (
            {"model.norm.weight": np.ones(D, np.int32)},
            "model.norm.weight must be F32, F16, BF16, got I32",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused_by_name(copy, change, message):
    save_changed(copy, change)
    with pytest.raises(ValueError, match=message):
        load_folder(copy, MODEL)


def test_half_precision_is_read_as_float32(copy):
    for kind in (np.float16, ml_dtypes.bfloat16):
        half = np.linspace(0, 1, D).astype(kind)
        save_changed(copy, {"model.norm.weight": half})
        scale = load_folder(copy, MODEL)["final_norm"]["scale"]
        assert scale.dtype == np.float32
        np.testing.assert_array_equal(scale, half.astype(np.float32))


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_truncated_or_missing_checkpoint_is_refused(copy, kept):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    for _ in range(2):
        with pytest.raises(ValueError, match=r"cannot read .*model.safetensors"):
            load_folder(copy, MODEL)
        path.unlink(missing_ok=True)
