"""Topology: TPU slices by name, what a chip of each kind has, and its devices without a TPU.

A slice is named by its shape in chips, `v5p:4x4x4`, or as one asks for it: by the number of chips
of v5e and v6e (`v5litepod-64`, `v5e-64`), by that of TensorCores of the others (`v5p-16` is 8
chips). Figures are published ones:

  HBM, hosts    cloud.google.com/tpu/docs, the page of each kind
  a link        "How to Scale Your Model" (jax-ml.github.io/scaling-book), the table of ICI rates
"""

import importlib.util
import math
import os
import re
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import topologies

from grpojax.checks import require
from grpojax.names import nearest
from grpojax.roofline import PUBLISHED, Roofline

GIB = 2**30
# So that libtpu asks no TPU host who it is. No TPU is held, so others may plan on this machine too.
ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclass(frozen=True)
class Chip:
    """A kind of TPU."""

    kind: str  # what jax calls a device of it
    cores: int  # TensorCores
    devices: int  # of jax: two cores can be one
    hbm: int  # bytes
    link: float  # bytes a second that a link carries in one direction
    torus: int  # dimensions of the network; along each a chip has two links
    counts_cores: bool  # the name of a slice counts TensorCores, not chips
    most: int  # chips of a slice


CHIPS = {
    "v4": Chip("TPU v4", 2, 1, 32 * GIB, 4.5e10, 3, True, 4096),
    "v5e": Chip("TPU v5 lite", 1, 1, 16 * GIB, 4.5e10, 2, False, 256),
    "v5p": Chip("TPU v5", 2, 1, 95 * GIB, 9e10, 3, True, 6144),
    "v6e": Chip("TPU v6 lite", 1, 1, 32 * GIB, 9e10, 2, False, 256),
    "tpu7x": Chip("TPU7x", 2, 2, 192 * GIB, 9e10, 3, True, 9216),
}
ALIASES = {"v5litepod": "v5e"}


@dataclass(frozen=True)
class Topology:
    """A slice: a kind of chip, and how many of them lie along each dimension."""

    name: str
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip:
        """What each of its chips is."""
        return CHIPS[self.name]

    @property
    def chips(self) -> int:
        """How many there are."""
        return math.prod(self.shape)

    @property
    def devices(self) -> int:
        """What jax sees."""
        return self.chips * self.chip.devices

    @property
    def hosts(self) -> int:
        """Machines: of four chips, or one of up to eight of v5e and v6e."""
        return 1 if self.chip.torus == 2 and self.chips <= 8 else -(-self.chips // 4)

    @property
    def hbm(self) -> int:
        """Bytes of memory of a device."""
        return self.chip.hbm // self.chip.devices

    @property
    def roofline(self) -> Roofline:
        """Of one device."""
        flops, moved = PUBLISHED[self.chip.kind]
        return Roofline(flops, moved, measured=False)

    @property
    def ring(self) -> float:
        """Bytes a second into a device of a collective along one dimension, both ways."""
        return 2 * self.chip.link / self.chip.devices

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        cores = self.chips * self.chip.cores
        counted = f"{cores} cores, {self.chips} chips" if self.chip.cores > 1 else f"{cores} chips"
        asked = cores if self.chip.counts_cores else self.chips
        return f"{self.name}-{asked}, {self.name}:{shape}: {counted}, {plural(self.hosts, 'host')}"


def plural(count: int, noun: str) -> str:
    """`1 host`, `2 hosts`."""
    return f"{count} {noun}{'s' * (count != 1)}"


def parse_topology(name: str) -> Topology:
    """A slice from its name.

    Raises:
      ValueError: there is no such kind of TPU, or it has no such slice.
    """
    found = re.fullmatch(r"([a-z]+\d+[a-z]*)(?::(\d+(?:x\d+){1,2})|-(\d+))", name.lower())
    require(
        found is not None,
        f"topology must be KIND:SHAPE in chips, as v5p:4x4x4, or KIND-SIZE, as v5e-8, got {name!r}",
    )
    kind = ALIASES.get(found[1], found[1])
    require(
        kind in CHIPS,
        f"topology {name!r}: unknown TPU {found[1]}{nearest(kind, CHIPS)}; there are "
        f"{', '.join(CHIPS)}",
    )
    chip = CHIPS[kind]
    if found[2]:
        shape = tuple(map(int, found[2].split("x")))
        require(
            len(shape) == chip.torus,
            f"topology {name!r}: a slice of {kind} has {chip.torus} dimensions, got {len(shape)}",
        )
    else:
        shape = shape_of(kind, chip, int(found[3]))
    chips = math.prod(shape)
    require(
        0 < chips <= chip.most,
        f"topology {name!r}: a slice of {kind} has 1 to {chip.most} chips, got {chips}",
    )
    host = (2, 2, 1)[: chip.torus]
    alone = chip.torus == 2 and chips == 1
    require(
        alone or all(size % of == 0 for size, of in zip(shape, host)),
        f"topology {name!r}: hosts of {kind} have 2x2 chips, so the first two dimensions must be "
        f"even, got {'x'.join(map(str, shape))}",
    )
    return Topology(kind, shape)


def shape_of(kind: str, chip: Chip, size: int) -> tuple[int, ...]:
    """The usual shape of a slice that is asked for by its size, a power of two: as near to a cube
    or a square as there is.

    Raises:
      ValueError: no slice of one shape has that size.
    """
    per_name = chip.cores if chip.counts_cores else 1
    chips = size // per_name
    least = 1 if chip.torus == 2 else 4
    fits = size % per_name == 0 and chips >= least and chips & (chips - 1) == 0
    what = "TensorCores" if chip.counts_cores else "chips"
    require(
        fits and (chip.torus == 3 or chips != 2),
        f"topology {kind}-{size}: {size} {what} are no slice of one usual shape; name the shape in "
        f"chips, as {kind}:{'x'.join('4' * chip.torus)}",
    )
    if chips == 4 and chip.torus == 3:
        return 2, 2, 1
    doublings, dimensions = chips.bit_length() - 1, chip.torus
    return tuple(2 ** ((doublings + i) // dimensions) for i in range(dimensions))


def devices_of(topology: Topology) -> list[Any]:
    """The devices of a slice, to compile for and not to run on; the process then uses no other TPU.

    Raises:
      ValueError: libtpu is not installed, or does not know the slice.
    """
    require(
        importlib.util.find_spec("libtpu") is not None,
        "a plan needs libtpu, which compiles for TPUs without having one: "
        "pip install 'grpojax[plan]'",
    )
    os.environ.update(ALONE)
    jax.config.update("jax_platforms", "cpu")
    shape = "x".join(map(str, topology.shape))
    options: dict[str, Any] = {}
    if topology.chip.torus == 2 and topology.hosts == 1:
        options["chips_per_host_bounds"] = (*topology.shape, 1)
    if topology.name == "v4":
        options["chip_config_name"] = "megacore"  # both cores of a chip as one device
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{topology.name}:{shape}", **options
        )
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"libtpu knows no slice {topology.name}:{shape} ({error})") from None
    return list(found.devices)
