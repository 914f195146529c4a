"""The page of a plan: what it says of programs that fit and of those that do not."""

import dataclasses

import pytest

from grpojax.blueprint import describe_plan
from grpojax.collectives import Moved, Traffic
from grpojax.config import SamplingConfig
from grpojax.forecast import forecast
from grpojax.plan import Compiled, Plan
from grpojax.roofline import rate
from grpojax.sampling import decode_shapes
from grpojax.sharding import AXES
from grpojax.topology import GIB, parse_topology
from tests.test_forecast import config_of

T = 1024
SIZES = dict(zip(AXES, (2, 4, 1, 1)))
NOTHING = Traffic({}, {}, {})


def program(peak, traffic=NOTHING, refused=""):
    return Compiled(GIB, GIB, GIB, GIB, peak, traffic, seconds=1.0, refused=refused)


def plan_of(beside=0, **programs):
    sampling = SamplingConfig(prompt_length=64, completion_length=T)
    config = dataclasses.replace(config_of(prompts_per_step=16), sampling=sampling)
    return Plan(
        config=config,
        topology=parse_topology("v5e-8"),
        mesh=SIZES,
        programs=programs,
        beside=dict.fromkeys(programs, beside),
        forecast=forecast(config, SIZES),
        notes=(),
    )


def line_of(page, start):
    return next(line for line in page.splitlines() if line.startswith(start))


def test_what_lies_beside_a_program_counts():
    """A v5e gives 15.75 of its 16 GiB."""
    fits = plan_of(sample=program(15 * GIB), beside=3 * GIB // 4)
    assert fits.fits and "15.75 GiB of 15.75 GiB, in sample" in describe_plan(fits)
    over = plan_of(sample=program(15 * GIB), beside=3 * GIB // 4 + 1)
    assert not over.fits and "does not fit: sample" in describe_plan(over)


@pytest.mark.parametrize(
    "name, remedy", [("sample", "fewer prompts a device"), ("update", "more --grpo.microbatches")]
)
def test_each_program_that_does_not_fit_has_its_remedy(name, remedy):
    page = describe_plan(plan_of(**{name: program(16 * GIB), "reference": program(GIB)}))
    assert remedy in line_of(page, f"does not fit: {name};")


def test_a_state_of_half_the_memory_is_to_be_split():
    plan = plan_of(update=program(20 * GIB))
    large = plan.forecast._replace(state=8 * GIB)
    page = describe_plan(dataclasses.replace(plan, forecast=large))
    assert "split the state over more devices" in line_of(page, "does not fit: update;")


def test_a_refused_program_does_not_fit_and_takes_the_time_forecast():
    refused = plan_of(update=program(0, refused="Ran out of memory."))
    assert not refused.fits and "update      Ran out of memory." in describe_plan(refused)
    assert refused.seconds("update") == refused.forecast.phases["update"].seconds(refused.device)


def test_received_is_what_was_compiled_beside_what_is_forecast():
    """Once, for every token after the first, and for every change of shape."""
    once, token, change = ({"all-gather": Moved(1, size)} for size in (10**9, 10**6, 10**8))
    plan = plan_of(sample=program(GIB, Traffic(once, token, change)))
    changes = sum(map(len, decode_shapes(T, plan.config.grpo.group_size)))
    assert changes > 1
    expected = 10**9 + (T - 1) * 10**6 + changes * 10**8
    assert plan.received("sample") == (expected, T + changes)
    page = describe_plan(plan)
    told = plan.forecast.phases["sample"].received
    header, row = line_of(page, "calculated").split(), page.splitlines()[-2]
    assert header.index("forecast") == header.index("received") + 1
    assert rate(told, "B") in row.partition(rate(expected, "B"))[2]
    work = plan.forecast.phases["sample"].work
    rates = plan.device.roofline
    here = max(work.flops / rates.flops, work.bytes / rates.bytes)
    links = expected / plan.device.ring + (T + changes) * 1e-6
    assert plan.step_seconds == pytest.approx(here + links, rel=1e-6)
    assert f"a step      {plan.step_seconds:.3g} s" in page
