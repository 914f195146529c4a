"""Data: padding, and the order of examples as a function of (seed, step) alone."""

import dataclasses

import numpy as np
import pytest

from grpojax.config import DataConfig
from grpojax.data import fit_prompts, make_batches, make_demonstrations, make_prompts
from grpojax.task import Example, Task
from grpojax.tasks import load_task
from grpojax.tokenizer import load_tokenizer

BYTES = load_tokenizer("bytes")


def numbered(count, completion="b"):
    return [
        Example(id=100 + i, prompt=f"p{i}", answer="", completion=completion) for i in range(count)
    ]


def batches(count=10, prompts_per_step=3, seed=0):
    return make_batches(
        numbered(count), BYTES, prompts_per_step=prompts_per_step, prompt_length=4, seed=seed
    )


def ids(batch, steps):
    return np.array([batch(step)[1].ids for step in steps])


def test_prompts_are_left_padded_and_keep_their_ids():
    prompts = make_prompts(
        [Example(id=7, prompt="ab", answer=""), Example(id=5, prompt="wxyz", answer="")], BYTES, 4
    )
    np.testing.assert_array_equal(
        prompts.tokens, [[BYTES.pad_id, BYTES.pad_id, 97, 98], [119, 120, 121, 122]]
    )
    np.testing.assert_array_equal(prompts.mask, [[False, False, True, True], [True] * 4])
    np.testing.assert_array_equal(prompts.ids, [7, 5])
    assert prompts.tokens.dtype == prompts.ids.dtype == np.int32 and prompts.mask.dtype == np.bool_


def test_prompts_longer_than_the_limit_are_counted_and_the_remedy_is_named():
    examples = [Example(id=i, prompt="x" * i, answer="") for i in range(1, 8)]
    with pytest.raises(ValueError, match=r"prompt_length=4 .* 3 of 7 .* 7: set prompt_length to 7"):
        make_prompts(examples, BYTES, 4)


def test_prompts_without_a_token_are_counted_and_named():
    examples = [Example(id=3, prompt="x", answer=""), Example(id=9, prompt="", answer="")]
    with pytest.raises(ValueError, match=r"none in 1 of 2 \(the first is example 9\)"):
        make_prompts(examples, BYTES, 4)


def test_a_batch_is_the_same_whatever_was_asked_for_before():
    forward = ids(batches(), range(12))
    np.testing.assert_array_equal(ids(batches(), reversed(range(12)))[::-1], forward)
    np.testing.assert_array_equal(ids(batches(), [7])[0], forward[7])


def test_a_batchs_examples_and_prompts_belong_together():
    batch = batches()
    for step in range(5):
        examples, prompts = batch(step)
        assert [e.id for e in examples] == list(prompts.ids)
        for example, tokens, mask in zip(examples, prompts.tokens, prompts.mask):
            assert BYTES.decode(tokens[mask].tolist()) == example.prompt


@pytest.mark.parametrize(("count", "per_step"), [(10, 3), (10, 10), (7, 4), (5, 1), (12, 3)])
def test_no_example_occurs_twice_in_an_epoch_and_only_the_remainder_is_left_out(count, per_step):
    steps = count // per_step
    batch = batches(count, per_step)
    for epoch in range(4):
        seen = ids(batch, range(epoch * steps, (epoch + 1) * steps)).ravel()
        assert len(set(seen)) == len(seen) == steps * per_step
        assert set(seen) <= set(range(100, 100 + count))


def test_every_epoch_and_every_seed_has_an_order_of_its_own():
    orders = [
        tuple(ids(batches(20, 20, seed), [epoch])[0]) for seed in range(3) for epoch in (0, 1, 2)
    ]
    assert len(set(orders)) == 9
    assert tuple(range(100, 120)) not in orders


def test_what_is_left_over_changes_with_the_epoch():
    batch = batches(10, 9)
    assert len({next(iter({*range(100, 110)} - set(ids(batch, [e])[0]))) for e in range(8)}) > 2


def test_more_prompts_a_step_than_examples_are_refused():
    with pytest.raises(ValueError, match=r"prompts_per_step=11 must be at most .*, got 10"):
        batches(10, 11)


def test_a_prompt_that_is_too_long_is_refused_before_the_first_step():
    with pytest.raises(ValueError, match="prompt_length=1"):
        make_batches(numbered(4), BYTES, prompts_per_step=1, prompt_length=1, seed=0)


def demonstrations(examples, **changes):
    lengths = {"prompt_length": 4, "completion_length": 4} | changes
    return make_demonstrations(examples, BYTES, examples_per_step=2, seed=0, **lengths)


