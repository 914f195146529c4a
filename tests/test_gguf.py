"""GGUF: a tiny file written as llama.cpp does becomes exactly its parameters."""

import dataclasses
from pathlib import Path

import chex
import gguf
import numpy as np
import pytest
import safetensors.numpy
import tokenizers
from conftest import load_folder

from grpojax.config import ModelConfig
from grpojax.gguf import import_gguf
from grpojax.pretrained import read_model_config
from grpojax.rotary import frequencies
from grpojax.tokenizer import load_tokenizer

D, F, N, K, H, L = 32, 64, 4, 2, 8, 2
Q8_0 = gguf.GGMLQuantizationType.Q8_0
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENS += [*sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()), "ĊĊ", "12"]
V = len(TOKENS)
SIZES = dict(vocab_size=V, embed_dim=D, ffw_dim=F, num_layers=L, num_heads=N, num_kv_heads=K)
MODEL = ModelConfig(head_dim=H, max_length=128, rope_base=5e4, norm_epsilon=1e-5, **SIZES)
SHAPES = {"attn_q": (N * H, D), "attn_k": (K * H, D), "attn_v": (K * H, D)}
SHAPES |= {"attn_output": (D, N * H), "attn_norm": (D,), "ffn_norm": (D,)}
SHAPES |= {"ffn_gate": (F, D), "ffn_up": (F, D), "ffn_down": (D, F)}


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    """Weights of MODEL by their names in a GGUF file, rows of queries and keys not yet permuted."""
    shapes = {"token_embd.weight": (V, D), "output_norm.weight": (D,)}
    for layer in range(L):
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in SHAPES.items()}
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """Row order of llama.cpp, one row at a time: its rows 2i and 2i + 1 are rows i and H/2 + i."""
    starts, half = range(0, heads * H, H), H // 2
    return rows[[start + i + j for start in starts for i in range(half) for j in (0, half)]]


def write_gguf(path: Path, weights: dict[str, np.ndarray], quantised=(), **changes) -> Path:
    """Writes MODEL with `weights`, those of `quantised` as Q8_0 or as the bytes it maps them to;
    `changes` are metadata fields (None: left out)."""
    sizes = {"embedding_length": D, "feed_forward_length": F, "block_count": L, "vocab_size": V}
    sizes |= {"context_length": 128}
    sizes |= {"attention.head_count": N, "attention.head_count_kv": K, "rope.dimension_count": H}
    sizes |= {"attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 5e4}
    tables = {"tokens": TOKENS, "token_type": [3] * 3 + [1] * (V - 3), "merges": ["Ċ Ċ", "1 2"]}
    tables |= {"model": "gpt2", "pre": "smollm", "eos_token_id": 2, "padding_token_id": 2}
    architecture = changes.pop("architecture", "llama")
    fields = {f"{architecture}.{name}": value for name, value in sizes.items()}
    fields |= {f"tokenizer.ggml.{name}": value for name, value in tables.items()}
    fields |= changes
    writer = gguf.GGUFWriter(path, architecture)
    add = {list: writer.add_array, str: writer.add_string, float: writer.add_float32}
    add[bool] = writer.add_bool
    for name, value in fields.items():
        if value is not None:
            add.get(type(value), writer.add_uint32)(name, value)
    for name, values in weights.items():
        if isinstance(quantised, dict) and name in quantised:
            kind, packed = quantised[name]
            writer.add_tensor(name, packed, raw_dtype=kind)
            continue
        if architecture == "llama" and name.endswith(("attn_q.weight", "attn_k.weight")):
            values = permuted(values, N if "attn_q" in name else K)
        kind = Q8_0 if name in quantised else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory, weights) -> Path:
    """The imported model; tests that change it copy it."""
    path = tmp_path_factory.mktemp("pretrained")
    import_gguf(write_gguf(path / "tiny.gguf", weights), path / "models" / "tiny")
    return path / "models" / "tiny"


