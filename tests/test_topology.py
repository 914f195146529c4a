"""TPU slices by name, and what is published of their chips."""

import pytest

from grpojax.topology import CHIPS, parse_topology
from tools.tpu.slices import GENERATIONS, slice_of


@pytest.mark.parametrize(
    ("name", "shape", "chips", "devices", "hosts"),
    [
        ("v5p-16", (2, 2, 2), 8, 8, 2),  # named by TensorCores, of which a chip has two
        ("v5p-128", (4, 4, 4), 64, 64, 16),
        ("v5p-8", (2, 2, 1), 4, 4, 1),
        ("v4-8192", (16, 16, 16), 4096, 4096, 1024),
        ("v5p:8x8x16", (8, 8, 16), 1024, 1024, 256),
        ("v5e-1", (1, 1), 1, 1, 1),
        ("v5e-8", (2, 4), 8, 8, 1),  # by chips, and up to eight on one host
        ("v5litepod-64", (8, 8), 64, 64, 16),
        ("v6e:16x16", (16, 16), 256, 256, 64),
        ("tpu7x-16", (2, 2, 2), 8, 16, 2),  # each TensorCore is a device
    ],
)
def test_a_slice_is_what_its_name_says(name, shape, chips, devices, hosts):
    found = parse_topology(name)
    assert (found.shape, found.chips, found.devices) == (shape, chips, devices)
    assert found.hosts == hosts


def test_a_slice_says_its_name_in_both_ways_and_counts_cores_and_chips():
    assert str(parse_topology("v5p-16")) == "v5p-16, v5p:2x2x2: 16 cores, 8 chips, 2 hosts"
    assert str(parse_topology("v5e:2x4")) == "v5e-8, v5e:2x4: 8 chips, 1 host"
    for name in ("v5p-16", "v5e-64", "v4-64", "tpu7x-32", "v6e-128"):
        asked, shape = str(parse_topology(name)).split(": ")[0].split(", ")
        assert parse_topology(asked) == parse_topology(shape) == parse_topology(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "must be KIND:SHAPE"),
        ("v5p", "must be KIND:SHAPE"),
        ("v5q-8", "unknown TPU v5q (did you mean v5"),
        ("v5p:4x4", "a slice of v5p has 3 dimensions, got 2"),
        ("v5e:2x2x2", "a slice of v5e has 2 dimensions, got 3"),
        ("v5e:3x2", "must be even, got 3x2"),
        ("v5e:0x4", "has 1 to 256 chips, got 0"),
        ("v5e-512", "has 1 to 256 chips, got 512"),
        ("v5p-24", "24 TensorCores are no slice of one usual shape"),
        ("v5e-2", "2 chips are no slice of one usual shape"),
        ("v5p-9", "9 TensorCores are no slice"),
    ],
)
def test_what_is_no_slice_is_refused_in_one_line(name, said):
    with pytest.raises(ValueError) as refused:
        parse_topology(name)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_chips_are_as_published():
    """A device of tpu7x is half a chip."""
    v5e, tpu7x = parse_topology("v5e-8"), parse_topology("tpu7x-8")
    assert (v5e.hbm, v5e.roofline.flops, v5e.ring) == (16 * 2**30, 197e12, 90e9)
    assert (tpu7x.hbm, tpu7x.roofline.flops) == (96 * 2**30, 2307e12 / 2)
    for chip in CHIPS.values():
        assert chip.cores % chip.devices == 0


def test_the_launcher_means_the_same_by_a_name():
    """It has a table of its own, since it runs where jax is not."""
    compared = 0
    for prefix, generation in GENERATIONS.items():
        sizes = [2**i for i in range(2, generation.largest.bit_length())]
        for chips in sizes:
            name = f"{prefix}-{chips * (generation.cores if generation.counts_cores else 1)}"
            asked, planned = slice_of(name), parse_topology(name)
            assert parse_topology(asked.topology) == planned
            assert (asked.chips, asked.hosts) == (planned.chips, planned.hosts)
            compared += 1
    assert compared > 40
