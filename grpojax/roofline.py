"""Roofline: the most that a device can compute and move in a second.

Published for accelerators, measured for what has no published figure, such as a CPU. Published
figures are of products in bfloat16 with sums in float32, without sparsity:

  TPU   cloud.google.com/tpu/docs: v4, v5e, v5p, v6e, tpu7x (of which a device is half a chip)
  GPU   NVIDIA's data sheets of A100, H100 and H200, which state twice as much, with sparsity, from
        H100 on
"""

import functools
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

REPEATS = 10  # of a measurement, of which the fastest counts
ELEMENTS = 2**24  # float32 numbers that are moved: 64 MiB, more than most caches hold


class Roofline(NamedTuple):
    """Of all devices together."""

    flops: float  # floating-point operations a second
    bytes: float  # bytes of memory read or written a second
    measured: bool  # here and now; otherwise published


# By `device_kind`, FLOP/s and bytes/s of one device.
PUBLISHED = {
    "TPU v4": (275e12, 1.228e12),
    "TPU v5 lite": (197e12, 0.819e12),
    "TPU v5e": (197e12, 0.819e12),
    "TPU v5": (459e12, 2.765e12),
    "TPU v5p": (459e12, 2.765e12),
    "TPU v6 lite": (918e12, 1.638e12),
    "TPU v6e": (918e12, 1.638e12),
    "TPU7x": (2307e12 / 2, 7.38e12 / 2),
    "NVIDIA A100-SXM4-40GB": (312e12, 1.555e12),
    "NVIDIA A100-PCIE-40GB": (312e12, 1.555e12),
    "NVIDIA A100-SXM4-80GB": (312e12, 2.039e12),
    "NVIDIA A100 80GB PCIe": (312e12, 1.935e12),
    "NVIDIA H100 80GB HBM3": (989e12, 3.35e12),
    "NVIDIA H100 PCIe": (756e12, 2.0e12),
    "NVIDIA H200": (989e12, 4.8e12),
}


def roofline_of(devices: Iterable[jax.Device]) -> Roofline:
    """Of equal devices together; what is not published is measured, once a process."""
    devices = list(devices)
    count = len(devices)
    if known := published(devices[0].device_kind, count):
        return known
    if devices[0].platform == "cpu":  # those of a host share it, and one of them can use all
        count = len({device.process_index for device in devices})
    flops, moved = measure(jax.local_devices()[0])
    return Roofline(flops * count, moved * count, measured=True)


def published(kind: str, count: int) -> Roofline | None:
    """Of `count` devices of a kind, if it is known."""
    if kind not in PUBLISHED:
        return None
    flops, moved = PUBLISHED[kind]
    return Roofline(flops * count, moved * count, measured=False)


def describe_roofline(roofline: Roofline) -> str:
    """In a few words."""
    source = "measured" if roofline.measured else "published"
    return f"{rate(roofline.flops, 'FLOP/s')}, {rate(roofline.bytes, 'B/s')}, {source}"


def rate(value: int | float, unit: str) -> str:
    """`value` with three digits and a decimal prefix: 2.5e9 is "2.5 GFLOP/s"."""
    for prefix in ("", "k", "M", "G"):
        if value < 999.5:
            return f"{value:.3g} {prefix}{unit}"
        value /= 1000
    return f"{value:,.3g} T{unit}"


@functools.cache
def measure(device: jax.Device) -> tuple[float, float]:
    """FLOP/s of a product of square matrices and bytes/s of an update in place, at their best."""
    on_cpu = device.platform == "cpu"
    size, dtype = (1024, jnp.float32) if on_cpu else (8192, jnp.bfloat16)
    product = jax.jit(lambda x: x @ x)
    increment = jax.jit(lambda x: x + 1, donate_argnums=0)
    # A mesh of its own: the caller may have set one of all devices.
    alone = jax.make_mesh((1,), ("alone",), axis_types=(AxisType.Auto,), devices=[device])
    with jax.set_mesh(alone):
        multiplied = fastest(product, jnp.ones((size, size), dtype), again=False)
        moved = fastest(increment, jnp.ones(ELEMENTS, jnp.float32), again=True)
    return 2 * size**3 / multiplied, 2 * 4 * ELEMENTS / moved


def fastest(program: Callable[[jax.Array], jax.Array], x: jax.Array, *, again: bool) -> float:
    """Least seconds of `program`; with `again` it is given what it made."""
    seconds = []
    for _ in range(REPEATS + 1):  # the first compiles
        begin = time.monotonic()
        y = jax.block_until_ready(program(x))
        seconds.append(time.monotonic() - begin)
        x = y if again else x
    return min(seconds[1:])
