"""Pipeline: the completions of a step, drawn while the step before is trained on.

With `grpo.lag` 1 the completions of step k are drawn from the parameters that step k - 1 began
with, by devices that do nothing else, and judged in a thread; meanwhile the other devices make the
updates of step k - 1. Whatever else is read of a state is of the one that is trained.

Completions are a function of parameters, seed and step, whenever they are drawn. So a checkpoint
holds no completions, but the parameters that those under way are of, and a run that goes on draws
them again.
"""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import jax

from grpojax.lora import combine
from grpojax.rollout import Rollout, make_rollout
from grpojax.run import Run
from grpojax.sharding import moved
from grpojax.summary import Laps
from grpojax.task import Example
from grpojax.types import Completions, Params, Prompts, TrainState


def make_pipeline(
    run: Run,
    batch_of: Callable[[int], tuple[list[Example], Prompts]],
    thread: Executor | None = None,
) -> Callable[..., tuple[Rollout, Params | None]]:
    """`draw(state, frozen, examples, prompts, step, laps, meanwhile) -> (drawn, older_params)`.

    `drawn` is the rollout of the step, its completions where they are trained on; `older_params`
    is what the state after the step holds under this name. See `make_rollout` for the rest.

    With a lag the rollout of the next step is begun in `thread`, which makes one at a time, before
    that of this step is waited for: "time/wait". Its "time/sample" and "time/reward" went by while
    the step before was made.
    """
    config, mesh = run.config, run.sampling_mesh
    rollout = make_rollout(run)
    base: Params | None = None  # the frozen parameters where completions are drawn
    under_way: dict[int, Future] = {}

    def there(params: Params) -> Params:
        """A copy on the devices that sample, unless those are the ones that train."""
        if mesh is run.mesh:
            return params
        return jax.device_put(params, jax.tree.map(lambda x: moved(x.sharding, mesh), params))

    def ahead(*batch: Any) -> tuple[Rollout, dict[str, float]]:
        laps = Laps()
        return rollout(*batch, laps, lambda completions: None), laps.times

    def draw(
        state: TrainState,
        frozen: Params,
        examples: list[Example],
        prompts: Prompts,
        step: int,
        laps: Laps,
        meanwhile: Callable[[Completions], None],
    ) -> tuple[Rollout, Params | None]:
        nonlocal base
        base = there(frozen) if base is None else base
        params = there(state.params)
        if not config.grpo.lag:
            return rollout(combine(base, params), examples, prompts, step, laps, meanwhile), None

        def begin(params: Params, examples: list[Example], prompts: Prompts, step: int) -> None:
            under_way[step] = thread.submit(ahead, combine(base, params), examples, prompts, step)

        if step not in under_way:  # the first of a run, or of one that goes on
            older = params if state.older_params is None else state.older_params
            begin(older, examples, prompts, step)
        if step + 1 < config.steps:
            begin(params, *batch_of(step + 1), step + 1)
        drawn, times = under_way.pop(step).result()  # wait: the sampler and the judges
        laps.end("time/wait")
        laps.times |= times
        meanwhile(drawn.completions)
        return drawn, params

    return draw


def with_abstract_older(like: TrainState, run: Run) -> TrainState:
    """The abstract state of a run, with the parameters that a lag keeps in it."""
    if not run.config.grpo.lag:
        return like

    def there(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return x.update(sharding=moved(x.sharding, run.sampling_mesh))

    return like.replace(older_params=jax.tree.map(there, like.params))
