"""Calls: every reward of every completion of a step called, each kind of reward in its own way.

Plain and batched rewards run in threads, asynchronous ones in an event loop, killable ones in
worker processes; the kinds go on at the same time. What runs them is opened once in a process.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from grpojax.config import JudgingConfig
from grpojax.rewards.failure import Failed
from grpojax.rewards.threads import Loop, Threads
from grpojax.rewards.workers import Workers
from grpojax.task import Example, Reward

Case = tuple[Example, str]

open_threads = functools.cache(Threads)
open_loop = functools.cache(Loop)
open_workers = functools.cache(Workers)


def kind_of(reward: Reward) -> str:
    """How a reward is called: "plain", "batched", "async" or "killable"."""
    if inspect.iscoroutinefunction(reward) or inspect.iscoroutinefunction(type(reward).__call__):
        return "async"
    return getattr(reward, "kind", "plain")


def call_rewards(
    rewards: Sequence[Reward], cases: Sequence[Case], judging: JudgingConfig
) -> tuple[list[list[Any | Failed]], dict[str, int]]:
    """What each reward said of each case, or why it failed, in the order of both; and metrics.

    A plain, asynchronous or killable call has `time_limit` seconds, a batched one as many as the
    threads would need for its completions if each took its limit. The metrics count the calls that
    exceeded theirs, the workers replaced in this step, and the threads that are stuck now.

    Raises:
      RuntimeError: nothing can be judged any more: all threads are stuck, the event loop is
        blocked, or a worker cannot be started.
    """
    results: list[list[Any | Failed]] = [[] for _ in rewards]
    kinds = [kind_of(reward) for reward in rewards]
    limit, threads = float(judging.time_limit), open_threads(judging.threads)
    crews = {
        i: open_workers(rewards[i].imported, count=judging.workers, memory=judging.worker_memory)
        for i, kind in enumerate(kinds)
        if kind == "killable"
    }
    replaced = sum(crew.replaced for crew in crews.values())
    of_kind = {kind: [i for i, k in enumerate(kinds) if k == kind] for kind in kinds}

    def in_threads() -> None:
        whole, each = of_kind.get("batched", []), of_kind.get("plain", [])
        rounds = -(-len(cases) // judging.threads)
        calls = [(one_batch(rewards[i], cases), limit * rounds) for i in whole]
        calls += [(functools.partial(rewards[i], *case), limit) for i in each for case in cases]
        said = threads.call_all(calls)
        for i, values in zip(whole, said):
            results[i] = [values] * len(cases) if isinstance(values, Failed) else values
        for at, i in enumerate(each):
            start = len(whole) + at * len(cases)
            results[i] = said[start : start + len(cases)]

    def in_loop() -> None:
        asked = of_kind["async"]
        calls = [functools.partial(rewards[i], *case) for i in asked for case in cases]
        said = open_loop().call_all(calls, limit=limit, at_once=judging.async_calls)
        for at, i in enumerate(asked):
            results[i] = said[at * len(cases) : (at + 1) * len(cases)]

    def in_workers(i: int) -> None:
        results[i] = crews[i].call_all(cases, limit)

    parts = [functools.partial(in_workers, i) for i in crews]
    parts += [in_loop] if "async" in of_kind else []
    parts += [in_threads] if {"plain", "batched"} & of_kind.keys() else []
    if len(parts) == 1:
        parts[0]()
    else:
        with ThreadPoolExecutor(len(parts)) as pool:
            for part in [pool.submit(part) for part in parts]:
                part.result()
    timed_out = sum(isinstance(r, Failed) and r.timed_out for said in results for r in said)
    return results, {
        "judging/timed_out": timed_out,
        "judging/workers_replaced": sum(crew.replaced for crew in crews.values()) - replaced,
        "judging/threads_stuck": threads.stuck(),
    }


def one_batch(reward: Callable, cases: Sequence[Case]) -> Callable[[], list[Any]]:
    """The one call of a batched reward; raises ValueError if it gives not one value for each."""

    def call() -> list[Any]:
        values = list(reward([example for example, _ in cases], [text for _, text in cases]))
        if len(values) != len(cases):
            raise ValueError(f"gave {len(values)} values for {len(cases)} completions")
        return values

    return call
