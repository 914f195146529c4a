"""Pretrained models: Hugging Face folders read into parameters, and written from them.

`families` names every tensor, its shape and its place in the parameter tree; reading and writing
both follow it. Tensors are read in pieces, each put where it belongs on the mesh before the next,
so no host holds the model.
"""

import contextlib
import dataclasses
import functools
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jax.sharding import Sharding
from jaxtyping import Array, Int, Num

from grpojax.architecture import ModelConfig
from grpojax.checks import require
from grpojax.families import FREE, Tensor, describe_model, read_model, tensor_table
from grpojax.types import Params

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PIECE_BYTES = 2**22  # most of a tensor that is read at once, if its rows are no larger
FILE_BYTES = 5 * 10**9  # most that an exported file holds
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}


def read_model_config(folder: str | Path) -> ModelConfig:
    """The shape of the model in `folder`, from its `config.json`.

    Raises ValueError if that cannot be read, lacks a field, or states what is not supported.
    """
    path = Path(folder) / "config.json"
    try:
        return read_model(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, AttributeError, KeyError, OSError) as error:
        raise ValueError(f"{path} describes no model that can be loaded: {error}") from None


def check_model(folder: str | Path, model: ModelConfig) -> None:
    """Raises ValueError naming the first field in which `model` differs from the one in `folder`.

    `compute_dtype` and `remat` are free, and `max_length` may be smaller.
    """
    for name, theirs in dataclasses.asdict(read_model_config(folder)).items():
        ours = getattr(model, name)
        fits = ours <= theirs if name == "max_length" else ours == theirs
        require(fits or name in FREE, f"model.{name} must be {theirs}, as in {folder}, got {ours}")


def load_params(folder: str | Path, model: ModelConfig, like: Params) -> Params:
    """Parameters in `folder`, with the dtypes and shardings of `like`, read piece by piece.

    Raises ValueError if `model` does not fit `folder` (see `check_model`), a file is missing or
    damaged, or a tensor is missing, superfluous, of another shape, or not F32, F16 or BF16.
    """
    check_model(folder, model)
    table = tensor_table(model)
    places, tree = jax.tree.flatten_with_path(like)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in places]
    with open_tensors(Path(folder)) as stored:
        check_tensors(Path(folder), {n: part.get_shape() for n, part in stored.items()}, table)
        for name, part in stored.items():
            require(
                part.get_dtype() in DTYPES,
                f"{folder}: {name} must be {', '.join(DTYPES)}, got {part.get_dtype()}",
            )
        leaves = {name: zeros(leaf) for name, (_, leaf) in zip(names, places)}
        for name, tensors in table.items():
            row = 0
            for tensor in tensors:
                leaf = leaves[tensor.path]
                for first, count in pieces(tensor):
                    rows = tensor.stored_shape[0] // tensor.shape[tensor.inputs]
                    start = row + first * rows
                    values = stored[name][start : start + count * rows]
                    leaf = write_piece(leaf, values, tensor, first, count)
                    jax.block_until_ready(leaf)  # else pieces pile up before they are written
                leaves[tensor.path] = leaf
                row += tensor.stored_shape[0]
    return jax.tree.unflatten(tree, [leaves[name] for name in names])


def pieces(tensor: Tensor) -> Iterator[tuple[int, int]]:
    """Stretches (first, count) of the tensor's first output axis, each of some megabytes."""
    units = tensor.shape[tensor.inputs]
    most = max(1, PIECE_BYTES * units // (4 * math.prod(tensor.shape)))
    return ((first, min(most, units - first)) for first in range(0, units, most))


def zeros(leaf: jax.ShapeDtypeStruct) -> Array:
    """Zeros, made where they are to lie."""
    return jax.jit(lambda: jnp.zeros(leaf.shape, leaf.dtype), out_shardings=leaf.sharding)()


def write_piece(
    leaf: Array, values: Num[np.ndarray, "..."], tensor: Tensor, first: int, count: int
) -> Array:
    """`leaf`, which is given up, with a piece of a tensor at its place."""
    shape = list(tensor.shape)
    shape[tensor.inputs] = count
    at = [*tensor.index, *([0] * len(shape))]
    at[len(tensor.index) + tensor.inputs] = first
    return piece_writer(leaf.sharding, tuple(shape), tensor.inputs > 0)(leaf, values, at)


@functools.cache
def piece_writer(sharding: Sharding, shape: tuple[int, ...], transposed: bool) -> Callable:
    def write(leaf: Array, values: Array, at: list[Int[Array, ""]]) -> Array:
        block = (values.T if transposed else values).reshape(shape).astype(leaf.dtype)
        block = block[(None,) * (leaf.ndim - block.ndim)]
        return jax.lax.dynamic_update_slice(leaf, block, at)

    return jax.jit(write, donate_argnums=0, out_shardings=sharding)


@contextlib.contextmanager
def open_tensors(folder: Path) -> Iterator[dict[str, Any]]:
    """The tensors in `folder` by name, mapped and not read, from one file or those of an index."""
    index = folder / INDEX
    with contextlib.ExitStack() as stack:
        if (folder / WEIGHTS).exists() or not index.exists():
            yield open_file(folder / WEIGHTS, stack)
            return
        listed = read_index(index)
        files = {name: open_file(folder / name, stack) for name in set(listed.values())}
        for name, file in listed.items():
            require(name in files[file], f"{folder / file} lacks {name}, which {index} lists in it")
        for file, held in files.items():
            for name in held:
                require(
                    listed.get(name) == file, f"{folder / file} holds {name}, not listed in {index}"
                )
        yield {name: files[file][name] for name, file in listed.items()}


def open_file(path: Path, stack: contextlib.ExitStack) -> dict[str, Any]:
    """The tensors of one file, which stays open as long as `stack`."""
    try:
        file = stack.enter_context(safetensors.safe_open(path, framework="numpy"))
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"cannot read {path}: {error}; copy or import the model again") from None
    return {name: file.get_slice(name) for name in list(file.keys())}