def test_an_imported_model_has_exactly_the_weights_of_the_gguf(folder, weights):
    assert read_model_config(folder) == MODEL
    params = load_folder(folder, MODEL)
    layers = params["layers"]
    attention, ffw = layers["attention"], layers["ffw"]
    expected = [(params["embed"]["embedding"], weights["token_embd.weight"])]
    expected.append((params["final_norm"]["scale"], weights["output_norm.weight"]))
    for i in range(L):
        block = {name: weights[f"blk.{i}.{name}.weight"] for name in SHAPES}
        expected.append((layers["attention_norm"]["scale"][i], block["attn_norm"]))
        expected.append((layers["ffw_norm"]["scale"][i], block["ffn_norm"]))
        for name in ("gate", "up", "down"):
            expected.append((ffw[name]["kernel"][i], block[f"ffn_{name}"].T))
        for n, rows in enumerate(slice(n * H, n * H + H) for n in range(N)):
            expected.append((attention["query"]["kernel"][i, :, n], block["attn_q"][rows].T))
            expected.append((attention["out"]["kernel"][i, n], block["attn_output"][:, rows].T))
            if n < K:
                expected.append((attention["key"]["kernel"][i, :, n], block["attn_k"][rows].T))
                expected.append((attention["value"]["kernel"][i, :, n], block["attn_v"][rows].T))
    for got, wanted in expected:
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, wanted)
    assert sum(got.size for got, _ in expected) == sum(w.size for w in weights.values())
    assert params.keys() == {"embed", "layers", "final_norm"}


def test_quantised_tensors_become_their_dequantised_values(tmp_path, weights):
    names = [name for name, values in weights.items() if values.ndim == 2]
    import_gguf(write_gguf(tmp_path / "q.gguf", weights, quantised=names), tmp_path / "m")
    query = load_folder(tmp_path / "m", MODEL)["layers"]["attention"]["query"]["kernel"]
    for i in range(L):
        rows = weights[f"blk.{i}.attn_q.weight"]
        wanted = gguf.dequantize(gguf.quantize(rows, Q8_0), Q8_0)
        assert 0 < abs(wanted - rows).max() < 0.03
        np.testing.assert_array_equal(query[i].reshape(D, N * H), wanted.T)


def test_an_untied_head_is_imported(tmp_path, weights):
    head = np.random.default_rng(1).normal(size=(V, D)).astype(np.float32)
    import_gguf(write_gguf(tmp_path / "u", weights | {"output.weight": head}), tmp_path / "m")
    model = read_model_config(tmp_path / "m")
    assert not model.tied_embeddings
    np.testing.assert_array_equal(load_folder(tmp_path / "m", model)["head"]["kernel"], head.T)


def test_the_imported_tokenizer_splits_digits_and_knows_its_end(folder):
    tokenizer = load_tokenizer(str(folder))
    ids = tokenizer.encode("12\n\n<|im_end|>")
    assert [TOKENS[id] for id in ids] == ["1", "2", "ĊĊ", "<|im_end|>"]
    assert (tokenizer.vocab_size, tokenizer.eos_ids[0], tokenizer.pad_id) == (V, 2, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "gpt2"}, "general.architecture must be one of llama, .*, got gpt2"),
        ({"tokenizer.ggml.pre": "gpt-2"}, "ggml.pre must be one of smollm, .*, got gpt-2"),
        ({"llama.rope.scaling.type": "yarn"}, "rope_scaling must be one of none, linear, llama3"),
        ({"llama.expert_count": 8}, "llama.expert_count is not supported, got 8"),
        ({"llama.block_count": None}, "lacks the field 'llama.block_count'"),
        ({"llama.block_count": 3}, "lacks tensors, 9 in all: blk.2.attn_k.weight"),
        ({"llama.block_count": 1}, "superfluous tensors, 9 in all: blk.1.attn_k.weight"),
        ({"llama.vocab_size": V + 1}, r"token_embd.weight must have shape \[262, 32\], got \[261"),
        ({"llama.attention.head_count": 3}, "num_heads=3 must be a multiple"),
        ({"tokenizer.ggml.merges": ["x y"]}, "merge .* must be two tokens"),
        ({"tokenizer.ggml.eos_token_id": 999}, "EOS id 999 is not a token"),
    ],
)
def test_a_gguf_that_does_not_fit_is_refused_by_name(tmp_path, weights, changes, message):
    path = write_gguf(tmp_path / "bad.gguf", weights, **changes)
    with pytest.raises(ValueError, match=message) as error:
        import_gguf(path, tmp_path / "m")
    assert "\n" not in str(error.value)
    assert [file.name for file in tmp_path.iterdir()] == ["bad.gguf"]


@pytest.mark.parametrize("kept", [0, 3, 20, 1000, 5000, -1, -5000])
def test_a_truncated_gguf_is_refused_and_leaves_nothing(tmp_path, weights, kept):
    path = write_gguf(tmp_path / "cut.gguf", weights)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"cut.gguf"):
        import_gguf(path, tmp_path / "m")
    assert [file.name for file in tmp_path.iterdir()] == ["cut.gguf"]


