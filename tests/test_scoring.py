"""Scoring: the sampler's log-probabilities, shifted and scaled right, a stretch of tokens at a
time."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY
from test_model import G, draw_tokens, shared_logits, sharp_params

from grpojax import scoring
from grpojax.model import Policy
from grpojax.sampling import make_sampler, stream_key
from grpojax.types import Prompts

scorer_of = functools.cache(scoring.make_scorer)  # one trace for the tests that share a temperature


@pytest.fixture(scope="module")
def params():
    return sharp_params(TINY)


def table_policy(logits):
    """A policy whose logits after token v are row v of `logits` [V, V], whatever came before.

    The blocks add nothing and the embeddings are orthogonal, so the final norm leaves a multiple of
    a unit vector that the head reads off.
    """
    size = len(logits)
    width = size + size % 2
    shape = {"vocab_size": size, "embed_dim": width, "num_layers": 1, "norm_epsilon": 1e-12}
    config = dataclasses.replace(TINY, **shape, tied_embeddings=False)
    params = jax.tree.map(np.zeros_like, sharp_params(config))
    params["embed"]["embedding"] = np.eye(size, width, dtype=np.float32)
    params["final_norm"]["scale"] += 1
    head = np.zeros((width, size), np.float32)
    head[:size] = np.asarray(logits) / width**0.5
    params["head"]["kernel"] = head
    return Policy(config), params


def successor_logits(following, slip):
    """Logits [V, V] under which v is followed by following[v] with probability 1 - `slip`."""
    size = len(following)
    logits = np.full((size, size), np.log(slip / (size - 1)))
    logits[np.arange(size), following] = np.log1p(-slip)
    return logits


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.3])
def test_the_scorer_gives_the_samplers_log_probabilities(temperature, policy, params, prompts):
    sampler = make_sampler(
        policy, group_size=4, completion_length=8, stop_ids=(3, 7, 20), pad_id=0,
        temperature=temperature,
    )  # fmt: skip
    sampled = sampler(params, prompts, stream_key(0, "train", 0))
    scored = scorer_of(policy, temperature=temperature)(
        params, prompts, sampled.tokens, sampled.mask
    )
    mask = np.asarray(sampled.mask)
    assert 0 < mask.sum() < mask.size  # some rows have ended
    np.testing.assert_allclose(scored[mask], sampled.logps[mask], atol=1e-5)
    if temperature != 1:  # pitfall 9: forgetting it gives ratios far from 1
        forgotten = scorer_of(policy, temperature=1.0)(
            params, prompts, sampled.tokens, sampled.mask
        )
        assert np.abs(np.exp(forgotten - sampled.logps)[mask] - 1).mean() > 0.1


def test_temperature_divides_the_logits_and_forgetting_it_gives_these_ratios(prompts):
    """E9: logits (2, 1, 0)."""
    policy, params = table_policy(np.tile([2.0, 1.0, 0.0], (3, 1)))
    prompts = prompts.replace(tokens=prompts.tokens % 3)
    tokens = np.tile(np.arange(3, dtype=np.int32), (4, 1, 1))
    plain = scorer_of(policy, temperature=1.0)(params, prompts, tokens, tokens >= 0)
    cool = scorer_of(policy, temperature=0.7)(params, prompts, tokens, tokens >= 0)
    np.testing.assert_allclose(cool[0, 0], [-0.2601184026, -1.6886898312, -3.1172612598], atol=1e-6)
    np.testing.assert_allclose(
        np.exp(plain - cool)[0, 0], [0.8628731708, 1.3245646862, 2.0332902532], rtol=1e-6
    )


def test_every_token_of_a_known_sequence_has_its_log_probability(prompts):
    """Pitfalls 3 and 4: v is followed by v + 1 with probability 1 - slip, at every position."""
    slip = 0.2
    policy, params = table_policy(successor_logits((np.arange(10) + 1) % 10, slip))
    prompts = prompts.replace(tokens=prompts.tokens % 10)
    tokens = (prompts.tokens[:, -1:, None] + np.arange(1, 6, dtype=np.int32)) % 10
    every = np.ones(tokens.shape, bool)
    logps = scorer_of(policy, temperature=1.0)(params, prompts, tokens, every)
    np.testing.assert_allclose(logps, np.full(logps.shape, np.log1p(-slip)), atol=1e-6)
    one = scorer_of(policy, temperature=1.0)(params, prompts, tokens[..., :1], every[..., :1])
    np.testing.assert_allclose(one, logps[..., :1], atol=1e-6)


@pytest.mark.parametrize("changed", [0, 2, 4])
def test_a_changed_token_changes_no_log_probability_before_it(changed, policy, params, prompts):
    tokens = draw_tokens()
    other = tokens.copy()
    other[..., changed] = (other[..., changed] + 1) % TINY.vocab_size
    score = scorer_of(policy, temperature=1.0)
    before, after = (np.asarray(score(params, prompts, x, x >= 0)) for x in (tokens, other))
    np.testing.assert_array_equal(before[..., :changed], after[..., :changed])
    assert (before[..., changed:] != after[..., changed:]).all()


def values_and_gradient(policy, params, prompts, tokens):
    """Log-probabilities, entropy, and the gradient of a weighted sum of both."""
    weights = jnp.cos(jnp.arange(tokens.size, dtype=jnp.float32)).reshape(tokens.shape)

    def total(params):
        logps, entropy, _ = scoring.score(
            policy, params, scoring.prefill(policy, params, prompts), tokens, 0.8
        )
        return (weights * logps).sum() + entropy.sum(), (logps, entropy)

    gradient, values = jax.grad(total, has_aux=True)(params)
    return *values, gradient


@pytest.mark.parametrize(
    "chunk", [0, 2]
)  # 0: less than one token of every row, which is what it then takes
def test_scoring_in_chunks_equals_scoring_at_once(chunk, policy, params, prompts, monkeypatch):
    tokens = draw_tokens()  # 5 tokens: the last chunk of 2 is not full
    whole = jax.jit(values_and_gradient, static_argnums=0)(policy, params, prompts, tokens)
    monkeypatch.setattr(scoring, "CHUNK_ELEMENTS", chunk * 4 * G * TINY.vocab_size)
    parts = jax.jit(lambda *a: values_and_gradient(policy, *a))(params, prompts, tokens)
    for part, all_at_once in zip(jax.tree.leaves(parts), jax.tree.leaves(whole)):
        np.testing.assert_allclose(part, all_at_once, rtol=1e-5, atol=1e-5)


def largest_logits(run, *arguments):
    """Elements of the largest array with the vocabulary as an axis in the compiled program."""
    text = jax.jit(run).lower(*arguments).compile().as_text()
    sizes = [math.prod(map(int, dims.split(","))) for dims in re.findall(r"\[(\d[\d,]*)\]", text)]
    return max(size for size in sizes if size % 101 == 0)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_chunked_scoring_never_holds_the_logits_of_all_tokens(backward, prompts, monkeypatch):
    config = dataclasses.replace(TINY, vocab_size=101)  # a prime that no other axis has
    policy, params, tokens = Policy(config), sharp_params(config), draw_tokens(length=16)

    def logps(params, prompts, tokens):
        read = scoring.prefill(policy, params, prompts)
        return scoring.score(policy, params, read, tokens, 1.0).logps

    def gradient(params, *arguments):
        return jax.grad(lambda params: logps(params, *arguments).sum())(params)

    def largest():
        return largest_logits(
            lambda *a: (gradient if backward else logps)(*a), params, prompts, tokens
        )

    assert largest() == tokens.size * 101
    monkeypatch.setattr(scoring, "CHUNK_ELEMENTS", 2 * 4 * G * 101)
    assert largest() == params["embed"]["embedding"].size  # more than a chunk of 2 tokens a row


def test_entropy_is_that_of_the_tempered_distribution(policy, params, prompts):
    tokens = draw_tokens()
    logits = np.float64(jax.jit(shared_logits, static_argnums=0)(policy, params, prompts, tokens))
    logps = logits / 0.8 - np.log(np.exp(logits / 0.8).sum(-1, keepdims=True))
    _, entropy, _ = jax.jit(values_and_gradient, static_argnums=0)(policy, params, prompts, tokens)
    np.testing.assert_allclose(entropy, -(np.exp(logps) * logps).sum(-1), rtol=1e-5)


def test_entropy_of_a_known_distribution_and_its_missing_gradient(prompts):
    """E16: (0.5, 0.3, 0.2)."""
    policy, params = table_policy(np.tile(np.log([0.5, 0.3, 0.2]), (3, 1)))
    prompts = prompts.replace(tokens=prompts.tokens % 3)
    tokens = np.zeros((4, 1, 2), np.int32)

    @jax.jit
    def entropy(params, prompts, tokens):
        return scoring.score(
            policy, params, scoring.prefill(policy, params, prompts), tokens, 1.0
        ).entropy.sum()

    value, gradient = jax.value_and_grad(entropy)(params, prompts, tokens)
    np.testing.assert_allclose(value / 8, 1.029653014065, rtol=1e-6)
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_array_equal(leaf, 0)


# A prompt is read once, whatever the group

# Axes without a common factor, so that a size says which axes are in it, however they are folded.
PRIMES = dataclasses.replace(TINY, vocab_size=31, embed_dim=34, ffw_dim=29, head_dim=22)
ROWS, COLUMNS, LENGTH = 3, 7, 13


def equations(jaxpr, times=1):
    """Every equation of a program and how often it runs; the body of a while loop counts once."""

    def is_program(x):
        return hasattr(x, "eqns") or hasattr(x, "jaxpr")

    for equation in jaxpr.eqns:
        yield equation, times
        scanned = equation.params["length"] if equation.primitive.name == "scan" else 1
        for part in jax.tree.leaves(list(equation.params.values()), is_leaf=is_program):
            if is_program(part):
                yield from equations(getattr(part, "jaxpr", part), times * scanned)


@functools.cache
def program(name, group):
    """The jaxpr of the sampler, of the scorer, of its gradient, or of prefill alone."""
    policy, params = Policy(PRIMES), sharp_params(PRIMES)
    size = (ROWS, COLUMNS)
    prompts = Prompts(np.ones(size, np.int32), np.ones(size, bool), np.arange(ROWS))
    tokens = np.ones((ROWS, group, LENGTH), np.int32)
    sampler = make_sampler(
        policy, group_size=group, completion_length=LENGTH, stop_ids=(3,), pad_id=0
    )

    def score(params, prompts, tokens):
        return scoring.score(
            policy, params, scoring.prefill(policy, params, prompts), tokens, 1.0
        ).logps.sum()

    def prefill(params, prompts, tokens):
        return policy.apply({"params": params}, prompts.tokens, prompts.mask, method="prefill")

    if name == "sampler":
        return jax.make_jaxpr(sampler)(params, prompts, stream_key(0, "train", 0)).jaxpr
    run = {"scorer": score, "gradient": jax.grad(score), "prefill": prefill}[name]
    return jax.make_jaxpr(run)(params, prompts, tokens).jaxpr


def products(jaxpr, attention=False):
    """Multiplications in the matrix products of a program, or in those of attention alone, which
    are the batched ones."""
    total = 0
    for equation, times in equations(jaxpr):
        if equation.primitive.name == "dot_general":
            (contracted, _), (batched, _) = equation.params["dimension_numbers"]
            if attention and not batched:
                continue
            summed = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += times * summed * equation.outvars[0].aval.size
    return total


@pytest.mark.parametrize("name, passes", [("sampler", 1), ("scorer", 1), ("gradient", 3)])
def test_the_work_on_a_prompt_does_not_grow_with_the_group(name, passes):
    """Work is a + b G, where a is one prefill, and two more for its gradient; not G of them. The
    gradient computes attention once more. The sampler's first tokens have one distribution, which
    costs the head once a prompt."""
    one, two, five = (products(program(name, group)) for group in (1, 2, 5))
    assert five - two == 3 * (two - one)
    prefill = program("prefill", 1)
    more = {
        "sampler": ROWS * PRIMES.embed_dim * PRIMES.vocab_size,
        "scorer": 0,
        "gradient": products(prefill, attention=True),
    }
    assert one - (two - one) == passes * products(prefill) + more[name]


@pytest.mark.parametrize("name", ["sampler", "scorer", "gradient"])
def test_no_array_holds_a_prompts_tokens_once_for_each_completion(name):
    """Attention weights do, at one number a token; features never."""
    group, features = 5, (PRIMES.embed_dim // 2, PRIMES.head_dim // 2, PRIMES.ffw_dim)
    shapes = {v.aval.shape for e, _ in equations(program(name, group)) for v in e.outvars}
    sizes = {math.prod(shape) for shape in shapes}
    assert any(size % (ROWS * group * COLUMNS) == 0 for size in sizes)  # the attention weights
    for size in sizes:
        for feature in features:
            assert size % (ROWS * group * COLUMNS * feature), f"an array of {size} elements"
