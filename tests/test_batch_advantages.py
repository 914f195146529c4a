"""Advantages that need more than a group, and those of steps, in float64, against the oracle."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from grpojax.advantages import batch_advantages, group_advantages, process_advantages, top_tokens

close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-9)
REWARDS = np.array([[1.0, 0, 0, 0], [1, 1, 1, 0]])  # example E17


@pytest.fixture(autouse=True, scope="module")
def float64():
    with jax.enable_x64(True):
        yield


def of_batch(advantage, rewards=REWARDS, lengths=None, valid=None, by_name=None, penalty=None, **k):
    """Advantages of a batch by token, completions of the given lengths (1 each) in 3 columns."""
    lengths = np.ones(rewards.shape, int) if lengths is None else np.asarray(lengths)
    valid = np.ones(rewards.shape, bool) if valid is None else np.asarray(valid)
    mask = np.arange(3) < lengths[..., None]
    found = batch_advantages(
        jnp.asarray(rewards), jnp.asarray(valid), jnp.asarray(mask),
        None if by_name is None else jnp.asarray(by_name),
        None if penalty is None else jnp.asarray(penalty),
        advantage=advantage, **{"ddof": 1, "std_epsilon": 1e-4} | k,
    )  # fmt: skip
    return np.where(mask, np.broadcast_to(found, mask.shape), 0.0)


@pytest.mark.parametrize(
    ("advantage", "right", "wrong"),
    [
        ("group", 1.49970006, -0.49990002),
        ("batch", 1.4028590691, -0.4676196897),
        ("reinforce_pp_baseline", 1.6201851368, -0.5400617123),
    ],
)
def test_worked_numbers_of_two_groups(advantage, right, wrong):
    found = of_batch(advantage)[..., 0]
    close(found[0], [right, wrong, wrong, wrong], atol=6e-9)
    close(found[1], [-wrong, -wrong, -wrong, -right], atol=6e-9)
    centred = REWARDS - REWARDS.mean(1, keepdims=True)
    expected = {
        "group": [oracle.advantages(row, "group", 1, 1e-4) for row in REWARDS],
        "batch": centred / (REWARDS.std(ddof=1) + 1e-4),
        "reinforce_pp_baseline": oracle.whiten(centred.ravel()).reshape(2, 4),
    }
    close(found, expected[advantage])


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("advantage", ["group", "mean", "rloo", "opo"])
def test_group_advantages_are_their_formulas(advantage, ddof):
    rewards, lengths = np.array([3, 1.8, 1.5, 1, -2]), np.array([1.0, 3, 2, 2, 1])
    found = group_advantages(
        jnp.asarray(rewards), jnp.ones(5, bool), jnp.asarray(lengths),
        advantage=advantage, ddof=ddof, std_epsilon=1e-4,
    )  # fmt: skip
    close(found, oracle.advantages(rewards, advantage, ddof, 1e-4, lengths))


@pytest.mark.parametrize(
    ("options", "right", "wrong"),
    [
        ({"ddof": 0, "std_epsilon": 1e-300}, 1.290994448736, -0.774596669241),
        ({"advantage": "rloo"}, 0.714285714286, -0.428571428571),
    ],
)
def test_more_worked_numbers_of_three_right_among_eight(options, right, wrong):
    rewards = np.array([1.0, 0, 0, 1, 1, 0, 0, 0])
    found = group_advantages(jnp.asarray(rewards), jnp.ones(8, bool), **options)
    close(found, np.where(rewards == 1, right, wrong), atol=6e-13)


def test_rloo_is_g_over_g_minus_1_times_the_mean_baseline_and_ddof_a_factor():
    rewards = np.random.default_rng(0).normal(size=6)
    one = functools.partial(group_advantages, jnp.asarray(rewards), jnp.ones(6, bool))
    close(one(advantage="rloo"), 6 / 5 * one(advantage="mean"))
    tiny = 1e-300
    close(one(ddof=0, std_epsilon=tiny), one(ddof=1, std_epsilon=tiny) * np.sqrt(6 / 5))


LENGTHS = np.array([[1, 3, 2, 2], [3, 1, 1, 2]])


def test_whitening_is_over_the_tokens_of_the_batch():
    found = of_batch("reinforce_pp_baseline", lengths=LENGTHS)
    centred = REWARDS - REWARDS.mean(1, keepdims=True)
    flat = oracle.whiten(np.repeat(centred.ravel(), LENGTHS.ravel()))
    close(found[np.arange(3) < LENGTHS[..., None]], flat)
    close([flat.sum(), flat.var(ddof=1)], [0, 1], atol=1e-6)


def test_reinforce_pp_whitens_what_is_left_of_reward_and_penalty_from_each_token_on():
    penalty = np.random.default_rng(1).normal(size=(2, 4, 3))
    found = of_batch("reinforce_pp", lengths=LENGTHS, penalty=penalty)
    to_go = [
        REWARDS[b, g] - penalty[b, g, t : LENGTHS[b, g]].sum()
        for b in range(2) for g in range(4) for t in range(LENGTHS[b, g])
    ]  # fmt: skip
    close(found[np.arange(3) < LENGTHS[..., None]], oracle.whiten(np.array(to_go)))


def test_elsewhere_the_penalty_is_summed_over_the_completion():
    penalty = np.random.default_rng(2).normal(size=(2, 4, 3))
    inside = np.arange(3) < LENGTHS[..., None]
    shaped = REWARDS - np.where(inside, penalty, 0).sum(-1)
    for advantage in ("group", "rloo", "batch"):
        close(
            of_batch(advantage, lengths=LENGTHS, penalty=penalty),
            of_batch(advantage, shaped, lengths=LENGTHS),
        )


def test_gdpo_normalises_each_reward_by_itself():
    rng = np.random.default_rng(3)
    by_name, weights = rng.normal(size=(2, 4, 3)) * [1, 100, 0.01], (1.0, 0.5, 2.0)
    found = of_batch("gdpo", by_name=by_name, reward_weights=weights)[..., 0]
    each = np.zeros((2, 4))
    for name, weight in enumerate(weights):
        for b in range(2):
            each[b] += weight * oracle.advantages(by_name[b, :, name], "group", 1, 1e-4)
    close(found, (each - each.mean()) / (each.std(ddof=1) + 1e-4))
    scaled = of_batch("gdpo", by_name=by_name * [1, 1e3, 1], reward_weights=weights)[..., 0]
    close(scaled, found, atol=1e-5)  # the scale of a reward does not matter, but for epsilon


RELATIVE = ["group", "mean", "rloo", "opo", "batch", "gdpo", "reinforce_pp_baseline"]


@pytest.mark.parametrize("advantage", RELATIVE)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_group_of_equal_rewards_gets_exactly_zero_beside_others(advantage, dtype):
    rewards = np.array([[0.7] * 4, [0.1, 0.9, 0.3, 0.3], [1e20] * 4], dtype)
    lengths = np.array([[1, 2, 3, 3], [3, 1, 2, 1], [1, 1, 2, 2]])
    given = {"by_name": rewards[..., None], "reward_weights": (1.0,)} if advantage == "gdpo" else {}
    found = of_batch(advantage, rewards, lengths, **given)
    np.testing.assert_array_equal(found[[0, 2]], 0.0)
    if advantage != "batch" and advantage != "reinforce_pp_baseline":  # 1e20 is in their deviation
        assert np.abs(found[1]).max() > 0.1


@pytest.mark.parametrize("advantage", [*RELATIVE, "reinforce_pp"])
def test_invalid_completions_get_zero_and_change_nothing_for_the_rest(advantage):
    valid = np.array([[1, 1, 0, 1], [1, 0, 1, 1]], bool)
    by_name = np.random.default_rng(4).normal(size=(2, 4, 2))
    found = []
    for unscorable in (0.0, np.nan, 1e9):
        rewards = np.where(valid, REWARDS, unscorable)
        given = {}
        if advantage == "gdpo":
            named = np.where(valid[..., None], by_name, unscorable)
            given = {"by_name": named, "reward_weights": (1.0, 2.0)}
        found.append(of_batch(advantage, rewards, LENGTHS, valid, **given))
        assert (found[-1][~valid] == 0).all()
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


# Example E2: rewards of three steps that end at tokens 2, 5, 8, and of two at 3, 6.
STEP_REWARDS, STEP_ENDS = [[0.2, 0.6, 1.0], [0.4, 0.0]], [[2, 5, 8], [3, 6]]


@pytest.mark.parametrize(
    ("ddof", "first", "second"),
    [
        (0, [1.3949716649, 2.0924574974, 1.6274669424], [-1.3949716649, -1.2787240262]),
        (1, [1.2477005878, 1.8715508817, 1.4556506857], [-1.2477005878, -1.1437255388]),
    ],
)
def test_process_supervision_sums_the_steps_to_come(ddof, first, second):
    rewards, ends = np.full((2, 9), np.nan), np.zeros((2, 9), bool)
    for row in range(2):
        for reward, end in zip(STEP_REWARDS[row], STEP_ENDS[row]):
            rewards[row, end - 1], ends[row, end - 1] = reward, True
    found = process_advantages(
        *map(jnp.asarray, (rewards, ends, [True, True])), ddof=ddof, std_epsilon=0.0
    )
    close(found[0], np.repeat([*first, 0.0], [2, 3, 3, 1]), atol=6e-11)
    close(found[1], np.repeat([*second, 0.0], [3, 3, 3]), atol=6e-11)
    for row, expected in enumerate(oracle.process(STEP_REWARDS, STEP_ENDS, ddof)):
        close(found[row, : len(expected)], expected)


def test_steps_of_equal_rewards_and_of_invalid_completions_give_zero():
    ends = np.eye(3, dtype=bool)
    for rewards, valid in ((0.7, [True] * 3), ([[1.0], [np.nan], [0.5]], [True, False, False])):
        rewards = np.broadcast_to(rewards, (3, 3))
        found = process_advantages(
            *map(jnp.asarray, (rewards, ends, valid)), ddof=1, std_epsilon=1e-6
        )
        np.testing.assert_array_equal(found, 0.0)


def test_the_top_fifth_of_tokens_by_entropy_are_kept():
    entropy = np.arange(12.0).reshape(1, 2, 6)
    counted = np.ones((1, 2, 6), bool)
    counted[0, 1, 3:] = False  # the three highest do not count
    kept = np.asarray(top_tokens(jnp.asarray(entropy), jnp.asarray(counted), 0.2))
    assert sorted(entropy[kept]) == [7, 8]  # two of nine: 1.8, rounded up
    assert top_tokens(jnp.asarray(entropy), jnp.asarray(counted), 1.0).sum() == 9
