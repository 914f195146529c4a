"""Qwen3 (2505.09388): a norm of every query and key head, and no biases."""

from typing import Any

from grpojax.architecture import ModelConfig
from grpojax.families import llama
from grpojax.families.qwen2 import describe_qwen, qwen_fields
from grpojax.families.stated import Stated

ARCHITECTURE, MODEL_TYPE = "Qwen3ForCausalLM", "qwen3"
HEAD_NORMS = {
    "self_attn.q_norm": "attention/query_norm/scale",
    "self_attn.k_norm": "attention/key_norm/scale",
}
BLOCK = llama.BLOCK | HEAD_NORMS


def read(stated: Stated) -> dict[str, Any]:
    return qwen_fields(stated) | {"qk_norm": "head"}


def describe(model: ModelConfig) -> dict[str, Any]:
    return describe_qwen(model)
