"""Families: one file for each, with the names of its tensors and the fields of its `config.json`.

A family has `read(stated) -> fields of ModelConfig`, its inverse `describe(model)`, and `BLOCK`,
which leaf of the parameter tree each tensor of a block fills (or leaves, one after another).
"""

import dataclasses
import math
from typing import Any, NamedTuple

from grpojax.architecture import ModelConfig
from grpojax.checks import require
from grpojax.families import (
    gemma2,
    gemma3,
    llama,
    mistral,
    olmo2,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    smollm3,
)
from grpojax.families.stated import Stated

FAMILIES = {
    "llama": llama,
    "mistral": mistral,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "gemma2": gemma2,
    "gemma3": gemma3,
    "olmo2": olmo2,
    "phi3": phi3,
    "smollm3": smollm3,
    "qwen3_moe": qwen3_moe,
}
FREE = (
    "compute_dtype",
    "remat",
    "lora_rank",
    "lora_alpha",
    "lora_targets",
    "param_dtype",
    "base_dtype",
    "head_dtype",
    "attention",
)  # fields that no file decides


def read_model(values: dict[str, Any]) -> ModelConfig:
    """The shape of the model that the `config.json` with these values describes.

    Raises:
      ValueError: the architecture, or a field, is not supported or missing; the message names it.
    """
    (architecture,) = values.get("architectures") or [None]
    known = {family.ARCHITECTURE: name for name, family in FAMILIES.items()}
    require(
        architecture in known,
        f"architectures must be one of {', '.join(known)}, got {architecture}",
    )
    stated, name = Stated(values), known[architecture]
    fields = FAMILIES[name].read(stated)
    stated.done()
    return ModelConfig(family=name, **fields)


def describe_model(model: ModelConfig) -> dict[str, Any]:
    """The `config.json` of `model`, without its special tokens.

    Raises:
      ValueError: the model has a shape that its family's `config.json` cannot say.
    """
    family = FAMILIES[model.family]
    head = {"architectures": [family.ARCHITECTURE], "model_type": family.MODEL_TYPE}
    values = head | family.describe(model)
    read = dataclasses.asdict(read_model(values))
    for name, value in dataclasses.asdict(model).items():
        require(
            name in FREE or read[name] == value,
            f"model.{name}={value} cannot be said in the config.json of family={model.family}",
        )
    return values


class Tensor(NamedTuple):
    """What a tensor of a file, or some of its rows, fills: a leaf, or a leaf's part for one layer.

    Hugging Face stores a linear map as [out, in], and biases of heads flat.
    """

    path: str  # of the leaf: keys joined by "/"
    index: tuple[int, ...]  # of the layer, in a leaf that stacks them; empty elsewhere
    shape: tuple[int, ...]  # of the part: without the axes of `index`
    stored_shape: tuple[int, ...]
    inputs: int  # how many first axes of `shape` are inputs of a linear map; 0: it is none


def tensor_table(model: ModelConfig) -> dict[str, tuple[Tensor, ...]]:
    """Every tensor of `model` by its Hugging Face name, as what it fills along its first axis."""
    shapes = part_shapes(model)

    def tensor(path: str, *index: int) -> Tensor:
        shape, inputs = shapes[path]
        before, after = math.prod(shape[:inputs]), math.prod(shape[inputs:])
        stored_shape = (after, before) if inputs else (after,)
        return Tensor(path, index, shape, stored_shape, inputs)

    embedding = (model.vocab_size, model.embed_dim)
    table = {
        "model.embed_tokens.weight": (Tensor("embed/embedding", (), embedding, embedding, 0),),
        "model.norm.weight": (tensor("final_norm/scale"),),
    }
    if not model.tied_embeddings:
        table["lm_head.weight"] = (tensor("head/kernel"),)
    for i in range(model.num_layers):
        for name, paths in FAMILIES[model.family].BLOCK.items():
            whole = f"model.layers.{i}.{name}" + ("" if name.endswith(".bias") else ".weight")
            parts = [paths] if isinstance(paths, str) else paths
            if "*" in whole:
                for expert in range(model.num_experts):
                    part = tensor(f"layers/{paths}", i, expert)
                    table[whole.replace("*", str(expert))] = (part,)
            else:
                table[whole] = tuple(tensor(f"layers/{path}", i) for path in parts)
    return table


def part_shapes(model: ModelConfig) -> dict[str, tuple[tuple[int, ...], int]]:
    """Shape of every leaf that a model may have, without the axis of layers, and its inputs."""
    d, f, h = model.embed_dim, model.ffw_dim, model.head_dim
    n, k = model.num_heads, model.num_kv_heads
    shapes = {
        "final_norm/scale": ((d,), 0),
        "head/kernel": ((d, model.vocab_size), 1),
        "layers/attention/out/kernel": ((n, h, d), 2),
        "layers/ffw/router/kernel": ((d, model.num_experts), 1),
    }
    for name, shape in (("gate", (d, f)), ("up", (d, f)), ("down", (f, d))):
        shapes[f"layers/ffw/{name}/kernel"] = shape, 1
        shapes[f"layers/ffw/{name}"] = shape, 1  # of one expert
    for norm in ("attention_norm", "attention_post_norm", "ffw_norm", "ffw_post_norm"):
        shapes[f"layers/{norm}/scale"] = (d,), 0
    for name, heads in (("query", n), ("key", k), ("value", k)):
        shapes[f"layers/attention/{name}/kernel"] = (d, heads, h), 1
        shapes[f"layers/attention/{name}/bias"] = (heads, h), 0
        normed = (h,) if model.qk_norm == "head" else (heads, h)
        shapes[f"layers/attention/{name}_norm/scale"] = normed, 0
    return shapes