def test_demonstrations_are_groups_of_one_with_the_mask_true_through_eos():
    examples = [
        Example(id=0, prompt="p", answer="", completion="abc"),
        Example(id=1, prompt="q", answer="", completion="d"),
    ]
    prompts, tokens, mask = demonstrations(examples)(0)
    rows = np.argsort(prompts.ids)
    eos, pad = BYTES.eos_ids[0], BYTES.pad_id
    np.testing.assert_array_equal(tokens[rows], [[[97, 98, 99, eos]], [[100, eos, pad, pad]]])
    np.testing.assert_array_equal(mask[rows], [[[True] * 4], [[True, True, False, False]]])
    assert tokens.dtype == np.int32 and mask.dtype == np.bool_


def test_demonstrations_come_in_the_order_of_batches():
    batch, demonstrate = batches(10, 2), demonstrations(numbered(10))
    for step in (0, 7, 3):
        np.testing.assert_array_equal(demonstrate(step)[0].ids, batch(step)[1].ids)


def test_examples_without_a_worked_completion_are_refused_with_their_count():
    with pytest.raises(ValueError, match="got none in 3 of 5"):
        demonstrations(numbered(2) + numbered(3, completion=""))


def test_a_completion_that_leaves_no_room_for_eos_is_refused():
    with pytest.raises(ValueError, match=r"completion_length=4 .* 1 of 3 .*completion_length to 5"):
        demonstrations(numbered(2) + numbered(1, completion="abcd"))


def test_more_demonstrations_a_step_than_examples_are_refused():
    with pytest.raises(ValueError, match="examples_per_step=2"):
        demonstrations(numbered(1))


def test_a_step_of_a_shipped_task_holds_its_own_examples():
    train = load_task("addition", DataConfig()).splits["train"]
    batch = make_batches(train, BYTES, prompts_per_step=16, prompt_length=6, seed=3)
    examples, prompts = batch(10_000)
    assert len({e.id for e in examples}) == 16 and prompts.mask.all()


def task_of(*lengths, held_out=()):
    train = [Example(id=i, prompt="x" * n, answer="") for i, n in enumerate(lengths)]
    test = [Example(id=99 - i, prompt="yz" * n, answer="") for i, n in enumerate(held_out)]
    return Task(splits={"train": train, "validation": [], "test": test}, rewards={})


def test_long_prompts_of_training_are_dropped_and_counted_and_held_out_ones_stay():
    fitted = fit_prompts(task_of(1, 5, 4, 9, held_out=(1, 4)), BYTES, 4, "drop")
    assert [e.id for e in fitted.splits["train"]] == [0, 2]
    assert [e.id for e in fitted.splits["test"]] == [99, 98]
    assert fitted.notes == (
        "train: 2 of 4 prompts dropped",
        "test: 1 of 2 prompts truncated to their last 4 tokens",
    )


def test_truncated_prompts_are_counted_and_all_stay():
    task = task_of(1, 5, held_out=(4,))
    fitted = fit_prompts(task, BYTES, 4, "truncate")
    assert fitted.splits == task.splits
    assert [note.partition(" prompts")[0] for note in fitted.notes] == [
        "train: 1 of 2",
        "test: 1 of 1",
    ]
    assert fit_prompts(task_of(4), BYTES, 4, "truncate").notes == ()
    assert fit_prompts(task, BYTES, 4, "refuse") is task


def test_a_task_that_has_only_long_prompts_cannot_drop_them_all():
    with pytest.raises(ValueError, match=r"prompt_length=4 tokens, got 2 that are longer"):
        fit_prompts(task_of(5, 6), BYTES, 4, "drop")


@pytest.mark.parametrize("how", ["drop", "truncate"])
def test_of_a_truncated_prompt_the_last_tokens_are_kept(how):
    examples = [Example(id=1, prompt="abcdef", answer=""), Example(id=2, prompt="gh", answer="")]
    prompts = make_prompts(examples, BYTES, 4, how)
    assert [BYTES.decode(t[m].tolist()) for t, m in zip(prompts.tokens, prompts.mask)] == [
        "cdef",
        "gh",
    ]
    batch = make_batches(
        examples, BYTES, prompts_per_step=2, prompt_length=4, seed=0, long_prompts=how
    )
    assert batch(0)[1].mask.sum() == 6
    worked = [dataclasses.replace(e, completion="b") for e in examples]
    assert demonstrations(worked, long_prompts=how)(0)[0].mask.sum() == 6


def test_a_task_without_training_examples_is_refused_for_training():
    with pytest.raises(ValueError, match="no training examples: it is for evaluation"):
        batches(0)
    with pytest.raises(ValueError, match="no training examples"):
        demonstrations([])


def test_an_empty_split_has_no_prompts():
    with pytest.raises(ValueError, match="got none: the split is empty"):
        make_prompts([], BYTES, 4)