def read_index(path: Path) -> dict[str, str]:
    """File by tensor, from a `model.safetensors.index.json`; every file stands beside it."""
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(listed.values()))
    except (ValueError, TypeError, AttributeError, KeyError, OSError) as error:
        raise ValueError(f"{path} is no index of tensors: {error!r}") from None
    for name in files:
        require(
            isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors"),
            f"{path} must name .safetensors files beside it, got {name!r}",
        )
    return listed


def check_tensors(
    path: Path, found: dict[str, list[int]], table: dict[str, tuple[Tensor, ...]]
) -> None:
    """Raises ValueError unless `found`, the shapes by name in `path`, are those of `table`."""
    for what, names in (("lacks", table.keys() - found), ("has superfluous", found - table.keys())):
        require(not names, f"{path} {what} tensors, {len(names)} in all: {min(names, default='')}")
    for name, tensors in table.items():
        rows, *rest = zip(*(tensor.stored_shape for tensor in tensors))
        shape = [sum(rows), *(sizes[0] for sizes in rest)]
        require(found[name] == shape, f"{path}: {name} must have shape {shape}, got {found[name]}")


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `folder` when all went well; else nothing is left.

    Raises ValueError if `folder` exists and is not empty.
    """
    require(
        not folder.exists() or (folder.is_dir() and not any(folder.iterdir())),
        f"{folder} must be new or empty; remove it or name another",
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        whole = Path(scratch) / folder.name
        whole.mkdir()
        yield whole
        whole.rename(folder)


def save_params(
    folder: Path, params: Params, model: ModelConfig, dtype: jnp.dtype, end: dict[str, Any]
) -> None:
    """Writes `config.json`, with the fields `end` added, and the tensors into an empty `folder`.

    One `model.safetensors`, or files of at most 5 GB with an index. Raises ValueError if the
    model's family has no way to say its shape.
    """
    names = {jnp.dtype(numpy): name for name, numpy in DTYPES.items()}
    require(dtype in names, f"dtype must be one of {', '.join(map(str, names))}, got {dtype}")
    config = describe_model(model) | {"torch_dtype": str(dtype)} | end
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    table = tensor_table(model)
    write_tensors(
        folder,
        table,
        lambda name: stored_values(params, table[name], dtype),
        itemsize=dtype.itemsize,
    )


def write_tensors(
    folder: Path,
    table: dict[str, tuple[Tensor, ...]],
    values: Callable[[str], Num[np.ndarray, "..."]],
    *,
    itemsize: int,
) -> None:
    """Writes what `values` gives for every name in `table`, a file's worth of it at a time."""
    files: list[list[str]] = [[]]
    left = FILE_BYTES
    for name, tensors in table.items():
        size = sum(math.prod(tensor.shape) for tensor in tensors) * itemsize
        if size > left and files[-1]:
            files.append([])
            left = FILE_BYTES
        files[-1].append(name)
        left -= size
    listed = {}
    for i, held in enumerate(files):
        file = WEIGHTS if len(files) == 1 else f"model-{i + 1:05}-of-{len(files):05}.safetensors"
        arrays = {name: values(name) for name in held}
        safetensors.numpy.save_file(arrays, folder / file, metadata={"format": "pt"})
        listed |= dict.fromkeys(held, file)
    if len(files) > 1:
        index = {"metadata": {}, "weight_map": listed}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def stored_values(
    params: Params, tensors: tuple[Tensor, ...], dtype: jnp.dtype
) -> Num[np.ndarray, "..."]:
    """The values of one stored tensor, contiguous (`save_file` would write others askew)."""
    parts = []
    for tensor in tensors:
        values = np.asarray(leaf_at(params, tensor.path)[tensor.index]).astype(dtype)
        values = (
            values.reshape(math.prod(tensor.shape[: tensor.inputs]), -1).T
            if tensor.inputs
            else values
        )
        parts.append(values.reshape(tensor.stored_shape))
    return np.ascontiguousarray(np.concatenate(parts))


def leaf_at(tree: Params, path: str) -> Array:
    """The leaf at `path`, whose keys are joined by "/"."""
    for key in path.split("/"):
        tree = tree[key]
    return tree
