"""Hostile folders: files that lie, are cut short or point elsewhere are refused by name, in one
line, before their content is used."""

import json
import pathlib
import pickle
import struct

import numpy as np
import pytest
import safetensors.numpy
from conftest import load_folder
from test_gguf import MODEL, folder, weights  # noqa: F401

from grpojax.pretrained import INDEX, WEIGHTS


def header_of(path) -> tuple[dict, bytes]:
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def write(path, header: dict | bytes, data: bytes, size: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + data)


def lie(change):
    """Damage that changes the header of the weights."""

    def damage(copy):
        header, data = header_of(copy / WEIGHTS)
        change(header)
        write(copy / WEIGHTS, header, data)

    return damage


def at(name, **fields):
    return lie(lambda header: header[name].update(fields))


def shifted(header):
    """Two tensors that share their bytes."""
    first, second = "model.norm.weight", "model.layers.0.input_layernorm.weight"
    header[second]["data_offsets"] = header[first]["data_offsets"]


def bytes_at(start, values):
    def damage(copy):
        content = bytearray((copy / WEIGHTS).read_bytes())
        content[start : start + len(values)] = values
        (copy / WEIGHTS).write_bytes(content)

    return damage


def sharded(change=lambda index: None, extra=None):
    """Damage that splits the weights in two with an index, then changes the index."""

    def damage(copy):
        tensors = safetensors.numpy.load_file(copy / WEIGHTS)
        names, index = sorted(tensors), {}
        for i, half in enumerate((names[::2], names[1::2])):
            file = f"part-{i}.safetensors"
            held = (
                {name: tensors[name] for name in half} | (extra or {})
                if i
                else {name: tensors[name] for name in half}
            )
            safetensors.numpy.save_file(held, copy / file)
            index |= dict.fromkeys(half, file)
        (copy / WEIGHTS).unlink()
        change(index)
        (copy / INDEX).write_text(json.dumps({"weight_map": index}))

    return damage


class Bomb:
    """A pickle that leaves a file behind if anything loads it."""

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("exploded"),)


def pickled(copy):
    (copy / WEIGHTS).unlink()
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))


def pickle_in_place(copy):
    (copy / WEIGHTS).write_bytes(pickle.dumps(Bomb()))


def config(text):
    return lambda copy: (copy / "config.json").write_text(text)


def point(name, file):
    return sharded(lambda index: index.__setitem__(name, file))


NORM = "model.norm.weight"
HOSTILE = {
    "empty weights": (lambda copy: (copy / WEIGHTS).write_bytes(b""), "cannot read"),
    "cut in the length": (lambda c: (c / WEIGHTS).write_bytes(b"\x10\0\0"), "cannot read"),
    "cut in the header": (
        lambda c: (c / WEIGHTS).write_bytes((c / WEIGHTS).read_bytes()[:100]), "cannot read",
    ),
    "cut in the data": (
        lambda c: (c / WEIGHTS).write_bytes((c / WEIGHTS).read_bytes()[:-1]), "cannot read",
    ),
    "data too long": (
        lambda c: (c / WEIGHTS).write_bytes((c / WEIGHTS).read_bytes() + b"x"), "cannot read",
    ),
    "header of exabytes": (bytes_at(0, b"\xff" * 8), "cannot read"),
    "header of a gigabyte": (bytes_at(0, struct.pack("<Q", 10**9)), "cannot read"),
    "header is no JSON": (bytes_at(8, b"]"), "cannot read"),
    "header is no UTF-8": (bytes_at(9, b"\xff\xfe"), "cannot read"),
    "header is a list": (lambda c: write(c / WEIGHTS, b"[]", b""), "cannot read"),
    "no tensors": (lambda c: write(c / WEIGHTS, {}, b""), "lacks tensors, 20 in all"),
    "overlapping tensors": (lie(shifted), "cannot read"),
    "offsets past the end": (at(NORM, data_offsets=[0, 10**12]), "cannot read"),
    "offsets backwards": (at(NORM, data_offsets=[128, 0]), "cannot read"),
    "negative offsets": (at(NORM, data_offsets=[-128, 0]), "cannot read"),
    "shape beyond its bytes": (at(NORM, shape=[10**9, 10**9]), "cannot read"),
    "shape that overflows": (at(NORM, shape=[2**63, 2**63]), "cannot read"),
    "another shape of as many bytes": (at(NORM, shape=[4, 8]), "must have shape"),
    "an unknown type": (at(NORM, dtype="F99"), "cannot read"),
    "an integer type": (at(NORM, dtype="I32"), "must be F32, F16, BF16, got I32"),
    "a missing tensor": (
        lie(lambda h: h.__setitem__("other", h.pop(NORM))), f"lacks tensors, 1 in all: {NORM}",
    ),
    "a pickle under the name": (pickle_in_place, "cannot read"),
    "a pickle instead": (pickled, "cannot read"),
    "index with ../": (point(NORM, "../part-0.safetensors"), "must name .safetensors files beside"),
    "index with an absolute path": (point(NORM, "/etc/passwd"), "must name .safetensors files"),
    "index to another kind of file": (point(NORM, "config.json"), "must name .safetensors files"),
    "index to a missing file": (point(NORM, "part-7.safetensors"), "cannot read .*part-7"),
    "index to the wrong file": (
        sharded(lambda i: i.update({n: "part-0.safetensors" for n in i})), "part-. ?.*lacks|cannot",
    ),
    "index of numbers": (point(NORM, 3), "no index of tensors|must name"),
    "index without a map": (
        lambda c: (sharded()(c), (c / INDEX).write_text("{}")), "is no index of tensors",
    ),
    "a tensor no index lists": (
        sharded(extra={"hidden": np.zeros(3, np.float32)}), "holds hidden, not listed",
    ),
    "config is no JSON": (config("{"), "describes no model"),
    "config is a list": (config("[]"), "describes no model"),
    "config of another kind": (config('{"architectures": 7}'), "describes no model"),
    "config with a huge layer count": (
        lambda c: change_config(c, num_hidden_layers=10**6), "model.num_layers must be 1000000",
    ),
    "config with a negative width": (lambda c: change_config(c, hidden_size=-32), "no model"),
    "config with a width of text": (lambda c: change_config(c, vocab_size="9" * 9), "no model"),
    "config with NaN": (
        lambda c: (c / "config.json").write_text(
            (c / "config.json").read_text().replace("50000.0", "NaN")
        ),
        "describes no model",
    ),
}  # fmt: skip


def change_config(copy, **fields):
    path = copy / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_folder_is_refused_by_name(folder, tmp_path, monkeypatch, name):
    damage, message = HOSTILE[name]
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    damage(copy)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        load_folder(copy, MODEL)
    assert "copy" in str(error.value) and "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_an_honest_sharded_folder_is_read(folder, tmp_path):
    import chex

    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    sharded()(copy)
    chex.assert_trees_all_equal(load_folder(copy, MODEL), load_folder(folder, MODEL))
