"""PEFT: adapters as folders that the library `peft` reads and writes.

A folder holds `adapter_model.safetensors` and `adapter_config.json`, which names the base.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import Array, Float

from grpojax.architecture import ModelConfig
from grpojax.checks import require
from grpojax.families import FAMILIES, part_shapes
from grpojax.pretrained import leaf_at
from grpojax.storage import Place
from grpojax.types import Params

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
ONLY = {  # whose other values mean another kind of adapter
    "peft_type": "LORA",
    "bias": "none",
    "use_dora": False,
    "use_rslora": False,
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layers_to_transform": None,
}


def save_adapters(folder: Path, adapters: Params, model: ModelConfig, base: str) -> None:
    """Writes the adapters of `model`, in float32, into an empty `folder`; `base` is what they are
    of.

    Raises:
      ValueError: the family stores a target inside a larger tensor (Phi-3's queries, say).
    """
    modules = target_modules(model)
    tensors = {}
    for module, path in modules.items():
        inputs = part_shapes(model)[f"layers/{path}/kernel"][1]
        a, b = (leaf_at(adapters, f"layers/{path}/{name}") for name in ("lora_a", "lora_b"))
        for i in range(model.num_layers):
            name = f"base_model.model.model.layers.{i}.{module}"
            tensors[f"{name}.lora_A.weight"] = transposed(a[i], inputs)
            tensors[f"{name}.lora_B.weight"] = transposed(b[i], 1)
    safetensors.numpy.save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = ONLY | {
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": model.lora_rank,
        "lora_alpha": model.lora_alpha,
        "lora_dropout": 0.0,
        "target_modules": [module.rpartition(".")[2] for module in modules],
        "inference_mode": True,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def load_adapters(folder: Path, model: ModelConfig) -> tuple[Params, ModelConfig]:
    """The adapters in `folder`, and `model`, their base, with their rank, alpha and targets.

    Raises:
      ValueError: the folder cannot be read, or its adapters are of another kind or shape.
    """
    config = read_adapter_config(folder)
    known = {module.rpartition(".")[2]: path for module, path in linear_modules(model).items()}
    modules = config["target_modules"]
    require(
        isinstance(modules, list) and bool(modules) and set(modules) <= set(known),
        f"{folder}: target_modules must be some of {', '.join(known)}, got {modules}",
    )
    adapted = dataclasses.replace(
        model,
        lora_rank=config["r"],
        lora_alpha=float(config["lora_alpha"]),
        lora_targets=tuple(known[module].split("/")[1] for module in modules),
    )
    try:
        tensors = safetensors.numpy.load_file(folder / WEIGHTS)
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"cannot read {folder / WEIGHTS}: {error}; copy it again") from None
    shapes, adapters = part_shapes(model), {}
    for module, path in target_modules(adapted).items():
        shape, inputs = shapes[f"layers/{path}/kernel"]
        for leaf, part in (("lora_a", "lora_A"), ("lora_b", "lora_B")):
            rank = (adapted.lora_rank,)
            whole = shape[:inputs] + rank if leaf == "lora_a" else rank + shape[inputs:]
            layers = []
            for i in range(model.num_layers):
                name = f"base_model.model.model.layers.{i}.{module}.{part}.weight"
                require(name in tensors, f"{folder / WEIGHTS} lacks {name}")
                values, split = tensors.pop(name), inputs if leaf == "lora_a" else 1
                stored = (math.prod(whole[split:]), math.prod(whole[:split]))
                require(
                    values.shape == stored,
                    f"{folder / WEIGHTS}: {name} must have shape {stored}, got {values.shape}",
                )
                layers.append(values.T.reshape(whole).astype(np.float32))
            put(adapters, f"layers/{path}/{leaf}", jnp.asarray(np.stack(layers)))
    require(not tensors, f"{folder / WEIGHTS} has superfluous tensors: {min(tensors, default='')}")
    return adapters, adapted


def is_adapters(folder: Place) -> bool:
    """Whether `folder` holds adapters as PEFT stores them."""
    return (folder / "adapter_config.json").is_file()


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """`adapter_config.json`, its values checked for what is supported."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        found = {name: config.get(name) or value for name, value in ONLY.items()}
        needed = [config[name] for name in ("r", "lora_alpha", "target_modules")]
    except (OSError, ValueError, AttributeError, KeyError) as error:
        raise ValueError(f"{path} describes no adapters that can be loaded: {error!r}") from None
    for name, value in ONLY.items():
        require(found[name] == value, f"{path}: {name} must be {value}, got {found[name]}")
    require(None not in needed, f"{path}: r, lora_alpha and target_modules must be stated")
    return config


def base_folder(folder: Path) -> Path:
    """The folder of the model that the adapters in `folder` are of."""
    name = read_adapter_config(folder).get("base_model_name_or_path")
    require(
        isinstance(name, str) and Path(name).is_dir(),
        f"{folder / CONFIG}: base_model_name_or_path must be a folder here, got {name!r}; put the "
        "model there or name its folder",
    )
    return Path(name)


def linear_modules(model: ModelConfig) -> dict[str, str]:
    """Linear maps of a block by their Hugging Face names: the path of their leaves."""
    block = FAMILIES[model.family].BLOCK
    paths = {name: path for name, path in block.items() if isinstance(path, str)}
    return {
        name: path.removesuffix("/kernel")
        for name, path in paths.items()
        if path.endswith("/kernel") and "router" not in path
    }


def target_modules(model: ModelConfig) -> dict[str, str]:
    """Those that have adapters."""
    known = {path.split("/")[1]: (module, path) for module, path in linear_modules(model).items()}
    for target in model.lora_targets:
        require(
            target in known,
            f"adapters of {target} cannot be stored for family={model.family}, which keeps it "
            "inside a larger tensor; export merged weights instead",
        )
    return dict(known[target] for target in model.lora_targets)


def transposed(values: Array, inputs: int) -> Float[np.ndarray, "out in"]:
    """[inputs..., outputs...] as a linear map is stored."""
    host = np.asarray(values, np.float32)
    return np.ascontiguousarray(host.reshape(math.prod(host.shape[:inputs]), -1).T)


def put(tree: Params, path: str, leaf: Array) -> None:
    *parents, last = path.split("/")
    for key in parents:
        tree = tree.setdefault(key, {})
    tree[last] = leaf
