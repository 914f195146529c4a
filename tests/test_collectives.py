"""What compiled programs send between devices, counted by hand and in their text."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from grpojax.collectives import Moved, group_size, traffic_of

DEVICES = 8
SIZE = 1024  # float32 numbers of a device
PART = 4 * SIZE


def compiled(body):
    """The text of `body`, given on each of eight devices its part of a vector."""
    spec = PartitionSpec("all")
    mesh = jax.make_mesh((DEVICES,), ("all",), axis_types=(AxisType.Auto,))
    each = jax.shard_map(body, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    x = jax.ShapeDtypeStruct((DEVICES * SIZE,), jnp.float32)
    return jax.jit(each).lower(x).compile().as_text()


def gather(x):
    return x + jax.lax.all_gather(x, "all").sum(0)


def test_a_gather_is_the_parts_of_the_others():
    found = traffic_of(compiled(gather))
    assert found.once == {"all-gather": Moved(1, (DEVICES - 1) * PART)}
    assert not found.token
    assert not found.change


def test_a_sum_goes_around_twice_and_a_scattered_sum_once():
    found = traffic_of(compiled(lambda x: jax.lax.psum(x, "all")))
    assert found.once == {"all-reduce": Moved(1, 2 * (DEVICES - 1) * PART // DEVICES)}

    def scattered(x):
        part = jax.lax.psum_scatter(x, "all", tiled=True)
        return jnp.concatenate([part] * DEVICES)

    found = traffic_of(compiled(scattered))
    assert found.once == {"reduce-scatter": Moved(1, (DEVICES - 1) * PART // DEVICES)}


def test_a_permutation_and_an_exchange():
    shifts = [(i, (i + 1) % DEVICES) for i in range(DEVICES)]
    found = traffic_of(compiled(lambda x: jax.lax.ppermute(x, "all", shifts)))
    assert found.once == {"collective-permute": Moved(1, PART)}

    def exchange(x):
        return jax.lax.all_to_all(x.reshape(DEVICES, -1), "all", 0, 0).reshape(-1)

    (moved,) = traffic_of(compiled(exchange)).once.values()
    assert moved == Moved(1, PART * (DEVICES - 1) // DEVICES)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("(f32[4]{0}, f32[8]{0}) all-gather-start(f32[4]{0} %p)", "all-gather"),
        ("(f32[8]{0}, f32[4]{0}) reduce-scatter-start(f32[8]{0} %p)", "reduce-scatter"),
        ("(f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%p)", "collective-permute"),
    ],
)
def test_what_is_begun_holds_what_is_sent_beside_what_is_received(line, kind):
    text = f"ENTRY %main (p: f32[4]) -> f32[8] {{\n  %s = {line}, replica_groups={{{{0,1}}}}\n}}"
    assert traffic_of(text).once == {kind: Moved(1, 16)}


def test_a_sum_of_which_each_keeps_its_part_is_a_scattered_one():
    """As XLA fuses it for TPUs."""
    text = """
