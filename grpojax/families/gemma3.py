"""Gemma 3, its text models (2503.19786): Gemma 2 with norms of query and key heads for soft-caps,
and local layers, five of six, with a rotary base of their own."""

from typing import Any

from grpojax.architecture import ModelConfig
from grpojax.families import gemma2
from grpojax.families.qwen3 import HEAD_NORMS
from grpojax.families.stated import Stated

ARCHITECTURE, MODEL_TYPE = "Gemma3ForCausalLM", "gemma3_text"
BLOCK = gemma2.BLOCK | HEAD_NORMS


def read(stated: Stated) -> dict[str, Any]:
    newer = stated.values.get("rope_parameters") or {}
    if "full_attention" in newer:  # one set of rotary fields for each type of layer
        stated.values["rope_parameters"] = newer["full_attention"]
        stated.values["rope_local_base_freq"] = newer["sliding_attention"]["rope_theta"]
    period = stated("sliding_window_pattern", 6)
    fields = gemma2.gemma_fields(stated, lambda i: (i + 1) % period > 0, rope_base=1_000_000.0)
    local_base = float(stated("rope_local_base_freq", 10_000.0))
    return fields | {"qk_norm": "head", "local_rope_base": local_base}


def describe(model: ModelConfig) -> dict[str, Any]:
    return gemma2.describe(model) | {"rope_local_base_freq": model.local_rope_base}
