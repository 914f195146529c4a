"""Arithmetic: what a run will cost, from its config alone. Compiles nothing."""

import math

import jax

from grpojax.config import Config
from grpojax.data import make_batches
from grpojax.model import abstract_params
from grpojax.presets import describe_objective
from grpojax.run import open_run
from grpojax.sampling import decode_shapes
from grpojax.sharding import row_parts
from grpojax.slices import members_of_slice, slice_lengths
from grpojax.storage import Place


def dry_run(config: Config, workdir: Place) -> str:
    """Opens and checks everything that a run would, and returns its sizes as lines of text.

    Bytes are totals over the mesh of what is held in float32 (the cache: in the compute dtype), and
    leave out activations.

    Raises:
      ValueError: whatever `train` would refuse.
    """
    run = open_run(config, workdir)
    model, sampling, grpo = config.model, config.sampling, config.grpo
    make_batches(
        run.task.splits["train"],
        run.tokenizer,
        prompts_per_step=grpo.prompts_per_step,
        prompt_length=sampling.prompt_length,
        seed=config.seed,
        long_prompts=config.data.long_prompts,
    )
    leaves = jax.tree.leaves(abstract_params(run.policy, run.mesh))
    parameters = sum(math.prod(leaf.shape) for leaf in leaves)
    completions = grpo.prompts_per_step * grpo.group_size
    prompt_tokens = grpo.prompts_per_step * sampling.prompt_length
    tokens = completions * sampling.completion_length
    width = {"float32": 4, "bfloat16": 2}[model.compute_dtype]
    per_token = 2 * model.num_layers * model.num_kv_heads * model.head_dim * width
    copies = {"parameters": 1, "AdamW moments": 2, "reference": int(grpo.beta > 0), "gradients": 1}
    if config.algorithm == "ppo":
        copies |= {"critic with its moments": 3}
    if config.reward_model.every:
        copies |= {"reward model with its moments": 3}
    if config.mesh.sampling:
        copies |= {"parameters that sample": 1 + grpo.lag}
    updates = grpo.epochs_per_batch * grpo.minibatches
    prompts_read = grpo.prompts_per_step // (grpo.minibatches * grpo.microbatches)
    evaluated = max(1, min(completions // config.evaluation.samples, config.evaluation.examples))
    members = grpo.group_size
    if not model.num_experts:
        each = prompts_read // row_parts(run.mesh)
        members = members_of_slice(each, grpo.group_size, sampling.completion_length)
    shapes = [
        f"sample {grpo.prompts_per_step} x {grpo.group_size}",
        f"update {prompts_read} x {grpo.group_size} in {grpo.minibatches} minibatches of "
        f"{grpo.microbatches} microbatches",
        f"evaluate {min(completions, config.evaluation.examples)} x 1 greedy and "
        f"{evaluated} x {config.evaluation.samples} sampled",
    ]
    if grpo.beta > 0 or (not grpo.on_policy and grpo.old_logps == "rescored"):
        shapes.insert(1, f"score {grpo.prompts_per_step} x {grpo.group_size}")
    if config.reward_model.every:
        pairs = config.reward_model.pairs_per_update
        shapes += [
            f"reward {grpo.prompts_per_step} x {grpo.group_size}",
            f"reward model {pairs // grpo.microbatches} x 2 in {grpo.microbatches} microbatches",
        ]
    mesh = ", ".join(f"{axis}={size}" for axis, size in run.mesh.shape.items())
    devices = f"{run.mesh.size} x {run.mesh.devices.flat[0].device_kind}"
    if config.mesh.sampling:
        devices += f", and {run.sampling_mesh.size} more that sample"
    lines = {
        "run": f"{workdir}: task {config.task}, {len(run.task.splits['train'])} training examples",
        "objective": describe_objective(config).partition(": ")[2],
        "steps": f"{config.steps}, {updates} updates each; {config.updates} updates in all",
        "tokens per step": f"at most {prompt_tokens:,} of prompts, {tokens:,} of completions "
        f"({grpo.prompts_per_step} prompts x {grpo.group_size} x {sampling.completion_length})",
        "parameters": f"{parameters:,}",
        "state": ", ".join(f"{name} {size(4 * n * parameters)}" for name, n in copies.items()),
        "cache": f"{size(prompt_tokens * per_token)} of prompts, "
        f"{size(tokens * per_token)} of completions",
        "mesh": f"{mesh} over {devices}",
        "compiled shapes": f"P={sampling.prompt_length}, T={sampling.completion_length}: "
        + "; ".join(shapes),
        "decoding": "in "
        + " or ".join(
            f"{rows} x {columns}"
            for shapes in decode_shapes(sampling.completion_length, grpo.group_size)
            for rows, columns in shapes
        )
        + " of a group's completions x tokens",
        "reading": f"{members} of a group at a time, to token "
        + " or ".join(map(str, slice_lengths(sampling.completion_length))),
    }
    longest = max(map(len, lines))
    rows = [*lines.items(), *(("data", note) for note in run.task.notes)]
    rows += [("caution", reason) for reason in grpo.cautions]
    return "\n".join(f"{name:{longest}}  {text}" for name, text in rows)


def size(count: int | float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"
