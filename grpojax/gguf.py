"""GGUF files, as llama.cpp reads them, made into Hugging Face folders.

llama.cpp keeps the same networks under other names: the rows of Llama's queries and keys permuted,
1 added to Gemma's norms, and what it knows by itself (Gemma's pattern of layers) left out.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from jaxtyping import Float

from grpojax.architecture import ModelConfig
from grpojax.chat import Chat
from grpojax.checks import require
from grpojax.families import Tensor, describe_model, tensor_table
from grpojax.pretrained import check_tensors, new_folder, write_tensors
from grpojax.rotary import frequencies
from grpojax.tokenizer import Tokenizer
from grpojax.vocabulary import byte_level_bpe, sentencepiece_from_tables

FIELDS = {  # of ModelConfig, by their names in the metadata after the architecture's
    "block_count": "num_layers",
    "context_length": "max_length",
    "embedding_length": "embed_dim",
    "feed_forward_length": "ffw_dim",
    "attention.head_count": "num_heads",
    "attention.head_count_kv": "num_kv_heads",
    "attention.layer_norm_rms_epsilon": "norm_epsilon",
    "rope.freq_base": "rope_base",
}
OPTIONAL = {
    "rope.dimension_count": "head_dim",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "vocab_size": "vocab_size",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attention_softcap",
    "final_logit_softcapping": "logit_softcap",
    "rope.freq_base_swa": "local_rope_base",
    "rope.scaling.factor": "rope_factor",
    "rope.scaling.type": "rope_scaling",
}
GEMMA = {
    "activation": "gelu",
    "scaled_embeddings": True,
    "norm_placement": "both",
    "norm_offset": True,
}
ARCHITECTURES = {  # their names in the library, and the fields that llama.cpp knows by itself
    "llama": (gguf.MODEL_ARCH.LLAMA, {}),
    "qwen2": (gguf.MODEL_ARCH.QWEN2, {"qkv_bias": True}),
    "gemma2": (gguf.MODEL_ARCH.GEMMA2, GEMMA),
    "gemma3": (gguf.MODEL_ARCH.GEMMA3, GEMMA | {"qk_norm": "head", "local_rope_base": 10_000.0}),
}
PERIODS = {"gemma2": 2, "gemma3": 6}  # the last layer of each such stretch is global
LARGEST = {"gemma2": 46, "gemma3": 62}  # layers of the 27B, whose queries are scaled by D / N


def import_gguf(path: str | Path, folder: str | Path) -> None:
    """Converts a GGUF file to a Hugging Face folder, which appears whole or not at all.

    It holds `model.safetensors` (float32), `config.json`, the tokenizer and its settings. Raises
    ValueError if the file cannot be read, is of no known architecture, holds other tensors than
    that has, or asks for something unsupported; or if `folder` is not empty.
    """
    with new_folder(Path(folder)) as whole:
        convert_gguf(Path(path), whole)


def convert_gguf(path: Path, folder: Path) -> None:
    """Writes the files of `folder` from the GGUF file at `path`."""
    try:
        reader = gguf.GGUFReader(path)
        stored = {tensor.name: tensor for tensor in reader.tensors}
        fields = {name: field.contents() for name, field in reader.fields.items()}
        architecture = fields["general.architecture"]
        model = model_of(fields, tied="output.weight" not in stored)
        if divisors := stored.pop("rope_freqs.weight", None):
            model = stretched(model, gguf.dequantize(divisors.data, divisors.tensor_type))
        tokenizer = tokenizer_of(fields)
        tokenizer.chat = chat_of(fields)
        tokenizer.save(folder)
    except KeyError as error:
        raise ValueError(f"{path} lacks the field {error}; take another file") from None
    except (ValueError, IndexError, OverflowError, OSError) as error:
        raise ValueError(f"{path} is no GGUF file that can be imported: {error}") from None
    ends = {"eos_token_id": tokenizer.eos_ids[0], "pad_token_id": tokenizer.pad_id}
    config = describe_model(model) | {"torch_dtype": "float32"} | ends
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    table = tensor_table(model)
    names = gguf.get_tensor_name_map(ARCHITECTURES[architecture][0], model.num_layers)
    sources = {name: names.get_name(name, (".weight", ".bias")) for name in table}
    shapes = {name: tensor.shape[::-1].tolist() for name, tensor in stored.items()}
    check_tensors(path, shapes, {sources[name]: tensors for name, tensors in table.items()})

    def values(name: str) -> Float[np.ndarray, "..."]:
        (tensor,) = table[name]
        return dequantise(stored[sources[name]], tensor, architecture)

    write_tensors(folder, table, values, itemsize=4)


def model_of(fields: dict[str, Any], tied: bool) -> ModelConfig:
    """The shape that the metadata of a GGUF file describes."""
    name = fields["general.architecture"]
    require(
        name in ARCHITECTURES,
        f"general.architecture must be one of {', '.join(ARCHITECTURES)}, got {name}",
    )
    found = {
        key.removeprefix(f"{name}."): decimal(value)
        for key, value in fields.items()
        if key.startswith(f"{name}.")
    }
    for key in found:
        require(
            key in FIELDS or key in OPTIONAL,
            f"{name}.{key} is not supported, got {found[key]}",
        )
    for key in FIELDS:
        if key not in found:
            raise KeyError(f"{name}.{key}")
    values = {
        "family": name,
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "head_dim": found["embedding_length"] // found["attention.head_count"],
        "tied_embeddings": tied,
        **ARCHITECTURES[name][1],
        **{(FIELDS | OPTIONAL)[key]: value for key, value in found.items()},
    }
    if name in PERIODS:
        layers, period = values["num_layers"], PERIODS[name]
        values["local_layers"] = tuple(i for i in range(layers) if (i + 1) % period)
        widest = values["embed_dim"] / values["num_heads"]
        values["query_scale"] = widest if layers == LARGEST[name] else float(values["head_dim"])
    return ModelConfig(**values)


def stretched(model: ModelConfig, divisors: Float[np.ndarray, "half"]) -> ModelConfig:
    """`model` with the scaling of Llama 3.1 or 3.2, of which the file holds what it divides by."""
    plain = frequencies(model)[0]
    for factor in (8.0, 32.0):
        scaled = dataclasses.replace(model, rope_scaling="llama3", rope_factor=factor)
        if np.allclose(plain / frequencies(scaled)[0], divisors, rtol=1e-3):
            return scaled
    raise ValueError("rope_freqs.weight is neither Llama 3.1's nor 3.2's; take the original model")


def decimal(value: Any) -> Any:
    """The shortest decimal of a float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def tokenizer_of(fields: dict[str, Any]) -> Tokenizer:
    """The tokenizer in the metadata of a GGUF file: byte-level BPE ("gpt2"), or SentencePiece."""
    table = {
        name.removeprefix("tokenizer.ggml."): value
        for name, value in fields.items()
        if name.startswith("tokenizer.ggml.")
    }
    tokens, kinds = table["tokens"], table["token_type"]
    eos_id = table["eos_token_id"]
    pad_id = table.get("padding_token_id", eos_id)
    if table["model"] == "gpt2":
        special = [token for token, kind in zip(tokens, kinds) if kind == gguf.TokenType.CONTROL]
        return byte_level_bpe(
            tokens, table["merges"], special, split=table["pre"], eos_id=eos_id, pad_id=pad_id
        )
    require(
        table["model"] == "llama",
        f"tokenizer.ggml.model must be gpt2 or llama, got {table['model']}",
    )
    names = {"bos_token_id": "bos_id", "eos_token_id": "eos_id", "unknown_token_id": "unk_id"}
    names |= {"padding_token_id": "pad_id"}
    ends = {ours: table[theirs] for theirs, ours in names.items() if theirs in table}
    add_space = table.get("add_space_prefix", True)
    return sentencepiece_from_tables(tokens, table["scores"], kinds, add_space=add_space, ends=ends)


def chat_of(fields: dict[str, Any]) -> Chat:
    """The chat template in the metadata of a GGUF file, and the special tokens it can name."""
    tokens, special = fields["tokenizer.ggml.tokens"], {}
    for name in ("bos", "eos"):
        if (id := fields.get(f"tokenizer.ggml.{name}_token_id")) is not None:
            special[f"{name}_token"] = tokens[id]
    return Chat(fields.get("tokenizer.chat_template", ""), special)


def dequantise(
    source: gguf.ReaderTensor, tensor: Tensor, architecture: str
) -> Float[np.ndarray, "..."]:
    """Float32 values of a GGUF tensor, as Hugging Face stores them."""
    values = gguf.dequantize(source.data, source.tensor_type)
    if architecture == "llama" and tensor.path.endswith(("query/kernel", "key/kernel")):
        width, heads, size = tensor.shape
        # llama.cpp rotates neighbouring rows, Hugging Face the two halves of a head.
        values = values.reshape(heads, size // 2, 2, width).swapaxes(1, 2)
    if architecture in PERIODS and tensor.path.endswith("scale"):
        values = values - 1
    return np.ascontiguousarray(values, "<f4").reshape(tensor.stored_shape)
