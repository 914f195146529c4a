"""Blueprint: a plan, and what a search found, as pages of text."""

from collections.abc import Sequence

from grpojax.arithmetic import size
from grpojax.collectives import Kinds, amount
from grpojax.plan import RESERVED, Plan
from grpojax.roofline import rate
from grpojax.search import Candidate
from grpojax.topology import GIB, Topology

SHOWN = 8  # candidates of a search


def describe_plan(plan: Plan) -> str:
    """A plan as a page of text."""
    config, device, slice_ = plan.config, plan.device, plan.topology
    grpo, sampling = config.grpo, config.sampling
    mesh = ", ".join(f"{axis}={size}" for axis, size in plan.mesh.items())
    model = config.model
    lines = [
        f"slice       {slice_}",
        f"a device    {size(slice_.hbm)} of memory, {size(RESERVED)} of it libtpu's; "
        f"{rate(device.roofline.flops, 'FLOP/s')}, {rate(device.roofline.bytes, 'B/s')}, "
        f"{rate(device.ring, 'B/s')} over a ring of links; published",
        f"mesh        {mesh}",
        f"a step      {grpo.prompts_per_step} prompts x {grpo.group_size}, P "
        f"{sampling.prompt_length}, T {sampling.completion_length}, "
        f"{grpo.minibatches} x {grpo.microbatches} microbatches",
        f"model       {model.compute_dtype} products, {model.param_dtype} parameters, "
        f"{config.optimizer.moment_dtype} first moments, attention {model.attention}, "
        f"remat {'on' if model.remat else 'off'}, adapters of rank {model.lora_rank}",
        *(f"note        {note}" for note in plan.notes),
        "",
        "compiled    arguments  temporaries     output    aliased       peak  with the rest",
    ]
    for name, program in plan.programs.items():
        if program.refused:
            lines.append(f"{name:11} {program.refused}")
            continue
        cells = program.arguments, program.temporaries, program.output, program.aliased
        row = "".join(f"{gib(cell):>11}" for cell in (*cells, program.peak))
        lines.append(f"{name:11}{row[1:]}{gib(plan.needs(name)):>15}")
    lines += [fit(plan), "", "a device receives in the compiled programs"]
    for name, program in plan.programs.items():
        parts = (("", program.traffic.once), (" a token", program.traffic.token))
        parts += ((" a change of shape", program.traffic.change),)
        said = [f"{kinds(moved)}{when}" for when, moved in parts if amount(moved).bytes]
        lines.append(f"{name:11} {'; '.join(said) or 'nothing'}")
    lines += [
        "",
        "calculated     FLOPs   HBM bytes    received    forecast     seconds",
    ]
    for name in plan.programs:
        phase = plan.forecast.phases[name]
        got, _ = plan.received(name)
        cells = rate(phase.work.flops, "F"), rate(phase.work.bytes, "B")
        cells += rate(got, "B"), rate(phase.received, "B")
        cells = "".join(f"{cell:>12}" for cell in cells)
        lines.append(f"{name:8}{cells}{plan.seconds(name):>12.3g}")
    completions = grpo.prompts_per_step * grpo.group_size * sampling.completion_length
    lines.append(
        f"a step      {plan.step_seconds:.3g} s, with completions at their longest, at the "
        "roofline, which no program reaches: "
        f"{completions / plan.step_seconds:,.0f} completion tokens/s; {config.steps} steps "
        f"{plan.chip_hours:.3g} chip-hours"
    )
    return "\n".join(lines)


def gib(count: int) -> str:
    """Bytes in GiB, two digits after the point."""
    return f"{count / GIB:.2f} GiB"


def kinds(moved: Kinds) -> str:
    """Collectives in words."""
    return ", ".join(
        f"{kind} {rate(x.bytes, 'B')} in {x.count}" for kind, x in sorted(moved.items()) if x.bytes
    )


def fit(plan: Plan) -> str:
    """Whether it fits, and what to change if not."""
    most = plan.device.memory
    wrong = [
        name
        for name, program in plan.programs.items()
        if program.refused or plan.needs(name) > most
    ]
    if not wrong:
        fullest = max(plan.programs, key=plan.needs)
        return f"fits        {gib(plan.needs(fullest))} of {gib(most)}, in {fullest}"
    remedies = dict.fromkeys(remedy(plan, name) for name in wrong)
    return f"does not fit: {', '.join(wrong)}; {'; '.join(remedies)}"


def remedy(plan: Plan, name: str) -> str:
    """What to change for a program that does not fit."""
    config = plan.config
    if plan.forecast.state > plan.device.memory // 2:
        return "split the state over more devices (--mesh.fsdp), or train adapters"
    if name == "sample":
        return "hold fewer prompts a device (more devices, fewer --grpo.prompts-per-step)"
    more = "" if config.model.remat else ", --model.remat"
    return f"more --grpo.microbatches than {config.grpo.microbatches}{more}, or more --mesh.fsdp"


def describe_search(found: Sequence[Candidate], topology: Topology) -> str:
    """The best of a search as a table."""
    fitting = sum(each.fits for each in found)
    lines = [
        f"{len(found)} meshes and microbatches for {topology}; by the forecast {fitting} fit",
        "data fsdp expert tensor microbatches  s a step    sample    update",
    ]
    for each in found[:SHOWN]:
        cells = [f"{each.sizes[axis]:>{len(axis)}}" for axis in each.sizes]
        told = each.forecast
        lines.append(
            f"{' '.join(cells)} {each.config.grpo.microbatches:>12} {each.seconds:>9.3g} "
            f"{gib(told.sample):>9} {gib(told.update):>9}{'' if each.fits else '  does not fit'}"
        )
    return "\n".join(lines)
