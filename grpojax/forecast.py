"""Forecast: memory and time of a step on a mesh, by arithmetic alone, every length the longest.

Time is the roofline's of the work that a device has (`work`), and of what it receives from others
by a ring along one dimension; nothing overlaps. So it is less than a step will take, and its use is
to compare meshes. Memory is what must be held: XLA's temporaries are larger by what it copies.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from grpojax.architecture import ModelConfig
from grpojax.config import Config
from grpojax.lora import LEAVES
from grpojax.model import Policy, init_params
from grpojax.roofline import Roofline
from grpojax.sharding import ROWS, STORED, USED, Rules, is_box, names_of, spec_of
from grpojax.slices import members_of_slice
from grpojax.work import (
    LOGIT,
    WIDTH,
    Lengths,
    Work,
    decode_work,
    forward_work,
    prefill_work,
    products,
    update_work,
    weight_bytes,
)

COUNTS = 5 * 4  # bytes: step, update, skipped, and two counts of the optimizer
LANES = 128  # a TPU's last axis is filled up to so many
LATENCY = 1e-6  # seconds that a collective takes at least: about one hop (scaling-book)
LOGITS_HELD = 3 * 2**26  # bytes: a chunk of logits, their probabilities and gradients (`scoring`)


class Device(NamedTuple):
    """What one device can do and hold."""

    roofline: Roofline
    ring: float  # bytes a second that it receives in a collective
    memory: int | None  # bytes; None: unknown


class Phase(NamedTuple):
    """A part of a step, on one device."""

    work: Work
    received: int  # bytes, from other devices
    collectives: int

    def seconds(self, device: Device) -> float:
        """At the roofline, and then for what is received."""
        here = max(self.work.flops / device.roofline.flops, self.work.bytes / device.roofline.bytes)
        return here + self.received / device.ring + self.collectives * LATENCY


class Forecast(NamedTuple):
    """Of a step, on each device of a mesh."""

    phases: dict[str, Phase]  # sample, reference, update
    state: int  # bytes: parameters, optimizer's moments, reference, frozen base
    sample: int  # bytes while sampling, the state included
    update: int  # bytes in the update

    @property
    def memory(self) -> int:
        """Bytes at the fuller of the two times."""
        return max(self.sample, self.update)

    def seconds(self, device: Device) -> float:
        """Of a step, without the host's part."""
        return sum(phase.seconds(device) for phase in self.phases.values())


@functools.lru_cache(maxsize=8)
def boxed_params(model: ModelConfig) -> list[tuple[tuple[str, ...], Any]]:
    """Paths of the parameters, each with its shape and the logical names of its axes."""
    boxed = jax.eval_shape(lambda: init_params(Policy(model), jax.random.key(0)))
    leaves, _ = jax.tree.flatten_with_path(boxed, is_leaf=is_box)
    return [(tuple(key.key for key in path), leaf) for path, leaf in leaves]


class Size(NamedTuple):
    """Parameters that one device has."""

    trained: int
    frozen: int
    experts: int  # of both

    @property
    def all(self) -> int:
        return self.trained + self.frozen


def parameters_each(model: ModelConfig, sizes: Mapping[str, int], rules: Rules) -> Size:
    """How many a device of a mesh of these sizes has, where they are kept or where they are
    used."""
    return counted(model, tuple(sizes.items()), rules is STORED)


@functools.lru_cache(maxsize=4096)
def counted(model: ModelConfig, mesh: tuple[tuple[str, int], ...], stored: bool) -> Size:
    """See `parameters_each`."""
    sizes, rules = dict(mesh), STORED if stored else USED
    trained = frozen = experts = 0
    for path, leaf in boxed_params(model):
        array = leaf.value if is_box(leaf) else leaf
        spec = spec_of(names_of(leaf), array.shape, sizes, rules)
        split = math.prod(sizes[axis] for axis in jax.tree.leaves(tuple(spec)))
        count = array.size // split
        if model.lora_rank and path[-1] not in LEAVES:
            frozen += count
        else:
            trained += count
        experts += count * ("experts" in names_of(leaf))
    return Size(trained, frozen, experts)


