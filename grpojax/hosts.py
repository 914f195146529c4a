"""Hosts: the processes of a run on several machines, and what they tell each other.

Every host runs the same program and dispatches the same work to its own devices. What only one of
them knows (verdicts on its share of a batch, a signal) is exchanged, so that all go on alike.
"""

import contextlib
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from grpojax.storage import Place

LOST = 71  # exit code: another host is gone; start all of them again


def meet(
    *,
    coordinator: str,
    count: int,
    index: int,
    heartbeat: int,
    patience: int,
    environment: Mapping[str, str],
    devices: Path = Path("/dev"),
) -> None:
    """Finds the other hosts and waits for them; nothing where there is one. Before JAX is used.

    Without a `coordinator` (host:port of process 0) they are found under Slurm and on Cloud TPU. A
    host without a sign of life for `heartbeat` seconds is lost. If they are not all there within
    `patience` seconds, JAX ends the process with its own message.
    """
    slurm = int(environment.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in environment
    tpu = any(any(devices.glob(sign)) for sign in ("accel[0-9]*", "vfio/[0-9]*"))
    tpu &= importlib.util.find_spec("libtpu") is not None
    tpu &= environment.get("JAX_PLATFORMS", "tpu") != "cpu"
    if not coordinator and not slurm and not tpu:
        return
    # This package asks for its own signals; JAX's service would take SIGTERM from it.
    jax.config.update("jax_enable_preemption_service", False)
    where = (coordinator, count, index) if coordinator else ()
    if coordinator:
        others = (
            f"host {index} of {count} waits up to {patience} s for all to meet at {coordinator}"
        )
        print(others, file=sys.stderr, flush=True)
    jax.distributed.initialize(
        *where, initialization_timeout=patience, heartbeat_timeout_seconds=heartbeat
    )


def several() -> bool:
    """Whether the run has more than one host."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this host writes what a run records."""
    return jax.process_index() == 0


@contextlib.contextmanager
def log_folder(workdir: Place) -> Iterator[Place]:
    """Where this host writes what a run records: `workdir`, or if it is not the first a folder that
    is deleted in the end."""
    if is_first():
        yield workdir
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch)


def share(rows: int) -> slice:
    """This host's part of so many rows: contiguous, and all parts as even as can be."""
    hosts, index = jax.process_count(), jax.process_index()
    return slice(rows * index // hosts, rows * (index + 1) // hosts)


def on_host(tree: Any) -> Any:
    """Arrays of the devices, whole, on every host."""

    def whole(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            return multihost_utils.process_allgather(x, tiled=True)
        return jax.device_get(x)

    return jax.tree.map(whole, tree)


def exchange(content: bytes) -> list[bytes]:
    """What each host has to say, in their order."""
    if not several():
        return [content]
    sizes = multihost_utils.process_allgather(np.int32(len(content))).tolist()
    longest = 1 << max(sizes).bit_length()  # few lengths, so that few programs are compiled
    padded = np.frombuffer(content.ljust(longest, b"\0"), np.uint8)
    said = multihost_utils.process_allgather(padded)
    return [row[:size].tobytes() for row, size in zip(said, sizes)]


def told(ask: Callable[[], Any]) -> Any:
    """What the first host answers, on every host; a number, a text or None.

    Raises:
      ValueError: the first host raised it.
    """
    if not several():
        return ask()
    try:
        said = {"answer": ask()} if is_first() else {}
    except ValueError as error:
        said = {"error": str(error)}
    said = json.loads(exchange(json.dumps(said).encode())[0])
    if "error" in said:
        raise ValueError(said["error"])
    return said["answer"]


def any_host(flag: bool) -> bool:
    """Whether the flag is set on some host."""
    return any(exchange(b"1" if flag else b"")) if several() else flag


def wait_for_all(what: str) -> None:
    """Returns once every host is here."""
    if several():
        multihost_utils.sync_global_devices(what)
