"""Phi-3 (2404.14219): Llama whose queries, keys and values are one tensor, as gate and up are."""

from typing import Any

from grpojax.architecture import ModelConfig
from grpojax.families import llama
from grpojax.families.stated import Stated, common, describe_common, windowed

ARCHITECTURE, MODEL_TYPE = "Phi3ForCausalLM", "phi3"
FUSED = {
    "self_attn.qkv_proj": [f"attention/{name}/kernel" for name in ("query", "key", "value")],
    "mlp.gate_up_proj": ["ffw/gate/kernel", "ffw/up/kernel"],
}
SPLIT = {path for paths in FUSED.values() for path in paths}
BLOCK = {name: path for name, path in llama.BLOCK.items() if path not in SPLIT} | FUSED


def read(stated: Stated) -> dict[str, Any]:
    stated.only("partial_rotary_factor", 1.0)
    stated("original_max_position_embeddings", 0)  # what rope_scaling is from, which has its own
    fields = common(stated, norm_epsilon=1e-5)
    return fields | windowed(stated, fields["num_layers"], lambda i: True)


def describe(model: ModelConfig) -> dict[str, Any]:
    return describe_common(model) | {"sliding_window": model.sliding_window or None}
