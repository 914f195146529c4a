"""GGUF files, as llama.cpp reads them, made into Hugging Face folders."""

import json
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import safetensors.numpy
from jaxtyping import Float

from grpojax.families import Tensor, describe_model, tensor_table
from grpojax.pretrained import check_tensors, read_model_config
from grpojax.tokenizer import byte_level_bpe

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
GGUF_ONLY = {
    "general.architecture": "llama",
    "tokenizer.ggml.model": "gpt2",  # byte-level BPE
    "tokenizer.ggml.pre": "smollm",  # digits split
}


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
