"""The policy against a plain decoder: one unpadded row at a time, no group and no cache."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY

from grpojax.layout import for_decoding
from grpojax.model import Policy, init_params
from grpojax.types import KV

G, T = 3, 5

VARIANTS = {
    "grouped": TINY,
    "bias_untied_remat": dataclasses.replace(
        TINY, qkv_bias=True, tied_embeddings=False, remat=True, num_kv_heads=4
    ),
    "one_kv_head": dataclasses.replace(TINY, num_kv_heads=1, rope_base=100.0, norm_epsilon=0.1),
}


def sharp_params(config, seed=0):
    """Parameters far from what initialisation gives: peaked distributions, biases, uneven norms."""
    shapes = nn.unbox(jax.eval_shape(lambda: init_params(Policy(config), jax.random.key(0))))
    random = np.random.default_rng(seed)

    def fill(path, shape):
        name = path[-1].key
        spread = {"embedding": 0.3, "scale": 0.3, "bias": 0.5, "kernel": 0.3}[name]
        values = spread * random.standard_normal(shape.shape)
        return (values + (name == "scale")).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def plain_logits(config, params, row):
    """Logits after every token of one row [S], in the precision of `params`."""

    def rms_norm(x, scale):
        return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + config.norm_epsilon) * scale

    def turn(x):  # [S, heads, H]: the pair (i, i + H / 2) turns by position * base^(-2 i / H)
        half = config.head_dim // 2
        angles = jnp.outer(jnp.arange(len(row)), config.rope_base ** (-jnp.arange(half) / half))
        sin, cos = jnp.sin(angles)[:, None], jnp.cos(angles)[:, None]
        a, b = x[..., :half], x[..., half:]
        return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)

    x = params["embed"]["embedding"][row]
    for i in range(config.num_layers):
        layer = jax.tree.map(lambda p, i=i: p[i], params["layers"])
        normed = rms_norm(x, layer["attention_norm"]["scale"])
        q, k, v = (
            jnp.einsum("sd,dnh->snh", normed, part["kernel"]) + part.get("bias", 0)
            for part in (layer["attention"][name] for name in ("query", "key", "value"))
        )
        shared = config.num_heads // config.num_kv_heads
        q, k, v = turn(q), jnp.repeat(turn(k), shared, axis=1), jnp.repeat(v, shared, axis=1)
        scores = jnp.einsum("snh,tnh->nst", q, k) / config.head_dim**0.5
        causal = jnp.arange(len(row)) <= jnp.arange(len(row))[:, None]
        weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf))
        mixed = jnp.einsum("nst,tnh->snh", weights, v)
        x += jnp.einsum("snh,nhd->sd", mixed, layer["attention"]["out"]["kernel"])
        normed, ffw = rms_norm(x, layer["ffw_norm"]["scale"]), layer["ffw"]
        gate = normed @ ffw["gate"]["kernel"]
        x += gate / (1 + jnp.exp(-gate)) * (normed @ ffw["up"]["kernel"]) @ ffw["down"]["kernel"]
    x = rms_norm(x, params["final_norm"]["scale"])
    if config.tied_embeddings:
        return x @ params["embed"]["embedding"].T
    return x @ params["head"]["kernel"]


def plain_logps(config, params, prompts, tokens):
    """[B, G, T] of a batch, row by row: each prompt without its padding, then one completion."""
    groups = []
    for prompt, mask, group in zip(prompts.tokens, prompts.mask, tokens):

        def one(completion, prompt=prompt[mask]):
            logits = plain_logits(config, params, jnp.concatenate([prompt, completion]))
            logps = jax.nn.log_softmax(logits[len(prompt) - 1 : -1])
            return logps[jnp.arange(len(completion)), completion]

        groups.append(jax.vmap(one)(jnp.asarray(group)))
    return jnp.stack(groups)


def shared_logits(policy, params, prompts, tokens):
    """Logits [B, G, T, V] that predict `tokens`, from one prefill and one extend."""
    variables = {"params": params}
    last, prefix = policy.apply(variables, prompts.tokens, prompts.mask, method="prefill")
    hidden, _ = policy.apply(variables, tokens, prefix, method="extend")
    first = jnp.broadcast_to(last[:, None, None], hidden[:, :, :1].shape)
    hidden = jnp.concatenate([first, hidden[:, :, :-1]], axis=2)
    return policy.apply(variables, hidden, method="logits")


def shared_logps(policy, params, prompts, tokens):
    logps = jax.nn.log_softmax(shared_logits(policy, params, prompts, tokens))
    return jnp.take_along_axis(logps, tokens[..., None], axis=-1)[..., 0]


jitted_logits = jax.jit(shared_logits, static_argnums=0)
jitted_logps = jax.jit(shared_logps, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def jitted_gradient(policy, params, prompts, tokens):
    """Log-probabilities, and the gradient of their sum."""

    def total(params):
        logps = shared_logps(policy, params, prompts, tokens)
        return logps.sum(), logps

    return jax.value_and_grad(total, has_aux=True)(params)


def draw_tokens(seed=1, group=G, length=T):
    tokens = np.random.default_rng(seed).integers(0, TINY.vocab_size, (4, group, length))
    return tokens.astype(np.int32)


def pad_left(prompts, columns, token=0):
    """The same prompts with more padding in front."""
    wider = ((0, 0), (columns, 0))
    return prompts.replace(
        tokens=np.pad(prompts.tokens, wider, constant_values=token),
        mask=np.pad(prompts.mask, wider),
    )


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_shared_prefix_equals_the_plain_forward_in_value_and_gradient(config, prompts):
    policy, params, tokens = Policy(config), sharp_params(config), draw_tokens()
    weights = np.random.default_rng(2).standard_normal(tokens.shape).astype(np.float32)

    def ours(params, prompts, tokens):
        logps = shared_logps(policy, params, prompts, tokens)
        return (weights * logps).sum(), logps

    def truth(params):
        logps = plain_logps(config, params, prompts, tokens)
        return (weights * logps).sum(), logps

    gradient, logps = jax.jit(jax.grad(ours, has_aux=True))(params, prompts, tokens)
    with jax.enable_x64(True):
        exact = jax.tree.map(np.float64, params)
        true_gradient, true_logps = jax.jit(jax.grad(truth, has_aux=True))(exact)
    gradient, true_gradient = jax.tree.map(np.asarray, (gradient, true_gradient))
    np.testing.assert_allclose(logps, np.asarray(true_logps), rtol=1e-5)
    assert jax.tree.structure(gradient) == jax.tree.structure(true_gradient)
    leaves = jax.tree.leaves_with_path(gradient)
    for (path, leaf), true in zip(leaves, jax.tree.leaves(true_gradient)):
        error = np.linalg.norm(leaf - true) / np.linalg.norm(true)
        assert error < 1e-5, f"{jax.tree_util.keystr(path)}: relative error {error:.1e}"


def test_parameters_have_the_documented_names_and_shapes():
    config = VARIANTS["bias_untied_remat"]
    layers, width, heads, size, wide = 2, 32, 4, 8, 48
    projection = {"kernel": (layers, width, heads, size), "bias": (layers, heads, size)}
    shapes = jax.tree.map(np.shape, sharp_params(config))
    assert shapes == {
        "embed": {"embedding": (50, width)},
        "final_norm": {"scale": (width,)},
        "head": {"kernel": (width, 50)},
        "layers": {
            "attention_norm": {"scale": (layers, width)},
            "attention": {
                "query": projection,
                "key": projection,
                "value": projection,
                "out": {"kernel": (layers, heads, size, width)},
            },
            "ffw_norm": {"scale": (layers, width)},
            "ffw": {
                "gate": {"kernel": (layers, width, wide)},
                "up": {"kernel": (layers, width, wide)},
                "down": {"kernel": (layers, wide, width)},
            },
        },
    }


@pytest.mark.parametrize("garbage", ["random", 0, TINY.vocab_size - 1])
def test_garbage_in_padding_changes_no_bit_of_value_or_gradient(garbage, prompts):
    policy, params, tokens = Policy(TINY), sharp_params(TINY), draw_tokens()
    rest = np.random.default_rng(3).integers(0, TINY.vocab_size, prompts.tokens.shape)
    filled = np.where(prompts.mask, prompts.tokens, rest if garbage == "random" else garbage)
    dirty = prompts.replace(tokens=filled.astype(np.int32))
    assert (dirty.tokens != prompts.tokens).any()

    for clean, changed in zip(
        jax.tree.leaves(jitted_gradient(policy, params, prompts, tokens)),
        jax.tree.leaves(jitted_gradient(policy, params, dirty, tokens)),
    ):
        np.testing.assert_array_equal(clean, changed)


@pytest.mark.parametrize("columns", [1, 7])
def test_more_padding_in_front_shifts_no_position(columns, prompts):
    policy, params, tokens = Policy(TINY), sharp_params(TINY), draw_tokens()
    np.testing.assert_allclose(
        jitted_logps(policy, params, pad_left(prompts, columns, token=9), tokens),
        jitted_logps(policy, params, prompts, tokens),
        atol=1e-5,
    )


def test_tokens_after_the_end_change_nothing_before_it(prompts):
    policy, params, tokens = Policy(TINY), sharp_params(TINY), draw_tokens()
    longer = np.pad(tokens, ((0, 0), (0, 0), (0, 3)), constant_values=9)
    np.testing.assert_allclose(
        jitted_logps(policy, params, prompts, longer)[..., :T],
        jitted_logps(policy, params, prompts, tokens),
        atol=1e-5,
    )


@pytest.mark.parametrize(
    "name, segment", [("grouped", 1), ("grouped", 2), ("bias_untied_remat", 1)]
)
def test_decoding_with_a_cache_equals_the_full_forward(name, segment, prompts):
    config, length = VARIANTS[name], 4
    params, tokens = sharp_params(config), draw_tokens(length=length)
    policy, decoder = Policy(config), Policy(config, unrolled=True)

    @jax.jit
    def both(params, prompts, tokens):
        variables = {"params": params}
        _, prefix = policy.apply(variables, prompts.tokens, prompts.mask, method="prefill")
        full, _ = policy.apply(variables, tokens, prefix, method="extend")
        leaves, prefix = for_decoding(policy, params, prefix)
        kv = (math.prod(tokens.shape[:2]), config.num_kv_heads)
        cache = tuple(
            KV(
                jnp.full((*kv, config.head_dim, length), 1e4),  # what is not yet written is unseen
                jnp.full((*kv, length, config.head_dim), 1e4),
            )
            for _ in range(config.num_layers)
        )
        parts = []
        for at in range(0, length, segment):
            part = tokens[..., at : at + segment]
            hidden, cache = decoder.apply(
                {"params": leaves}, part, prefix, cache, jnp.int32(at), method="extend"
            )
            parts.append(hidden)
        return full, jnp.concatenate(parts, axis=2)

    full, decoded = both(params, prompts, tokens)
    np.testing.assert_allclose(decoded, full, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_under_bfloat16_products_take_bfloat16_and_the_head_sums_in_float32(tied):
    """XLA cannot run such a product on a CPU, so it is read from the program, not computed."""
    config = dataclasses.replace(TINY, tied_embeddings=tied, compute_dtype="bfloat16")
    hidden = jnp.zeros((1, 1, 3, TINY.embed_dim))
    params = sharp_params(config)
    head = functools.partial(Policy(config).apply, {"params": params}, method="logits")
    program = jax.make_jaxpr(head)(hidden)
    (product,) = (e for e in program.eqns if e.primitive.name == "dot_general")
    assert [operand.aval.dtype for operand in product.invars] == [jnp.bfloat16, jnp.bfloat16]
    assert product.outvars[0].aval.dtype == program.out_avals[0].dtype == jnp.float32
    exact = Policy(dataclasses.replace(config, head_dtype="float32"))
    program = jax.make_jaxpr(functools.partial(exact.apply, method="logits"))(
        {"params": params}, hidden
    )
    (product,) = (e for e in program.eqns if e.primitive.name == "dot_general")
    assert [operand.aval.dtype for operand in product.invars] == [jnp.float32, jnp.float32]


def test_parameters_have_the_dtype_that_is_asked_for():
    for dtype in ("float32", "bfloat16"):
        policy = Policy(dataclasses.replace(TINY, param_dtype=dtype))
        params = jax.eval_shape(lambda p=policy: init_params(p, jax.random.key(0)))
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
