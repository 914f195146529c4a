"""Mistral (2310.06825): Llama with a sliding window in every layer."""

from typing import Any

from grpojax.architecture import ModelConfig
from grpojax.families import llama
from grpojax.families.stated import Stated, common, describe_common, windowed

ARCHITECTURE, MODEL_TYPE, BLOCK = "MistralForCausalLM", "mistral", llama.BLOCK


def read(stated: Stated) -> dict[str, Any]:
    fields = common(stated)
    return fields | windowed(stated, fields["num_layers"], lambda i: True)


def describe(model: ModelConfig) -> dict[str, Any]:
    return describe_common(model) | {"sliding_window": model.sliding_window or None}
