"""Search: the meshes and microbatches that a config can have on so many devices, the best first.

The order is the forecast's, so nothing is compiled: first what fits into the memory, the quickest
step before others, and of the same time the fewer parts.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax

from grpojax.checks import require
from grpojax.config import Config
from grpojax.forecast import Device, Forecast, forecast
from grpojax.mesh import check_sizes
from grpojax.roofline import PUBLISHED, Roofline
from grpojax.sharding import AXES, ROWS
from grpojax.topology import CHIPS

MOST_TENSOR = 64  # devices along tensor: beyond it a device would have less than a tile of anything
# Of devices without published rates: operations and bytes a second whose ratio is usual, and links
# of a tenth of the memory's rate. Only their ratios matter to the order.
USUAL = Roofline(1e13, 1e11, measured=False)


class Candidate(NamedTuple):
    """A mesh and microbatches, with what is forecast of them."""

    config: Config
    sizes: dict[str, int]
    forecast: Forecast
    seconds: float  # of a step
    fits: bool


def search(
    config: Config, devices: int, device: Device, *, microbatches: bool = True
) -> list[Candidate]:
    """All that `config` can have on so many devices, the best first; with `microbatches` as it has
    them, or any number."""
    found = []
    for sizes in meshes(devices):
        for parts in part_counts(config, sizes) if microbatches else [config.grpo.microbatches]:
            grpo = dataclasses.replace(config.grpo, microbatches=parts)
            mesh = dataclasses.replace(config.mesh, **sizes)
            tried = dataclasses.replace(config, grpo=grpo, mesh=mesh)
            if not possible(tried, sizes):
                continue
            told = forecast(tried, sizes)
            fits = device.memory is None or told.memory <= device.memory
            found.append(Candidate(tried, sizes, told, told.seconds(device), fits))
    return sorted(found, key=order)


def order(candidate: Candidate) -> tuple:
    """What fits comes first, by its time; what does not by its memory."""
    sizes, parts = candidate.sizes, candidate.config.grpo.microbatches
    simple = sizes["tensor"], sizes["expert"], sizes["fsdp"], parts
    worth = candidate.seconds if candidate.fits else candidate.forecast.memory
    return not candidate.fits, float(f"{worth:.2g}"), worth, simple


def meshes(devices: int) -> Iterator[dict[str, int]]:
    """Every way to lay so many devices along the axes."""
    for tensor in divisors(devices):
        if tensor > MOST_TENSOR:
            continue
        for expert in divisors(devices // tensor):
            for fsdp in divisors(devices // (tensor * expert)):
                data = devices // (tensor * expert * fsdp)
                yield dict(zip(AXES, (data, fsdp, expert, tensor)))


def part_counts(config: Config, sizes: dict[str, int]) -> list[int]:
    """The numbers of microbatches in which each device has whole prompts."""
    rows, left = math.prod(sizes[axis] for axis in ROWS), config.grpo.prompts_per_step
    each = rows * config.grpo.minibatches
    return divisors(left // each) if left % each == 0 else []


def possible(config: Config, sizes: dict[str, int]) -> bool:
    """Whether a run would take this mesh."""
    apart, split = config.mesh.sampling, sizes["expert"] * sizes["tensor"]
    if apart % split:
        return False
    sampling = {**sizes, "data": apart // split, "fsdp": 1} if apart else sizes
    try:
        check_sizes(sizes, sampling, config)
    except ValueError:
        return False
    return True


def divisors(number: int) -> list[int]:
    """From 1 to the number itself."""
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def with_mesh(config: Config, devices: Sequence[jax.Device]) -> tuple[Config, tuple[str, ...]]:
    """`config` with the mesh that its `mesh.auto` asks for, the best for these devices, and a note
    that says by which rates; without `auto` as it is, and no note.

    Raises:
      ValueError: no mesh of so many devices fits the config.
    """
    if not config.mesh.auto:
        return config, ()
    count, first = len(devices) - config.mesh.sampling, devices[0]
    found = search(config, count, device_at_hand(first), microbatches=False)
    grpo = config.grpo
    require(
        bool(found),
        f"mesh.auto finds no mesh of {count} devices for prompts_per_step={grpo.prompts_per_step} "
        f"in {grpo.minibatches} minibatches of {grpo.microbatches} microbatches; try "
        f"prompts_per_step={count * grpo.minibatches * grpo.microbatches}",
    )
    best = found[0]
    known = first.device_kind in PUBLISHED
    rates = f"published rates of {first.device_kind}" if known else "rates taken as usual"
    fits = "" if best.fits else "; by the forecast no mesh fits the memory, and this needs least"
    mesh = ", ".join(f"{axis}={size}" for axis, size in best.sizes.items())
    return best.config, (f"mesh.auto picked {mesh} of {len(found)} meshes, by {rates}{fits}",)


def device_at_hand(device: jax.Device) -> Device:
    """What is known of a device here; its memory as it says itself."""
    roofline = Roofline(*PUBLISHED.get(device.device_kind, USUAL[:2]), measured=False)
    chips = [chip for chip in CHIPS.values() if chip.kind == device.device_kind]
    ring = 2 * chips[0].link / chips[0].devices if chips else roofline.bytes / 10
    stats = None if device.platform == "cpu" else device.memory_stats()
    return Device(roofline, ring, (stats or {}).get("bytes_limit"))
