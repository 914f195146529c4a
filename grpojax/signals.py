"""Signals: SIGTERM and SIGINT ask a run to finish its step, save and end."""

import contextlib
import signal
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def stop_requested(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Inside the block: `requested()` is True once a signal came. A second one acts as usual."""
    received: list[int] = []
    before = {}

    def receive(number, frame):
        received.append(number)
        for name, handler in before.items():
            signal.signal(name, handler)
        say(f"{signal.Signals(number).name}: finishing the step and saving; once more to break off")

    for name in (signal.SIGTERM, signal.SIGINT):
        before[name] = signal.signal(name, receive)
    try:
        yield lambda: bool(received)
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
