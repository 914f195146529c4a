"""Verdicts: what parts of a batch are judged to be comes back as one, bit for bit."""

import numpy as np

from grpojax.rewards import Judged
from grpojax.verdicts import joined, judge_by_hosts, packed, rows_of, unpacked


def judged(rows, seed, failure="", **counts):
    rng = np.random.default_rng(seed)
    values = {name: rng.random((rows, 2), np.float32) for name in ("accuracy", "a/b")}
    valid = rng.random((rows, 2)) > 0.3
    total = values["accuracy"] + values["a/b"]
    return Judged(by_name=values, total=total, valid=valid, failure=failure, counts=counts)


def assert_equal(found, expected):
    assert (found.failure, found.counts) == (expected.failure, expected.counts)
    assert list(found.by_name) == list(expected.by_name)
    pairs = [(found.by_name[name], expected.by_name[name]) for name in expected.by_name]
    pairs += [(found.total, expected.total), (found.valid, expected.valid)]
    for ours, theirs in pairs:
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def test_a_verdict_comes_back_from_its_bytes():
    verdict = judged(3, 0, failure="reward 'é' timed out", timeouts=2)
    more = {"ends": np.array([[True], [False], [True]])}
    found, others = unpacked(packed(verdict, more))
    assert_equal(found, verdict)
    np.testing.assert_array_equal(others["ends"], more["ends"])


def test_parts_join_in_order_with_their_counts_added_and_the_first_failure():
    first, second = judged(2, 1, x=1), judged(3, 2, failure="late", x=2, y=5)
    third = judged(1, 3, failure="later")
    whole, _ = joined([(part, {}) for part in (first, second, third)])
    assert (whole.failure, whole.counts) == ("late", {"x": 3, "y": 5})
    assert whole.total.shape == (6, 2)
    for rows, part in ((range(2), first), (range(2, 5), second), (range(5, 6), third)):
        np.testing.assert_array_equal(rows_of(whole, np.array(rows)).total, part.total)
        np.testing.assert_array_equal(whole.by_name["a/b"][list(rows)], part.by_name["a/b"])


def test_one_host_judges_all_rows():
    rows = np.array([4, 1, 7])
    found, more = judge_by_hosts(rows, lambda mine: (judged(len(mine), 9), {"rows": mine}))
    assert_equal(found, judged(3, 9))
    np.testing.assert_array_equal(more["rows"], rows)
