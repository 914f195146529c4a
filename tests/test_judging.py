"""Judging: plain, batched, asynchronous and killable rewards, their time limits and failures."""

import asyncio
import threading
import time

import numpy as np
import pytest

from grpojax.config import JudgingConfig
from grpojax.rewards import RewardFailed, choose_rewards, compute_rewards
from grpojax.rewards.threads import Loop, Threads
from grpojax.task import Example, Task, batched, killable, prepared

EXAMPLES = [Example(id=i, prompt=f"{i}", answer=str(i)) for i in (1, 2)]
TEXTS = [["a", "bb", "ccc"], ["dddd", "eeeee", "ffffff"]]
LENGTHS = [[1, 2, 3], [4, 5, 6]]


def judge(*rewards, texts=TEXTS, **fields):
    named = {f"r{i}": reward for i, reward in enumerate(rewards)}
    return compute_rewards(named, [1.0] * len(named), EXAMPLES, texts, JudgingConfig(**fields))


def length(example, completion):
    return len(completion)


async def slow_length(example, completion):
    await asyncio.sleep(0.2 / len(completion))  # the last is done first
    return len(completion)


@batched
def lengths(examples, completions):
    assert [example.id for example in examples] == [1, 1, 1, 2, 2, 2]
    return np.array([len(completion) for completion in completions], np.float32)


RELEASED = threading.Event()


@pytest.fixture(autouse=True)
def released():
    """Lets threads that a test leaves behind return when it is over."""
    RELEASED.clear()
    yield
    RELEASED.set()


def stuck_length(example, completion):
    if completion == "bb":
        RELEASED.wait(30)
    return len(completion)


@pytest.mark.parametrize("reward", [length, slow_length, lengths])
def test_every_kind_of_reward_gives_its_values_in_the_order_of_the_completions(reward):
    judged = judge(reward, length)
    np.testing.assert_array_equal(judged.by_name["r0"], LENGTHS)
    np.testing.assert_array_equal(judged.total, 2 * np.array(LENGTHS))
    assert judged.valid.all() and judged.failure == ""


def test_slow_plain_rewards_overlap_and_keep_their_order():
    def slow(example, completion):
        time.sleep(0.4 - 0.01 * len(completion))  # the last is done first
        return len(completion)

    start = time.monotonic()
    judged = judge(slow, threads=6)
    assert time.monotonic() - start < 1.2  # one after another: 2.2
    np.testing.assert_array_equal(judged.total, LENGTHS)


def test_no_more_than_the_given_threads_call_at_once():
    now, most, lock = 0, 0, threading.Lock()

    def counted(example, completion):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.02)
        with lock:
            now -= 1
        return 1.0

    assert judge(counted, threads=2).valid.all() and most == 2


def test_no_more_than_the_given_asynchronous_calls_wait_at_once():
    now = most = 0

    async def counted(example, completion):
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return 1.0

    assert judge(counted, async_calls=4).valid.all() and most == 4


def test_the_event_loop_is_the_same_from_step_to_step():
    loops = []

    async def noted(example, completion):
        loops.append(asyncio.get_running_loop())
        return 1.0

    judge(noted)
    judge(noted)
    assert len(loops) == 12 and len(set(loops)) == 1


async def sleepy(example, completion):
    await asyncio.sleep(30 if completion == "bb" else 0)
    return len(completion)


@pytest.mark.parametrize("reward", [stuck_length, sleepy])
def test_a_call_beyond_the_time_limit_makes_its_completion_invalid_and_no_other(reward):
    start = time.monotonic()
    judged = judge(reward, time_limit=0.3)
    assert time.monotonic() - start < 5
    np.testing.assert_array_equal(judged.valid, [[True, False, True], [True, True, True]])
    np.testing.assert_array_equal(judged.total, [[1, 0, 3], [4, 5, 6]])
    assert judged.failure == "reward 'r0' took longer than 0.3 s for a completion of example 1"
    assert judged.counts["judging/timed_out"] == 1


