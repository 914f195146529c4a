"""Gemma 2 (2408.00118): norms of 1 + w before and after, GeGLU, soft-caps, windows."""

from collections.abc import Callable
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

ARCHITECTURE, MODEL_TYPE = "Gemma2ForCausalLM", "gemma2"
BLOCK = llama.BLOCK | {
    "post_attention_layernorm": "attention_post_norm/scale",
    "pre_feedforward_layernorm": "ffw_norm/scale",
    "post_feedforward_layernorm": "ffw_post_norm/scale",
}


def read(stated: Stated) -> dict[str, Any]:
    return gemma_fields(stated, lambda i: i % 2 == 0, rope_base=10_000.0)


def describe(model: ModelConfig) -> dict[str, Any]:
    keys = describe_common(model) | describe_windows(model)
    return keys | {
        "hidden_activation": keys["hidden_act"],
        "query_pre_attn_scalar": int(model.query_scale),  # transformers takes no other
        "attn_logit_softcapping": model.attention_softcap or None,
        "final_logit_softcapping": model.logit_softcap or None,
    }


def gemma_fields(
    stated: Stated, local: Callable[[int], bool], *, rope_base: float
) -> dict[str, Any]:
    """Fields of every Gemma, whose layers are `local` where no list of types says otherwise."""
    fields = common(stated, activation="gelu_pytorch_tanh", tied=True, rope_base=rope_base)
    return {
        **fields,
        **windowed(stated, fields["num_layers"], local),
        "scaled_embeddings": True,
        "norm_placement": "both",
        "norm_offset": True,
        "query_scale": float(stated("query_pre_attn_scalar", 256)),
        "attention_softcap": float(stated("attn_logit_softcapping", 0.0)),
        "logit_softcap": float(stated("final_logit_softcapping", 0.0)),
    }
