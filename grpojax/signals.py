"""Signals: SIGTERM and SIGINT ask a run to finish its step, save and end."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def stop_requested(notice: str) -> Iterator[Callable[[], bool]]:
    """Inside the block: `requested()` is True once a signal came. A second one acts as usual.

    `notice` is written to stderr when the first comes.
    """
    received: list[int] = []
    before = {}

    def receive(number, frame):
        received.append(number)
        for name, handler in before.items():
            signal.signal(name, handler)
        os.write(2, notice.encode())  # `print` may be what the signal interrupted

    for name in (signal.SIGTERM, signal.SIGINT):
        before[name] = signal.signal(name, receive)
    try:
        yield lambda: bool(received)
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
