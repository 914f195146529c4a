"""Slices: what a slice's name means, as in v5litepod-16 or v5p-16.

The number in a name counts chips for v5litepod and v6e and cores for v4, v5p and tpu7x, so v5p-16
is 8 chips. Topologies, hosts and runtime versions follow excerpts of the Cloud TPU documentation
(pages v4, v5e, v5p, v6e, tpu7x and "TPU software versions", 2026-11-29); `--runtime-version`
overrides the last. Powers of two are known.
"""

import re
from dataclasses import dataclass

from grpojax.checks import require
from grpojax.names import nearest


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What the slices of one generation have in common."""

    topology: str  # its name in a topology: v5e of v5e:4x4
    cores: int  # of a chip
    counts_cores: bool  # the number in a name is of cores, not of chips
    axes: int  # of the network between chips
    largest: int  # chips of the largest slice
    whole_host: int  # most chips of a slice on one host; larger slices have 4 chips a host
    runtime_version: str  # image of the workers


@dataclass(frozen=True, kw_only=True)
class Slice:
    """A slice by its name."""

    name: str
    generation: Generation
    chips: int

    @property
    def cores(self) -> int:
        return self.chips * self.generation.cores

    @property
    def hosts(self) -> int:
        return 1 if self.chips <= self.generation.whole_host else self.chips // 4

    @property
    def sides(self) -> str:
        """Chips along each axis: 4x4."""
        log2, axes = self.chips.bit_length() - 1, self.generation.axes
        sides = [2 ** ((log2 + i) // axes) for i in range(axes)]
        return "2x2x1" if sides == [1, 2, 2] else "x".join(map(str, sides))

    @property
    def topology(self) -> str:
        """As `grpojax plan --topology` takes it: v5e:4x4."""
        return f"{self.generation.topology}:{self.sides}"


GENERATIONS = {
    "v4": Generation(
        topology="v4",
        cores=2,
        counts_cores=True,
        axes=3,
        largest=2048,
        whole_host=4,
        runtime_version="tpu-ubuntu2204-base",
    ),
    "v5litepod": Generation(
        topology="v5e",
        cores=1,
        counts_cores=False,
        axes=2,
        largest=256,
        whole_host=8,
        runtime_version="v2-alpha-tpuv5-lite",
    ),
    "v5p": Generation(
        topology="v5p",
        cores=2,
        counts_cores=True,
        axes=3,
        largest=4096,
        whole_host=4,
        runtime_version="v2-alpha-tpuv5",
    ),
    "v6e": Generation(
        topology="v6e",
        cores=1,
        counts_cores=False,
        axes=2,
        largest=256,
        whole_host=8,
        runtime_version="v2-alpha-tpuv6e",
    ),
    # Of Compute Engine, where the runtime version is a family of images.
    "tpu7x": Generation(
        topology="tpu7x",
        cores=2,
        counts_cores=True,
        axes=3,
        largest=4096,
        whole_host=4,
        runtime_version="ubuntu-accel-2404-amd64-tpu-tpu7x",
    ),
}


def slice_of(name: str) -> Slice:
    """The slice that `name` asks for.

    Raises:
      ValueError: there is no such generation, or none of that size; the message has the sizes.
    """
    found = re.fullmatch(r"([a-z0-9]+)-([0-9]{1,5})", name)
    kinds = ", ".join(f"{prefix}-N" for prefix in GENERATIONS)
    require(
        found is not None and found[1] in GENERATIONS,
        f"slice must be one of {kinds}, got {name!r}{nearest(name.split('-')[0], GENERATIONS)}",
    )
    generation = GENERATIONS[found[1]]
    what = "cores" if generation.counts_cores else "chips"
    each = generation.cores if generation.counts_cores else 1
    smallest = [1, 4] if generation.axes == 2 else [4]
    chips = smallest + [2**i for i in range(3, generation.largest.bit_length())]
    sizes = [size * each for size in chips]
    require(
        int(found[2]) in sizes,
        f"slice {found[1]}-N must have N {what} of {', '.join(map(str, sizes))}, got {name}",
    )
    return Slice(name=name, generation=generation, chips=int(found[2]) // each)


def describe_slice(found: Slice, runtime_version: str) -> str:
    """What a slice is, in a line each."""
    generation = found.generation
    counts = "cores" if generation.counts_cores else "chips"
    return "\n".join(
        [
            f"{found.name}: the number counts {counts}",
            f"topology         {found.topology}",
            f"chips            {found.chips}",
            f"cores            {found.cores}",
            f"hosts            {found.hosts}",
            f"runtime version  {runtime_version or generation.runtime_version}",
        ]
    )
