"""Splash attention with a group's mask is the plain attention, and does no more than is seen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from test_cudnn import SCALE, assert_attends_to_itself, assert_attends_to_prompts

from grpojax.splash import BLOCK, GroupMask, attend_splash, blocks
from grpojax.types import KV

attend_interpreted = functools.partial(attend_splash, scale=SCALE, interpret=True)


def test_splash_is_the_plain_attention_forwards_and_backwards():
    assert_attends_to_prompts(attend_interpreted, 3, 7, 5, (4, 2), (5, 2))


def test_completions_may_cross_the_borders_of_blocks():
    assert BLOCK < 3 * 191 and 3 * 191 % BLOCK
    assert_attends_to_prompts(attend_interpreted, 3, 191, 130, (2, 1), (130, 61))


def test_padded_prompts_read_themselves():
    assert_attends_to_itself(attend_interpreted, 9, (9, 4))


def test_a_completion_sees_itself_up_to_now_and_the_prompt():
    group, size, prompt = 3, 4, 2
    mask = GroupMask(group, size, prompt, (16, 20))
    expected = np.zeros((16, 20), bool)
    for query in range(group * size):
        start = query // size * size
        expected[query, start : query + 1] = True
        expected[query, group * size : group * size + prompt] = True
    np.testing.assert_array_equal(mask[:, :], expected)
    np.testing.assert_array_equal(mask[4:8, 8:16], expected[4:8, 8:16])


def test_work_grows_with_the_group_and_not_with_its_square():
    """Of 8 completions of one block and a prompt of one, each has two blocks to look at."""
    group = 8
    mask = GroupMask(group, BLOCK, BLOCK, (group * BLOCK, (group + 1) * BLOCK))
    kernel_of = functools.partial(slice_of, mask)
    shown = [[kernel_of(i, j).any() for j in range(group + 1)] for i in range(group)]
    assert np.sum(shown) == 2 * group


def slice_of(mask, i, j):
    """Block i, j of a mask."""
    return mask[i * BLOCK : (i + 1) * BLOCK, j * BLOCK : (j + 1) * BLOCK]


def test_lengths_are_filled_up_to_whole_blocks():
    assert [blocks(n) for n in (1, 128, 129, 512, 513, 1025)] == [
        (128, 128), (128, 128), (256, 256), (512, 512), (512, 1024), (512, 1536),
    ]  # fmt: skip


def test_a_tpu_gets_three_kernels_and_holds_no_scores():
    """Forward, and backward for queries and for keys. What runs on no TPU here is lowered: 210
    queries in 256, 260 keys in 384."""
    kind = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16)
    queries, prefix = kind((2, 3, 70, 4, 64)), KV(kind((2, 2, 64, 50)), kind((2, 2, 50, 64)))
    own = KV(kind((2, 3, 2, 64, 70)), kind((2, 3, 2, 70, 64)))

    def total(queries, own, prefix, exist):
        mixed = attend_splash(queries, own, None, prefix, exist, scale=SCALE)
        return mixed.astype(jnp.float32).sum()

    traced = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(
        queries, own, prefix, jax.ShapeDtypeStruct((2, 50), bool)
    )
    lowered = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert lowered.count("@tpu_custom_call") == 3
    assert "256x384xi1" in lowered and "256x384xf32" not in lowered  # the mask, and no scores