def test_a_stuck_thread_is_counted_until_it_returns():
    threads = Threads(2)
    results = threads.call_all([(RELEASED.wait, 0.3), (lambda: 2, 0.3), (lambda: 3, 0.3)])
    assert results[0].timed_out and results[1:] == [2, 3] and threads.stuck() == 1
    RELEASED.set()
    threads.left_behind[0].join()
    assert threads.stuck() == 0


def test_when_all_threads_are_stuck_the_run_is_given_up_in_one_line():
    threads = Threads(2)
    with pytest.raises(
        RuntimeError, match=r"all 2 threads are stuck .* judging\.time_limit"
    ) as error:
        threads.call_all([(RELEASED.wait, 0.05)] * 3)
    assert "\n" not in str(error.value)


def test_threads_that_return_late_go_on_with_the_rest():
    threads = Threads(1)
    results = threads.call_all([(lambda: time.sleep(0.5), 0.4), (lambda: 2, 0.4)])
    assert results[0].timed_out and results[1] == 2


def test_an_async_reward_that_blocks_its_loop_ends_the_run():
    async def blocking():
        RELEASED.wait(30)

    loop = Loop()
    with pytest.raises(RuntimeError, match="async reward blocks its event loop"):
        loop.call_all([blocking], limit=0.05, at_once=1)


def test_a_batched_reward_has_the_time_that_threads_would_have():
    def reward(examples, completions):
        time.sleep(0.5)
        return [1.0] * len(completions)

    assert judge(batched(reward), time_limit=0.4, threads=2).valid.all()  # 6 calls: 3 rounds
    late = judge(batched(reward), time_limit=0.4, threads=6)
    assert not late.valid.any() and late.counts["judging/timed_out"] == 6


@pytest.mark.parametrize("given", [[1.0], [1.0] * 7, None])
def test_a_batched_reward_must_give_a_value_for_each_completion(given):
    judged = judge(batched(lambda examples, completions: given))
    assert not judged.valid.any()
    assert "reward 'r0' raised" in judged.failure


def test_one_bad_value_of_a_batch_fails_alone():
    values = [1.0, float("nan"), 3.0, 4.0, "5", 6.0]
    judged = judge(batched(lambda examples, completions: values))
    np.testing.assert_array_equal(judged.valid, [[True, False, True], [True, False, True]])


def fragile(example, completion):
    if completion == "bb":
        raise SystemExit(3)  # not even this ends a thread
    return len(completion)


def test_a_failure_may_count_zero():
    judged = judge(fragile, length, on_failure="zero")
    assert judged.valid.all()
    np.testing.assert_array_equal(judged.by_name["r0"], [[1, 0, 3], [4, 5, 6]])
    np.testing.assert_array_equal(judged.total, [[2, 2, 6], [8, 10, 12]])
    assert judged.failure == "reward 'r0' raised SystemExit: 3 for a completion of example 1"


def test_a_failure_may_stop_the_run():
    with pytest.raises(
        RewardFailed, match="'r0' raised SystemExit: 3 for a completion of example 1"
    ):
        judge(length, fragile, on_failure="stop", texts=[["a"], ["a"]]) and judge(
            fragile, on_failure="stop"
        )


def test_a_reward_is_prepared_when_it_is_chosen():
    done = []

    def prepare():
        done.append(1)

    accuracy = prepared(prepare)(lambda example, completion: 1.0)
    task = Task(splits={}, rewards={"accuracy": accuracy, "length": length})
    choose_rewards(["accuracy", "length"], task)
    choose_rewards(["length"], task)  # evaluation calls accuracy all the same
    assert done == [1, 1]


def test_what_cannot_be_killed_or_batched_is_refused():
    with pytest.raises(ValueError, match=r"must be a plain function of a module, got .*<lambda>"):
        killable(lambda example, completion: 1.0)
    with pytest.raises(ValueError, match=r"must be a plain function of a module.*slow_length"):
        killable(slow_length)
    with pytest.raises(ValueError, match="a batched reward must not be async, got slow_length"):
        batched(slow_length)
