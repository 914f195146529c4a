"""Threads and an event loop that call rewards side by side, each call within its time limit.

A call cannot be stopped from outside. One that exceeds its limit is left behind with its thread:
its completion has failed, the other threads go on, and its place is free again if it ever returns.
"""

import asyncio
import atexit
import collections
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from grpojax.rewards.failure import Failed

ANOTHER = 0.002  # seconds after which the threads get one more, until they are all there


class Threads:
    """At most `count` threads, those left behind included. None of them keeps the process alive."""

    def __init__(self, count: int):
        self.count = count
        self.left_behind: list[threading.Thread] = []

    def stuck(self) -> int:
        """How many threads exceeded their limit and have still not returned."""
        self.left_behind = [thread for thread in self.left_behind if thread.is_alive()]
        return len(self.left_behind)

    def call_all(self, calls: Sequence[tuple[Callable[[], Any], float]]) -> list[Any | Failed]:
        """What each call returned, or why it failed, in their order; a call comes with its seconds.

        Raises:
          RuntimeError: all threads are stuck, and none came back within the longest limit.
        """
        results: list[Any | Failed] = [None] * len(calls)
        todo = collections.deque(range(len(calls)))
        changed = threading.Condition()
        under_way: dict[threading.Thread, tuple[int, float]] = {}  # the call and its deadline

        def begin(thread: threading.Thread) -> None:
            case = todo.popleft()
            under_way[thread] = case, time.monotonic() + calls[case][1]

        def work() -> None:
            me = threading.current_thread()
            while True:
                with changed:
                    if me not in under_way:  # left behind
                        return
                    case, _ = under_way[me]
                result = attempt(calls[case][0])
                with changed:
                    if me in under_way:
                        results[case] = result
                        del under_way[me]
                        if todo:
                            begin(me)
                        else:
                            changed.notify()

        while todo:
            self.wait_for_a_place(max(limit for _, limit in calls))
            with changed:
                while under_way or (todo and self.stuck() < self.count):
                    if todo and self.stuck() + len(under_way) < self.count:
                        thread = threading.Thread(target=work, daemon=True)
                        begin(thread)
                        thread.start()
                    look = min(end for _, end in under_way.values()) - time.monotonic()
                    if todo and self.stuck() + len(under_way) < self.count:
                        look = min(look, ANOTHER)
                    changed.wait(max(look, 0.0))
                    now = time.monotonic()
                    for thread, (case, deadline) in list(under_way.items()):
                        if deadline <= now:
                            del under_way[thread]
                            self.left_behind.append(thread)
                            results[case] = too_long(calls[case][1])
        return results

    def wait_for_a_place(self, limit: float) -> None:
        end = time.monotonic() + limit
        while self.stuck() == self.count:
            if time.monotonic() > end:
                raise RuntimeError(
                    f"all {self.count} threads are stuck in rewards that exceeded their time "
                    "limit: make the reward killable, or raise judging.time_limit"
                )
            self.left_behind[0].join(limit / 100)


class Loop:
    """An event loop in a thread of its own, the same for all calls: clients may be kept open."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        atexit.register(self.close)

    def call_all(
        self, calls: Sequence[Callable[[], Awaitable[Any]]], *, limit: float, at_once: int
    ) -> list[Any | Failed]:
        """What each call came to, or why it failed, in their order; `limit` seconds for each.

        Raises:
          RuntimeError: a call blocks the loop, or goes on after it was cancelled.
        """

        async def judge_all() -> list[Any | Failed]:
            free = asyncio.Semaphore(at_once)

            async def judge(call: Callable[[], Awaitable[Any]]) -> Any | Failed:
                async with free:
                    try:
                        async with asyncio.timeout(limit) as clock:
                            return await call()
                    except BaseException as error:
                        return too_long(limit) if clock.expired() else raised(error)

            return await asyncio.gather(*(judge(call) for call in calls))

        rounds = -(-len(calls) // at_once)
        try:
            under_way = asyncio.run_coroutine_threadsafe(judge_all(), self.loop)
            return under_way.result(limit * (rounds + 1))
        except TimeoutError:
            raise RuntimeError(
                "an async reward blocks its event loop: await what takes time, or make it plain"
            ) from None

    def close(self) -> None:
        """Ends the loop, unless a call blocks it."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(1)
        if not self.thread.is_alive():
            self.loop.close()


def attempt(call: Callable[[], Any]) -> Any | Failed:
    """What `call` returns, or what it raised."""
    try:
        return call()
    except BaseException as error:  # sys.exit() among them: it concerns one completion
        return raised(error)


def raised(error: BaseException) -> Failed:
    return Failed(f"raised {type(error).__name__}: {error}")


def too_long(limit: float) -> Failed:
    return Failed(f"took longer than {limit:g} s", timed_out=True)
