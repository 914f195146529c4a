"""Plan: the programs of a run compiled for TPUs that are not there, and what they tell.

Memory and communication are those of the compiled programs. Time is calculated (`forecast`): no
program runs.
"""

import dataclasses
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax

from grpojax.checks import require
from grpojax.collectives import Traffic, traffic_of
from grpojax.config import Config
from grpojax.forecast import Device, Forecast, forecast
from grpojax.kernels import choose_attention
from grpojax.mesh import check_mesh, make_mesh, mesh_notes
from grpojax.model import Policy
from grpojax.names import find_function
from grpojax.programs import held_bytes, lowered
from grpojax.rewards import choose_rewards
from grpojax.run import check_init
from grpojax.sampling import decode_shapes
from grpojax.search import Candidate, search, with_mesh
from grpojax.tasks import TASKS, load_task
from grpojax.tokenizer import load_tokenizer, stop_ids
from grpojax.topology import GIB, Topology, devices_of
from grpojax.vocabulary import check_vocabulary

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


def make_plan(config: Config, topology: Topology, say: Callable[[str], None]) -> Plan:
    """Compiles the programs of `config` for `topology`, and says how long each took.

    Raises:
      ValueError: the config is wrong, does not fit the slice, or has what no plan is made of.
    """
    refuse_unplanned(config)
    missing = check_names(config)
    jax.config.update("jax_enable_compilation_cache", False)  # it would load what it finds
    devices = devices_of(topology)
    config, picked = with_mesh(config, devices)
    mesh = make_mesh(config.mesh, devices)
    check_mesh(mesh, mesh, config)
    model = choose_attention(config.model, mesh.devices.flat[0])
    config = dataclasses.replace(config, model=model)
    policy = Policy(model)
    stops = (model.vocab_size - 1,)  # how many and which changes no shape
    programs = {}
    for name, lower in lowered(config, policy, mesh, stops).items():
        programs[name] = compiled(lower)
        say(f"{name}: compiled in {programs[name].seconds:.0f} s")
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
        notes=(*picked, *mesh_notes(model, mesh), *missing),
    )


def make_plans(
    config: Config, topology: Topology, say: Callable[[str], None], *, most: int
) -> tuple[list[Candidate], Iterator[Plan]]:
    """What `search` finds, and the plans of the best, each compiled when it is asked for."""
    refuse_unplanned(config)
    check_names(config)
    found = search(config, topology.devices, device_of(topology))
    require(
        bool(found),
        f"no mesh of {topology.devices} devices fits prompts_per_step="
        f"{config.grpo.prompts_per_step} and this model; try another slice, or prompts_per_step="
        f"{topology.devices * config.grpo.minibatches}",
    )
    return found, (make_plan(each.config, topology, say) for each in found[:most])


def check_names(config: Config) -> tuple[str, ...]:
    """Opens what `config` names if it is here, and returns what is not, a line each.

    Raises:
      ValueError: a name is wrong, or what is here does not fit.
    """
    missing, task = [], None
    find_function("task", config.task, TASKS)
    if config.step_reward:
        find_function("step_reward", config.step_reward, {})
    try:
        task = load_task(config.task, config.data)
        choose_rewards(config.rewards, task)
    except ValueError as error:
        if config.data.dir or task is not None:
            raise
        missing.append(f"not checked: {error}")
    if config.init and not Path(config.init).is_dir():
        missing.append(f"not checked: init={config.init} is not here, nor its tokenizer")
    else:
        check_init(config)
    source = config.tokenizer or config.init
    if source and (Path(source).exists() or source == "bytes"):
        tokenizer = load_tokenizer(source)
        check_vocabulary(tokenizer.vocab_size, config.model.vocab_size)
        stop_ids(tokenizer, config.sampling.stop)
    return tuple(missing)


def refuse_unplanned(config: Config) -> None:
    """Raises ValueError for what a plan does not compile."""
    require(
        config.algorithm == "grpo" and not config.reward_model.every,
        "a plan is of the policy alone; set algorithm=grpo and reward_model.every=0, got "
        f"{config.algorithm} and {config.reward_model.every}",
    )
    require(
        not config.mesh.sampling,
        f"a plan is of devices that do everything; set mesh.sampling=0, got {config.mesh.sampling}",
    )
    require(
        config.model.base_dtype != "int8",
        "a plan knows no int8 base; set model.base_dtype=bfloat16, got int8",
    )


def compiled(lower: Callable[[], jax.stages.Lowered]) -> Compiled:
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