%all-reduce-scatter.1 (a: f32[8]) -> f32[4] {
  %r = f32[8]{0} all-reduce(%a), replica_groups={{0,1}}, to_apply=%add
  ROOT %d = f32[4]{0} dynamic-slice(%r, %i), dynamic_slice_sizes={4}
}
ENTRY %main (p: f32[8]) -> f32[4] {
  ROOT %f = f32[4]{0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1
}"""
    assert traffic_of(text).once == {"reduce-scatter": Moved(1, 16)}


def test_what_stands_after_a_kernel_counts():
    """Its settings are of several lines, of which one begins as the end of a computation does."""
    text = """
ENTRY %main (p: f32[4]) -> f32[8] {
  %k = f32[4]{0} custom-call(%p), custom_call_target="kernel", frontend_attributes={kernel={
"xprof_metadata":"{}"
}}, metadata={op_name="splash"}
  ROOT %g = f32[8]{0} all-gather(%k), replica_groups={{0,1}}, dimensions={0}
}
"""
    assert traffic_of(text).once == {"all-gather": Moved(1, 16)}


def test_a_loop_of_known_length_counts_its_turns():
    def scan(x):
        return jax.lax.scan(lambda x, _: (gather(x), None), x, length=5)[0]

    assert traffic_of(compiled(scan)).once == {"all-gather": Moved(5, 5 * (DEVICES - 1) * PART)}

    def nested(x):
        return jax.lax.scan(lambda x, _: (scan(x), None), x, length=3)[0]

    assert traffic_of(compiled(nested)).once["all-gather"].count == 15


def until_large(turn):
    """`turn` again and again until the data say so."""
    return lambda x: jax.lax.while_loop(lambda x: x[0] < 1e9, turn, x)


def test_a_loop_that_its_data_end_counts_a_token():
    found = traffic_of(compiled(until_large(gather)))
    assert found.token == {"all-gather": Moved(1, (DEVICES - 1) * PART)}
    assert not found.once
    assert found.total(tokens=10) == Moved(10, 10 * (DEVICES - 1) * PART)


def test_what_stands_around_such_loops_is_of_a_change_of_shape():
    def outer(x):
        x = jax.lax.ppermute(x, "all", [(i, (i + 1) % DEVICES) for i in range(DEVICES)])
        return until_large(gather)(x)

    found = traffic_of(compiled(until_large(outer)))
    assert found.change == {"collective-permute": Moved(1, PART)}
    assert set(found.token) == {"all-gather"}
    assert not found.once


def test_of_loops_in_turn_and_of_branches_the_one_that_moves_most_counts():
    def twice(x):
        return gather(gather(x) * 1.5)

    def two(x):
        return until_large(twice)(until_large(gather)(x))

    assert traffic_of(compiled(two)).token["all-gather"].count == 2

    def branches(x):
        # The sum is the same on all devices, as branches with collectives need it.
        return jax.lax.cond(jax.lax.psum(x[0], "all") > 0, twice, gather, x)

    found = traffic_of(compiled(branches)).once
    assert found["all-gather"] == Moved(2, 2 * (DEVICES - 1) * PART)


@pytest.mark.parametrize(
    ("said", "devices"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4),
        ("replica_groups=[4,2]<=[8]", 2),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", 4),
        ("replica_groups=mesh['axis_0'=8,'axis_1'=2] {'axis_0'}, use_global_device_ids=true", 8),
        ("replica_groups=mesh['axis_0'=8,'axis_1'=2] {'axis_0','axis_1'}", 16),
        ("replica_groups=mesh['axis_0'=8,'axis_1'=2] {'axis_0':(2)4}", 4),
        ("source_target_pairs={{0,1},{1,0}}", 2),
    ],
)
def test_groups_are_read_as_xla_writes_them(said, devices):
    assert group_size(f"  %x = f32[4] all-gather(%y), {said}") == devices


LOOP = """
%turn (p: (f32[4], u32[], u32[])) -> (f32[4], u32[], u32[]) {
  %p = (f32[4]{0}, u32[]{:T(128)}, /*index=2*/u32[]{:T(128)}) parameter(0)
  %x = f32[4]{0} get-tuple-element(%p), index=0
  %y = f32[4]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
  %at = u32[]{:T(128)} get-tuple-element(%p), index=1
  %by = u32[]{:T(128)} STEP
  %next = u32[]{:T(128)S(6)} add(%at, %by), metadata={}
  %same = u32[]{:T(128)} get-tuple-element(%p), index=2
  ROOT %t = (f32[4]{0}, u32[], /*index=2*/u32[]{:T(128)}) tuple(%y, %next, /*index=2*/%same)
}
%until (q: (f32[4], u32[], u32[])) -> pred[] {
  %q = (f32[4]{0}, u32[]{:T(128)}, /*index=2*/u32[]{:T(128)}) parameter(0)
  %end = u32[]{:T(128)} END
  %count = u32[]{:T(128)} get-tuple-element(%q), index=1, metadata={}
  ROOT %lt = pred[]{:T(512)} compare(%count, %end), direction=LT, metadata={}
}
ENTRY %main (a: f32[4], b: u32[]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %b = u32[]{:T(128)} parameter(1)
  %begin = u32[]{:T(128)} constant(3)
  %seven = u32[]{:T(128)} constant(7)
  %other = u32[]{:T(128)} get-tuple-element(%a), index=2
  %g = (f32[4]{0}, u32[]{:T(128)}, /*index=2*/u32[]{:T(128)}) tuple(%a, START, /*index=2*/OTHER)
  %w = (f32[4]{0}, u32[], u32[]) while(%g), condition=%until, body=%turn
  ROOT %r = f32[4]{0} get-tuple-element(%w), index=0
}"""
GIVEN = "get-tuple-element(%p), index=2"


@pytest.mark.parametrize(
    ("start", "step", "end", "other", "turns"),
    [
        ("%b", "get-tuple-element(%a), index=0", "constant(86)", "%b", 86),  # as a scan's: 0 by 1
        ("%begin", "constant(1)", "constant(86)", "%b", 83),
        ("%b", "constant(2)", "constant(9)", "%b", 5),
        ("%other", "constant(2)", "constant(9)", "%seven", 5),
        ("%begin", GIVEN, "constant(18)", "%seven", 3),  # 3, 10, 17
        ("%begin", "constant(2)", "get-tuple-element(%q), index=2", "%seven", 2),  # 3, 5
        ("%begin", "constant(2)", "get-tuple-element(%q), index=2", "%b", None),
    ],
)
def test_the_turns_of_a_loop_stand_in_the_text_where_xla_does_not_say_them(
    start, step, end, other, turns
):
    """As a TPU's compiler leaves a product in windows; an end that is data says nothing."""
    text = LOOP.replace("START", start).replace("STEP", step)
    found = traffic_of(text.replace("END", end).replace("OTHER", other))
    once, token = found.once, found.token
    assert (token if turns is None else once) == {
        "collective-permute": Moved(turns or 1, (turns or 1) * 16)
    }
    assert not (once if turns is None else token)


def test_an_end_that_the_loop_moves_says_nothing():
    text = LOOP.replace("START", "%begin").replace("STEP", "constant(2)")
    text = text.replace("END", "get-tuple-element(%q), index=2").replace("OTHER", "%seven")
    assert traffic_of(text).once["collective-permute"].count == 2
    text = text.replace(
        "%same = u32[]{:T(128)} get-tuple-element(%p), index=2", "%same = u32[] f()"
    )
    assert traffic_of(text).once == {}
