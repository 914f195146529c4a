"""GGUF: every type of quantised tensor becomes what its scales say."""

import dataclasses

import gguf
import numpy as np
import pytest
from conftest import load_folder
from test_gguf import MODEL, D, weights, write_gguf  # noqa: F401

from grpojax.gguf import import_gguf


def half(*values: float) -> bytes:
    return np.array(values, "<f2").tobytes()


def packed_scales(scales: np.ndarray, minima: np.ndarray) -> bytes:
    """Eight scales and eight minima of 6 bits in 12 bytes, as Q4_K and Q5_K hold them."""
    low = [s | (t >> 4 << 6) for s, t in zip(scales[:4], scales[4:])]
    low += [m | (t >> 4 << 6) for m, t in zip(minima[:4], minima[4:])]
    return bytes([*low, *(s & 15 | (m & 15) << 4 for s, m in zip(scales[4:], minima[4:]))])


def nibbles(q: np.ndarray) -> bytes:
    """Values 64 i + l and 64 i + 32 + l share a byte."""
    first, second = q.reshape(4, 2, 32).swapaxes(0, 1)
    return (first | second << 4).astype(np.uint8).tobytes()


def q4_k(random) -> tuple[bytes, np.ndarray]:
    """A block of 256 values, and what it stands for: d * scale * q - dmin * minimum."""
    q, (scales, minima) = random.integers(0, 16, (8, 32)), random.integers(0, 64, (2, 8))
    values = 0.5 * scales[:, None] * q - 0.25 * minima[:, None]
    return half(0.5, 0.25) + packed_scales(scales, minima) + nibbles(q.ravel()), values


def q5_k(random) -> tuple[bytes, np.ndarray]:
    """As Q4_K with a fifth bit, of which a byte holds those of eight sub-blocks."""
    q, (scales, minima) = random.integers(0, 32, (8, 32)), random.integers(0, 64, (2, 8))
    fifth = (q >> 4 << np.arange(8)[:, None]).sum(0).astype(np.uint8).tobytes()
    values = 0.5 * scales[:, None] * q - 0.25 * minima[:, None]
    packed = packed_scales(scales, minima) + fifth + nibbles((q & 15).ravel())
    return half(0.5, 0.25) + packed, values


def q6_k(random) -> tuple[bytes, np.ndarray]:
    """Sixteen sub-blocks of 16: d * scale * (q - 32), four bits here and two bits there."""
    q, scales = random.integers(0, 64, (2, 4, 32)), random.integers(-128, 128, 16)
    low = np.concatenate([q[:, :2] & 15 | (q[:, 2:] & 15) << 4]).astype(np.uint8)
    high = sum(q[:, i] >> 4 << 2 * i for i in range(4)).astype(np.uint8)
    values = 0.5 * np.repeat(scales, 16) * (q.ravel() - 32)
    parts = low.tobytes(), high.tobytes(), scales.astype(np.int8).tobytes(), half(0.5)
    return b"".join(parts), values


K_KINDS = {"Q4_K": q4_k, "Q5_K": q5_k, "Q6_K": q6_k}


@pytest.mark.parametrize("kind", K_KINDS)
def test_k_quantised_tensors_become_what_their_scales_say(tmp_path, weights, kind):
    """Blocks of 256 values, packed by hand: the library cannot quantise to these."""
    random, wide = np.random.default_rng(0), 256
    blocks = [K_KINDS[kind](random) for _ in range(2 * D)]
    packed = np.frombuffer(b"".join(block for block, _ in blocks), np.uint8).reshape(D, -1)
    down = np.concatenate([values.ravel() for _, values in blocks]).reshape(D, 2 * wide)
    wider = {}
    for name, values in weights.items():
        shape = {"ffn_gate": (2 * wide, D), "ffn_up": (2 * wide, D), "ffn_down": (D, 2 * wide)}
        shape = shape.get(name.split(".")[-2], values.shape)
        wider[name] = np.resize(values, shape)
    quantised = {"blk.1.ffn_down.weight": (gguf.GGMLQuantizationType[kind], packed)}
    changes = {"llama.feed_forward_length": 2 * wide}
    import_gguf(write_gguf(tmp_path / "k.gguf", wider, quantised, **changes), tmp_path / "m")
    model = dataclasses.replace(MODEL, ffw_dim=2 * wide)
    found = load_folder(tmp_path / "m", model)["layers"]["ffw"]["down"]["kernel"][1]
    np.testing.assert_array_equal(found.T, down.astype(np.float32))


SIMPLE = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]


@pytest.mark.parametrize("kind", SIMPLE)
def test_other_types_become_their_dequantised_values(tmp_path, weights, kind):
    name, kind = "blk.0.ffn_down.weight", gguf.GGMLQuantizationType[kind]
    packed = gguf.quantize(weights[name], kind)
    path = write_gguf(tmp_path / "q.gguf", weights, {name: (kind, packed)})
    import_gguf(path, tmp_path / "m")
    found = load_folder(tmp_path / "m", MODEL)["layers"]["ffw"]["down"]["kernel"][0]
    np.testing.assert_array_equal(found.T, gguf.dequantize(packed, kind))
    assert 0 < np.abs(found.T - weights[name]).max() < 0.5
