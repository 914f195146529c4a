"""Plan: the programs of a run compiled for TPUs that are not there, and what they tell.

Memory and communication are those of the compiled programs. Time is calculated (`forecast`): no
program runs.
"""

import dataclasses
import re
import time
from typing import NamedTuple

import jax

from grpojax.arithmetic import size
from grpojax.checks import require
from grpojax.collectives import Kinds, Traffic, amount, traffic_of
from grpojax.config import Config, MeshConfig
from grpojax.forecast import LATENCY, Device, Forecast, forecast
from grpojax.kernels import choose_attention
from grpojax.mesh import check_mesh, make_mesh, mesh_notes
from grpojax.model import Policy
from grpojax.programs import held_bytes, lowered
from grpojax.roofline import rate
from grpojax.run import check_names
from grpojax.sampling import decode_shapes
from grpojax.topology import GIB, Topology, devices_of, plural

RESERVED = GIB // 4  # of a device's memory that libtpu keeps: of the 16 GiB of a v5e it gives 15.75


class Compiled(NamedTuple):
    """A compiled program, in bytes a device."""

    arguments: int
    temporaries: int
    output: int
    aliased: int  # of the output, what takes the place of an argument
    peak: int  # arguments and output included
    traffic: Traffic
    seconds: float  # of compiling
    refused: str = ""  # why it was not compiled: it needs more memory than there is


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run on a slice."""

    config: Config
    topology: Topology
    mesh: dict[str, int]
    programs: dict[str, Compiled]
    beside: dict[str, int]  # bytes of state that a program is not given and that lie there too
    forecast: Forecast
    notes: tuple[str, ...]

    @property
    def device(self) -> Device:
        """What one device can do and hold."""
        return device_of(self.topology)

    def needs(self, name: str) -> int:
        """Bytes that a device must have for one of the programs."""
        return self.programs[name].peak + self.beside[name]

    @property
    def fits(self) -> bool:
        """Whether all programs fit into the memory."""
        most = self.device.memory
        return all(
            not program.refused and self.needs(name) <= most
            for name, program in self.programs.items()
        )

    def received(self, name: str) -> tuple[int, int]:
        """Bytes that a device receives in a phase, and in how many collectives."""
        length = self.config.sampling.completion_length
        changes = sum(map(len, decode_shapes(length, self.config.grpo.group_size)))
        moved = self.programs[name].traffic.total(length - 1, changes)
        return moved.bytes, moved.count

    def seconds(self, name: str) -> float:
        """Of a phase: the roofline's, and what the compiled program receives."""
        phase = self.forecast.phases[name]
        if not self.programs[name].refused:
            bytes_received, count = self.received(name)
            phase = phase._replace(received=bytes_received, collectives=count)
        return phase.seconds(self.device)

    @property
    def step_seconds(self) -> float:
        return sum(map(self.seconds, self.programs))

    @property
    def chip_hours(self) -> float:
        """Of the run, without what the host does, evaluations and compiling."""
        return self.config.steps * self.step_seconds * self.topology.chips / 3600


def device_of(topology: Topology) -> Device:
    """A device of a slice, less what libtpu keeps of its memory."""
    return Device(topology.roofline, topology.ring, topology.hbm - RESERVED)


def make_plan(config: Config, topology: Topology) -> Plan:
    """Compiles the programs of `config` for `topology`.

    Raises:
      ValueError: the config is wrong, does not fit the slice, or has what no plan is made of.
    """
    refuse_unplanned(config)
    missing = check_names(config)
    mesh = make_mesh(config.mesh, devices_of(topology))
    check_mesh(mesh, mesh, config)
    model = choose_attention(config.model, mesh.devices.flat[0])
    config = dataclasses.replace(config, model=model)
    policy = Policy(model)
    stops = (model.vocab_size - 1,)  # how many and which changes no shape
    programs = {
        name: compiled(lower) for name, lower in lowered(config, policy, mesh, stops).items()
    }
    held = held_bytes(config, policy, mesh)
    others = held["state"] - held["params"]
    beside = {"sample": others, "reference": others, "update": 0}
    return Plan(
        config=config,
        topology=topology,
        mesh=dict(mesh.shape),
        programs=programs,
        beside={name: beside[name] for name in programs},
        forecast=forecast(config, dict(mesh.shape)),
        notes=(*mesh_notes(model, mesh), *missing),
    )


