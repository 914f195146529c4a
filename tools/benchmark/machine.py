"""Machine: what results were measured on and with."""

import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from grpojax.run import git_commit
from tools.benchmark.environments import versions


def about(libraries: Iterable[str], threads: int, workdir: Path) -> dict[str, Any]:
    """Date, commit, machine, and the versions in the environment of each library."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = {line.partition(": ")[2] for line in lines if line.startswith("model name")}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "commit": git_commit(),
        "machine": f"{', '.join(models)}, {os.cpu_count()} cores, {memory / 1e9:.0f} GB",
        "python": platform.python_version(),
        "threads": threads,
        "versions": {name: versions(name, workdir) for name in sorted(set(libraries))},
    }


def rates() -> dict[str, float]:
    """What the machine does at this hour: the most operations a second in a product of two 2048 x
    2048 matrices, and bytes a second in one of a matrix of 0.5 GB and a vector, in float32."""
    side, wide = jnp.ones((2048, 2048)), jnp.ones((1 << 13, 1 << 14))
    return {
        "flops": 2 * 2048**3 / least_seconds(side, side),
        "bytes": 4 * wide.size / least_seconds(wide, wide[0]),
    }


def least_seconds(x: jax.Array, y: jax.Array, times: int = 20) -> float:
    """Of the product of x and y, once it is compiled."""
    product, found = jax.jit(jnp.dot), []
    for _ in range(times + 1):
        start = time.perf_counter()
        product(x, y).block_until_ready()
        found.append(time.perf_counter() - start)
    return min(found[1:])
