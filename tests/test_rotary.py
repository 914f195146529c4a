"""Rotary positions turn pairs by position times frequency; scaling follows the papers."""

import jax
import numpy as np

from grpojax import rotary
from grpojax.architecture import ModelConfig

H = 6


def rotate(x, positions, frequencies):
    """In a layer of the second kind of two."""
    both = np.stack([0 * frequencies, frequencies])
    turned = jax.jit(lambda x, at: rotary.rotate(x, rotary.turns(at, both)[1]))
    return turned(x, positions)


def frequencies(base, **fields):
    """Of one layer with these fields."""
    return rotary.frequencies(ModelConfig(head_dim=H, num_layers=1, rope_base=base, **fields))[0]


def test_rotation_turns_the_two_halves_of_a_head_as_complex_numbers():
    x = np.random.default_rng(1).standard_normal((2, 3, 4, 2, H)).astype(np.float32)
    positions = np.random.default_rng(2).integers(0, 300, (2, 4)).astype(np.int32)
    angles = positions[:, None, :, None, None] * 100.0 ** (-np.arange(H // 2) / (H // 2))
    turned = (x[..., : H // 2] + 1j * x[..., H // 2 :]) * np.exp(1j * angles)
    np.testing.assert_allclose(
        rotate(x, positions, frequencies(100.0)),
        np.concatenate([turned.real, turned.imag], axis=-1),
        atol=1e-4,  # float32 angles of up to 300 radians
    )


def test_scores_after_rotation_depend_on_the_distance_alone():
    x = np.random.default_rng(3).standard_normal((1, 1, 2, 1, H)).astype(np.float32)

    def score(first, second):
        one, other = np.asarray(rotate(x, np.array([[first, second]]), frequencies(10_000.0)))[
            0, 0, :, 0
        ]
        return one @ other

    np.testing.assert_allclose(score(3, 9), score(43, 49), atol=1e-5)
    assert abs(score(3, 9) - score(3, 10)) > 0.01


def test_local_layers_have_their_own_base_and_unrotated_ones_none():
    model = ModelConfig(
        head_dim=4, num_layers=3, rope_base=100.0, rope_scaling="linear", rope_factor=4.0,
        local_rope_base=25.0, sliding_window=2, local_layers=(0,), unrotated_layers=(2,),
    )  # fmt: skip
    np.testing.assert_allclose(
        rotary.frequencies(model), [[1, 0.2], [0.25, 0.025], [0, 0]], rtol=1e-6
    )


def test_llama3_keeps_high_frequencies_and_stretches_low_ones():
    """Turns in the original 50 tokens: 8.0, 0.80 and 0.08; kept above 2, divided below 0.5."""
    scaling = dict(rope_scaling="llama3", rope_factor=10.0, rope_low_factor=0.5)
    found = frequencies(1000.0, rope_high_factor=2.0, rope_original_length=50, **scaling)
    turns = 50 / (2 * np.pi)
    middle = (turns / 10 - 0.5) / 1.5
    np.testing.assert_allclose(found, [1.0, 0.1 * middle + 0.01 * (1 - middle), 0.001], rtol=1e-6)


def test_a_frequency_of_zero_leaves_its_pair_exactly_as_it_is():
    x = np.random.default_rng(0).standard_normal((1, 1, 2, 1, H)).astype(np.float32)
    np.testing.assert_array_equal(rotate(x, np.array([[3, 9]]), np.zeros(3, np.float32)), x)