def test_a_missing_gguf_and_an_occupied_folder_are_refused(tmp_path, folder):
    with pytest.raises(ValueError, match="no GGUF file that can be imported"):
        import_gguf(tmp_path / "none.gguf", tmp_path / "m")
    with pytest.raises(ValueError, match="must be new or empty"):
        import_gguf(tmp_path / "none.gguf", folder)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_divisors_of_llama_3_frequencies_become_their_scaling(tmp_path, weights, factor):
    scaled = dataclasses.replace(MODEL, rope_scaling="llama3", rope_factor=factor)
    divisors = (frequencies(MODEL)[0] / frequencies(scaled)[0]).astype(np.float32)
    assert divisors.max() == pytest.approx(factor)
    for change, file in ((0.0, "good"), (1.0, "bad")):
        tensors = weights | {"rope_freqs.weight": divisors + np.float32(change)}
        write_gguf(tmp_path / file, tensors)
    import_gguf(tmp_path / "good", tmp_path / "m")
    assert read_model_config(tmp_path / "m") == scaled
    with pytest.raises(ValueError, match="is neither"):
        import_gguf(tmp_path / "bad", tmp_path / "n")


METADATA = {  # what the files of an architecture state, beside what all do
    "qwen2": {"rope.dimension_count": None},
    "gemma2": {
        "rope.dimension_count": None, "attention.key_length": 16, "attention.value_length": 16,
        "attn_logit_softcapping": 3.0, "final_logit_softcapping": 2.0,
        "attention.sliding_window": 8,
    },
    "gemma3": {
        "rope.dimension_count": None, "attention.key_length": 16, "attention.value_length": 16,
        "attention.sliding_window": 8, "rope.freq_base_swa": 50.0, "rope.scaling.type": "linear",
        "rope.scaling.factor": 8.0, "rope.freq_base": 1e3,
    },
}  # fmt: skip
KNOWN = {  # what llama.cpp knows by itself, where the goldens differ
    "qwen2": {"sliding_window": 0, "local_layers": ()},
    "gemma2": {"query_scale": 16.0},
    "gemma3": {"query_scale": 16.0, "local_layers": (0, 1, 2, 3)},
}


@pytest.mark.parametrize("family", METADATA)
def test_other_architectures_are_read_as_llama_cpp_writes_them(tmp_path, family):
    """A golden checkpoint under llama.cpp's names, Gemma's norms with 1 added."""
    folder = Path(__file__).parent / "goldens" / family
    golden = read_model_config(folder)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.upper()], golden.num_layers)
    tensors = {}
    for name, values in safetensors.numpy.load_file(folder / "model.safetensors").items():
        added = family.startswith("gemma") and "norm" in name
        tensors[names.get_name(name, (".weight", ".bias"))] = values + np.float32(added)
    tokens = ["<unk>", "<s>", "</s>", *map(chr, range(0x4E00, 0x4E00 + 92))]
    tokens.append("\u4e02\u4e03")
    fields = {
        "block_count": golden.num_layers, "embedding_length": golden.embed_dim, "vocab_size": 96,
        "feed_forward_length": golden.ffw_dim, "attention.head_count": golden.num_heads,
        "attention.head_count_kv": golden.num_kv_heads, "context_length": golden.max_length,
        "attention.layer_norm_rms_epsilon": golden.norm_epsilon, "rope.freq_base": 1e4,
    } | METADATA[family]  # fmt: skip
    changes = {f"{family}.{name}": value for name, value in fields.items()}
    tables = {"tokens": tokens, "token_type": [2, 3, 3] + [1] * 93, "merges": ["\u4e02 \u4e03"]}
    tables |= {"model": "gpt2", "pre": "qwen2"}
    if family != "qwen2":
        tables |= {"model": "llama", "scores": [-1.0 * i for i in range(96)], "pre": None}
        tables |= {"add_space_prefix": False, "unknown_token_id": 0}
    changes |= {f"tokenizer.ggml.{name}": value for name, value in tables.items()}
    changes["tokenizer.chat_template"] = "{{ bos_token }}"
    path = write_gguf(tmp_path / "m.gguf", tensors, architecture=family, **changes)
    import_gguf(path, tmp_path / "m")
    model = read_model_config(tmp_path / "m")
    assert model == dataclasses.replace(golden, **KNOWN[family])
    chex.assert_trees_all_close(
        load_folder(tmp_path / "m", model), load_folder(folder, golden), rtol=0, atol=3e-7
    )
    tokenizer = load_tokenizer(str(tmp_path / "m"))
    assert tokenizer.chat.template == "{{ bos_token }}"
    if family != "qwen2":
        assert tokenizer.encode("\u4e00\u4e01") == [3, 4]
