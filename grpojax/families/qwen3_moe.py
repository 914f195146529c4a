"""Qwen3-MoE (2505.09388): Qwen3 whose feed-forward is a mixture of experts in every layer."""

from typing import Any

from grpojax.architecture import ModelConfig
from grpojax.families import qwen3
from grpojax.families.stated import Stated, common, describe_common

ARCHITECTURE, MODEL_TYPE = "Qwen3MoeForCausalLM", "qwen3_moe"
BLOCK = {name: path for name, path in qwen3.BLOCK.items() if "mlp" not in name} | {
    "mlp.gate": "ffw/router/kernel",
    "mlp.experts.*.gate_proj": "ffw/gate",
    "mlp.experts.*.up_proj": "ffw/up",
    "mlp.experts.*.down_proj": "ffw/down",
}


def read(stated: Stated) -> dict[str, Any]:
    stated.only("use_sliding_window", False)
    stated.only("decoder_sparse_step", 1)
    stated.only("mlp_only_layers", [])
    for name in ("sliding_window", "max_window_layers", "intermediate_size"):
        stated(name, 0)  # of windows and dense layers, which there are none of
    experts = stated("num_local_experts" if "num_local_experts" in stated.values else "num_experts")
    return common(stated) | {
        "qk_norm": "head",
        "ffw_dim": stated("moe_intermediate_size"),
        "num_experts": experts,
        "experts_per_token": stated("num_experts_per_tok", 8),
        "normalize_router": stated("norm_topk_prob", False),
    }


def describe(model: ModelConfig) -> dict[str, Any]:
    return describe_common(model) | {
        "moe_intermediate_size": model.ffw_dim,
        "num_experts": model.num_experts,
        "num_experts_per_tok": model.experts_per_token,
        "norm_topk_prob": model.normalize_router,
    }