def state_bytes(config: Config, sizes: Mapping[str, int]) -> int:
    """Bytes of the state and the frozen base on each device: parameters, both moments, reference.

    PPO's critic and the reward model count as another policy with its moments each.
    """
    model, moment = config.model, WIDTH[config.optimizer.moment_dtype]
    kept, master = parameters_each(model, sizes, STORED), WIDTH[model.param_dtype]
    copies = 1 + (config.algorithm == "ppo") + (config.reward_model.every > 0)
    trained = copies * (2 * master + moment) + (config.grpo.beta > 0) * master
    frozen = WIDTH[model.base_dtype] if model.lora_rank else 0
    return kept.trained * trained + kept.frozen * frozen + COUNTS


def forecast(config: Config, sizes: Mapping[str, int]) -> Forecast:
    """Of `config` on a mesh of these sizes, which must fit it."""
    model, grpo, sampling = config.model, config.grpo, config.sampling
    prompt, completion = sampling.prompt_length, sampling.completion_length
    rows = grpo.prompts_per_step // math.prod(sizes[axis] for axis in ROWS)
    parts = grpo.minibatches * grpo.microbatches
    state = state_bytes(config, sizes)
    held = memory(config, sizes, rows, max(1, rows // parts))

    lengths = Lengths(np.full(rows, prompt), np.full((rows, grpo.group_size), completion))
    passes = (grpo.beta > 0) + (not grpo.on_policy and grpo.old_logps == "rescored")
    passes += grpo.top_entropy < 1
    sample = decoding(model, lengths, sizes) + shared(
        model, lengths, prefill_work(model, lengths), sizes
    )
    update = update_work(
        model,
        lengths,
        epochs=grpo.epochs_per_batch,
        minibatches=grpo.minibatches,
        microbatches=grpo.microbatches,
        moment_dtype=config.optimizer.moment_dtype,
    )
    sent = received(config, sizes, rows)
    phases = {"sample": Phase(sample, *sent["sample"])}
    if passes:
        bytes_sent, count = sent["reference"]
        work = sum([shared(model, lengths, forward_work(model, lengths), sizes)] * passes, Work())
        phases["reference"] = Phase(work, passes * bytes_sent, passes * count)
    phases["update"] = Phase(shared(model, lengths, update, sizes), *sent["update"])
    return Forecast(phases, state, state + held["sample"], state + held["update"])


def shared(model: ModelConfig, lengths: Lengths, work: Work, sizes: Mapping[str, int]) -> Work:
    """Of the rows of one device, the part that is left when the devices along tensor share it:
    attention only if its heads divide."""
    tensor, whole = sizes["tensor"], 0.0
    if model.num_heads % tensor:
        once = products(model, lengths, head=True)
        projections = 2 * (model.num_heads + model.num_kv_heads) * model.head_dim
        tokens = 2 * (lengths.read + lengths.drawn) * model.num_layers * model.embed_dim
        whole = (once.attention + tokens * projections) / sum(once)
    return Work(int(work.flops * (whole + (1 - whole) / tensor)), work.bytes // tensor)


def decoding(model: ModelConfig, lengths: Lengths, sizes: Mapping[str, int]) -> Work:
    """Decoding, with the weights that a device has of each layer read for every token."""
    work, tokens = decode_work(model, lengths), int(lengths.completions.max())
    cache = work.bytes - tokens * weight_bytes(model, lengths.completions.size, head=True)
    split = sizes["tensor"] if model.num_kv_heads % sizes["tensor"] == 0 else 1
    read = tokens * weights_used(model, sizes)
    return Work(shared(model, lengths, work, sizes).flops, read + cache // split)


def weights_used(model: ModelConfig, sizes: Mapping[str, int]) -> int:
    """Bytes of the weights as a device has them where they are multiplied."""
    return parameters_each(model, sizes, USED).all * WIDTH[model.compute_dtype]


def memory(config: Config, sizes: Mapping[str, int], rows: int, part: int) -> dict[str, int]:
    """Bytes beside the state while sampling and in the update, with so many prompts a device and
    in a microbatch."""
    model, grpo, sampling = config.model, config.grpo, config.sampling
    tensor, wide = sizes["tensor"], WIDTH[model.compute_dtype]
    heads = model.num_kv_heads // (tensor if model.num_kv_heads % tensor == 0 else 1)
    lanes = model.head_dim + max(model.head_dim, LANES)  # keys, and values filled up
    token = model.num_layers * heads * lanes * wide
    prompts = sampling.prompt_length * token
    drawn = rows * grpo.group_size * sampling.completion_length * token
    logits = rows * grpo.group_size * model.vocab_size // tensor * LOGIT
    # While the cache grows, part of the old one is beside the new one; taken to be half of it.
    sample = weights_used(model, sizes) + rows * prompts + drawn * 3 // 2 + logits

    kept, used = (parameters_each(model, sizes, rules) for rules in (STORED, USED))
    members = grpo.group_size
    if not model.num_experts:
        members = members_of_slice(part, members, sampling.completion_length)
    tokens = part * members * sampling.completion_length
    block = inner_width(model) // tensor
    each = model.embed_dim if model.remat else model.embed_dim * 3 + block
    layers = model.num_layers * tokens * each * wide
    gradients = 2 * kept.trained * WIDTH["float32"]  # added up, and those of a slice
    once = used.all * wide // model.num_layers
    head = model.vocab_size * model.embed_dim // tensor * (wide + 2 * WIDTH["float32"])
    begun = 4 * part * prompts  # in float32, with what is asked of it
    update = gradients + layers + 2 * tokens * block * wide + once + head + begun + LOGITS_HELD
    return {"sample": sample, "update": update}


def inner_width(model: ModelConfig) -> int:
    """Numbers that a layer makes of a token: heads, and the feed-forward of each expert taken."""
    attention = 2 * (model.num_heads + model.num_kv_heads) * model.head_dim
    return attention + 3 * model.ffw_dim * max(1, model.experts_per_token)


def received(config: Config, sizes: Mapping[str, int], rows: int) -> dict[str, tuple[int, int]]:
    """Bytes that a device receives in each phase, and in how many collectives."""
    model, grpo, sampling = config.model, config.grpo, config.sampling
    data, fsdp, expert, tensor = (sizes[axis] for axis in ("data", "fsdp", "expert", "tensor"))
    width, layers, wide = fsdp * expert, model.num_layers, WIDTH[model.compute_dtype]
    used = parameters_each(model, sizes, USED)
    plain = (used.all - used.experts) * wide
    mixture = used.experts * wide
    weights = plain * (width - 1) // width + mixture * (fsdp - 1) // fsdp
    gathers = layers * 7 * (width > 1)

    def activations(tokens: int, passes: int) -> int:
        """Sums over tensor of what layers make, and experts' tokens there and back."""
        x = tokens * model.embed_dim * wide * layers * passes
        sums = 2 * 2 * x * (tensor - 1) // tensor
        return sums + 2 * x * (expert - 1)

    def sums(passes: int) -> int:
        return layers * passes * (2 * (tensor > 1) + 2 * (expert > 1))

    def slices(count: int) -> int:
        if model.num_experts:
            return 1
        part = members_of_slice(count, grpo.group_size, sampling.completion_length)
        return -(-grpo.group_size // part)

    prompts = rows * sampling.prompt_length
    drawn = rows * grpo.group_size * sampling.completion_length
    logits = rows * grpo.group_size * model.vocab_size * 4 * (tensor - 1) // tensor // tensor
    sample = weights + activations(prompts + drawn, 1) + sampling.completion_length * logits
    sample_count = gathers + sampling.completion_length * (sums(1) + (tensor > 1))

    turns = 1 + slices(rows)
    reference = turns * weights + activations(prompts + drawn, 1), turns * (gathers + sums(1))

    parts = grpo.minibatches * grpo.microbatches
    turns = grpo.epochs_per_batch * parts * (1 + slices(max(1, rows // parts)))
    passes = 3 + model.remat
    frozen = model.lora_rank > 0
    trained = parameters_each(model, sizes, USED).trained * wide if frozen else plain
    back = 0 if frozen else weights  # gradients, to where parameters are kept
    back += 2 * (trained // width + mixture // fsdp * (not frozen)) * (data - 1) // data
    update = turns * ((passes - 1) * weights + back)
    update += grpo.epochs_per_batch * activations(prompts + drawn, passes)
    count = turns * (passes * gathers + sums(passes) + (data > 1) * layers)
    return {"sample": (sample, sample_count), "reference": reference, "update": (update, count)}
