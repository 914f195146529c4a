"""Qwen2 and Qwen2.5 (2407.10671, 2412.15115): biases on queries, keys and values."""

from typing import Any

from grpojax.architecture import ModelConfig
from grpojax.families import llama
from grpojax.families.stated import (
    Stated,
    common,
    describe_common,
    describe_windows,
    windowed,
)

ARCHITECTURE, MODEL_TYPE = "Qwen2ForCausalLM", "qwen2"
BIASES = {
    f"self_attn.{theirs}_proj.bias": f"attention/{ours}/bias"
    for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value"))
}
BLOCK = llama.BLOCK | BIASES


def read(stated: Stated) -> dict[str, Any]:
    return qwen_fields(stated) | {"qkv_bias": True}


def describe(model: ModelConfig) -> dict[str, Any]:
    return describe_qwen(model)


def qwen_fields(stated: Stated) -> dict[str, Any]:
    """Fields of every Qwen; a window counts only if `use_sliding_window`, from a layer on."""
    fields = common(stated)
    first = stated("max_window_layers", 28)
    windows = windowed(stated, fields["num_layers"], lambda i: i >= first)
    if not stated("use_sliding_window", False):
        windows = {"sliding_window": 0, "local_layers": ()}
    return fields | windows


def describe_qwen(model: ModelConfig) -> dict[str, Any]:
    keys = describe_common(model) | describe_windows(model)
    return keys | {"use_sliding_window": bool(model.sliding_window)}