def refuse_unplanned(config: Config) -> None:
    """Raises ValueError for what a plan does not compile."""
    require(
        config.algorithm == "grpo" and not config.reward_model.every,
        "a plan is of the policy alone; set algorithm=grpo and reward_model.every=0, got "
        f"{config.algorithm} and {config.reward_model.every}",
    )
    require(
        not config.mesh.sampling,
        "a plan is of devices that do everything; set mesh.sampling=0, got "
        f"{config.mesh.sampling}",
    )
    require(
        config.model.base_dtype != "int8",
        "a plan knows no int8 base; set model.base_dtype=bfloat16, got int8",
    )


def compiled(lower) -> Compiled:
    """One program; that it does not fit is an answer too."""
    begin = time.monotonic()
    try:
        program = lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        took, reason = time.monotonic() - begin, first_sentence(str(error))
        return Compiled(0, 0, 0, 0, 0, Traffic({}, {}, {}), took, reason)
    took, memory = time.monotonic() - begin, program.memory_analysis()
    return Compiled(
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.output_size_in_bytes,
        memory.alias_size_in_bytes,
        memory.peak_memory_in_bytes,
        traffic_of(program.as_text()),
        took,
    )


def first_sentence(text: str) -> str:
    """What XLA says of memory, without its list of buffers."""
    found = re.search(r"[Rr]an out of memory[^\n]*?\.(?=\s|$)|Used [\d.]+\w of [\d.]+\w hbm", text)
    return " ".join((found[0] if found else text.splitlines()[0]).split())


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
        f"{plural(grpo.minibatches, 'minibatch')[: -1 if False else None]} of "
        f"{plural(grpo.microbatches, 'microbatch')}",
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
    lines += [fit(plan), "", "received by a device, compiled; of a switch or of loops in turn"]
    lines[-1] += " the one that moves most"
    for name, program in plan.programs.items():
        parts = (("", program.traffic.once), (" a token", program.traffic.token))
        parts += ((" a change of shape", program.traffic.change),)
        said = [f"{kinds(moved)}{when}" for when, moved in parts if amount(moved).bytes]
        lines.append(f"{name:11} {'; '.join(said) or 'nothing'}")
    lines += ["", "calculated   FLOPs    HBM bytes   received     seconds   (every length its longest)"]
    for name in plan.programs:
        work = plan.forecast.phases[name].work
        got, _ = plan.received(name)
        cells = (rate(work.flops, "F"), rate(work.bytes, "B"), rate(got, "B"))
        cells = "".join(f"{cell:>12}" for cell in cells)
        lines.append(f"{name:8}{cells}{plan.seconds(name):>12.3g}")
    completions = grpo.prompts_per_step * grpo.group_size * sampling.completion_length
    lines.append(
        f"a step      {plan.step_seconds:.3g} s at the roofline, which no program reaches: "
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
    return f"does not fit: {', '.join(wrong)}; {'; '.join(map(plan_remedy(plan), wrong))}"


def plan_remedy(plan: Plan):
    """What to change for a program that does not fit."""
    config = plan.config

    def of(name: str) -> str:
        if plan.beside[name] > plan.device.memory // 2 or name == "reference":
            return "more --mesh.fsdp splits the state"
        if name == "sample":
            return "more devices of data or fsdp hold fewer prompts each, or fewer prompts_per_step"
        more = "" if config.model.remat else ", --model.remat"
        return f"more --grpo.microbatches (now {config.grpo.microbatches}){more}, more --mesh.fsdp"

    return of
