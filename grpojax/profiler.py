"""Profiler: a trace of some steps of a run, by `jax.profiler`, for TensorBoard and XProf."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import jax

from grpojax.storage import Place, written_locally


@contextlib.contextmanager
def step_profiler(
    folder: Place, steps: tuple[int, int] | None
) -> Iterator[Callable[[int], AbstractContextManager[None]]]:
    """A function `profiled(step)`, within which one step is made.

    Steps count from 1. The trace is of those from `steps[0]` to `steps[1]` and of what the run does
    between them, in `folder`; it is written however the run ends. None traces nothing.
    """
    first, last = steps or (0, 0)
    running = False
    traced = contextlib.ExitStack()

    def stop() -> None:
        nonlocal running
        if running:
            running = False
            with traced:
                jax.profiler.stop_trace()

    @contextlib.contextmanager
    def profiled(step: int) -> Iterator[None]:
        nonlocal running
        if first <= step <= last and not running:
            jax.profiler.start_trace(traced.enter_context(written_locally(folder)))
            running = True
        with jax.profiler.StepTraceAnnotation("step", step_num=step):
            yield
        if step == last:
            stop()

    try:
        yield profiled
    finally:
        stop()
