"""Export: a checkpoint of a run as a Hugging Face folder, or its adapters as a PEFT folder."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp

from grpojax.checks import require
from grpojax.lora import merge, split
from grpojax.peft import is_adapters, save_adapters
from grpojax.pretrained import new_folder, save_params
from grpojax.run import is_run, reopen_run, trained_params
from grpojax.sharding import use_mesh
from grpojax.storage import Place, place


def export_run(
    workdir: Place,
    out: Path,
    *,
    step: int | None,
    dtype: str,
    adapters: bool,
    say: Callable[[str], None] = print,
) -> str:
    """Writes a checkpoint of a run (the newest, or `step`) into the new folder `out`.

    The folder holds the weights, cast to `dtype`, `config.json` and the tokenizer, adapters merged
    into the weights; or, if `adapters`, these alone as `peft` loads them. It appears whole or not
    at all.

    Returns:
      What was done, in one line.

    Raises:
      ValueError: there is no such checkpoint, `out` is not empty, or the run has no adapters.
    """
    run = reopen_run(workdir)
    model = run.config.model
    require(
        bool(model.lora_rank) or not adapters,
        f"{workdir} trained no adapters; export it without --adapters",
    )
    base = place(run.config.init)
    require(
        not adapters or not (is_run(base) or is_adapters(base)),
        f"the adapters of {workdir} have no base that peft could load: {base} was merged when they "
        "began; export it without --adapters",
    )
    with use_mesh(run.mesh):
        params, at = trained_params(workdir, run.mesh, say, "newest" if step is None else step)
        with new_folder(out) as folder:
            run.tokenizer.save(folder)
            if adapters:
                save_adapters(folder, split(params)[0], model, str(base))
            else:
                whole = dataclasses.replace(model, lora_rank=0, base_dtype="float32")
                ends = {
                    "eos_token_id": run.tokenizer.eos_ids[0],
                    "pad_token_id": run.tokenizer.pad_id,
                }
                save_params(folder, merge(params, model), whole, jnp.dtype(dtype), ends)
    what = "its adapters" if adapters else f"its weights as {dtype}"
    return f"step {at} of {workdir}, {what}, is in {out}"
