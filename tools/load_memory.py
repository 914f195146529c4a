"""Memory that reading a checkpoint takes: peak anonymous memory against the parameters' size.

    python tools/load_memory.py FOLDER [--gigabytes 1.2]

makes a random Llama checkpoint of that size in FOLDER, in float32 and several files, reads it in a
process of its own onto one CPU device and prints RssAnon (of /proc/self/status) at its peak, as a
share of the parameters, above what the process held before.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import safetensors.numpy

import grpojax
from grpojax.config import MeshConfig
from grpojax.families import describe_model, tensor_table
from grpojax.mesh import make_mesh
from grpojax.model import Policy, abstract_params
from grpojax.pretrained import INDEX, load_params, read_model_config


def make_checkpoint(folder: Path, gigabytes: float) -> None:
    """Random weights of a Llama of 16 layers, a file for each of four."""
    width = 64 * round((gigabytes * 1e9 / 4 / (16 * 12 * 64**2 + 32_000 * 64 / 16)) ** 0.5)
    model = grpojax.ModelConfig(
        vocab_size=32_000, embed_dim=width, ffw_dim=8 * width // 3 // 64 * 64, num_layers=16,
        num_heads=width // 64, num_kv_heads=width // 64, head_dim=64,
    )  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(describe_model(model)))
    random, listed = np.random.default_rng(0), {}
    names = list(tensor_table(model).items())
    for i in range(4):
        held = {
            name: random.standard_normal(tensors[0].stored_shape, np.float32)
            for name, tensors in names[i::4]
        }
        file = f"model-{i + 1:05}-of-00004.safetensors"
        safetensors.numpy.save_file(held, folder / file)
        listed |= dict.fromkeys(held, file)
    (folder / INDEX).write_text(json.dumps({"weight_map": listed}))


def anonymous() -> int:
    """Bytes of anonymous memory that this process holds."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def measure(folder: Path) -> None:
    model = read_model_config(folder)
    like = abstract_params(Policy(model), make_mesh(MeshConfig()))
    before, peak, done = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], anonymous())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.monotonic()
    params = jax.block_until_ready(load_params(folder, model, like))
    seconds = time.monotonic() - start
    done.set()
    watcher.join()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    share = (peak[0] - before) / size
    print(f"{size / 1e9:.2f} GB of parameters, peak RssAnon {share:.3f} of them, {seconds:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=1.2)
    parser.add_argument("--measure", action="store_true", help="read only: what the child runs")
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.folder)
        return
    if not arguments.folder.exists():
        make_checkpoint(arguments.folder, arguments.gigabytes)
    command = [sys.executable, __file__, str(arguments.folder), "--measure"]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
