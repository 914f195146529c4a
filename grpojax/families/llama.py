"""Llama 2 and 3 (2307.09288, 2407.21783) and SmolLM2: what the other families depart from."""

from typing import Any

from grpojax.architecture import ModelConfig
from grpojax.families.stated import Stated, common, describe_common

ARCHITECTURE, MODEL_TYPE = "LlamaForCausalLM", "llama"
BLOCK = {  # tensors of a block, and the leaves that they fill
    "input_layernorm": "attention_norm/scale",
    "self_attn.q_proj": "attention/query/kernel",
    "self_attn.k_proj": "attention/key/kernel",
    "self_attn.v_proj": "attention/value/kernel",
    "self_attn.o_proj": "attention/out/kernel",
    "post_attention_layernorm": "ffw_norm/scale",
    "mlp.gate_proj": "ffw/gate/kernel",
    "mlp.up_proj": "ffw/up/kernel",
    "mlp.down_proj": "ffw/down/kernel",
}


def read(stated: Stated) -> dict[str, Any]:
    return common(stated)


def describe(model: ModelConfig) -> dict[str, Any]:
    return describe_common(model)
