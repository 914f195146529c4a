"""OLMo 2 (2501.00656): norms after attention and feed-forward, and of all queries and keys."""

from typing import Any

from grpojax.architecture import ModelConfig
from grpojax.families import llama
from grpojax.families.qwen3 import HEAD_NORMS
from grpojax.families.stated import Stated, common, describe_common

ARCHITECTURE, MODEL_TYPE = "Olmo2ForCausalLM", "olmo2"
BLOCK = {name: path for name, path in llama.BLOCK.items() if "norm" not in name} | {
    "post_attention_layernorm": "attention_post_norm/scale",
    "post_feedforward_layernorm": "ffw_post_norm/scale",
    **HEAD_NORMS,
}


def read(stated: Stated) -> dict[str, Any]:
    fields = common(stated, norm_epsilon=1e-5)
    return fields | {"norm_placement": "after", "qk_norm": "all"}


def describe(model: ModelConfig) -> dict[str, Any]:
    return describe_common(model)
