"""Which attention a model gets on a device, and that the policy is the same under each."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, first_devices
from test_cudnn import SCALE, STAND_IN, inputs, left_padded, with_gradients

from grpojax.config import ModelConfig
from grpojax.cudnn import attend_cudnn
from grpojax.kernels import KERNELS, choose_attention, decide
from grpojax.model import HEADS, Policy
from grpojax.sampling import make_sampler
from grpojax.scoring import make_scorer
from grpojax.sharding import on_each_device, use_mesh
from grpojax.splash import attend_splash

BF16 = ModelConfig(compute_dtype="bfloat16", head_dim=64)
LOCAL = {"sliding_window": 4, "local_layers": (0,)}
# Kernels as a CPU can run them.
HERE = {
    "cudnn": functools.partial(attend_cudnn, calls=STAND_IN),
    "splash": functools.partial(attend_splash, interpret=True),
}


@pytest.mark.parametrize(
    "platform, capability, changes, chosen",
    [
        ("cpu", 0.0, {}, "xla"),
        ("gpu", 9.0, {}, "cudnn"),
        ("gpu", 8.0, {}, "cudnn"),
        ("gpu", 7.5, {}, "xla"),
        ("gpu", 0.0, {}, "xla"),  # of another maker
        ("gpu", 9.0, {"compute_dtype": "float32"}, "xla"),
        ("gpu", 9.0, {"head_dim": 256}, "xla"),
        ("gpu", 9.0, {"attention_softcap": 50.0}, "xla"),
        ("tpu", 0.0, {}, "splash"),
        ("tpu", 0.0, {"head_dim": 256}, "splash"),
        ("tpu", 0.0, {"compute_dtype": "float32"}, "xla"),
        ("tpu", 0.0, LOCAL, "xla"),
    ],
)
def test_auto_is_the_kernel_that_the_device_has_and_the_model_fits(
    platform, capability, changes, chosen
):
    model = dataclasses.replace(BF16, **changes)
    assert decide(model, platform, capability) == dataclasses.replace(model, attention=chosen)


@pytest.mark.parametrize(
    "attention, platform, capability, changes, need",
    [
        ("cudnn", "cpu", 0.0, {}, "an NVIDIA GPU of compute capability 8.0 or above, got a cpu"),
        ("cudnn", "gpu", 7.5, {}, "an NVIDIA GPU of compute capability 8.0 or above, got one of"),
        ("cudnn", "gpu", 9.0, {"head_dim": 132}, "head_dim to be a multiple of 8 up to 128"),
        ("cudnn", "gpu", 9.0, {"compute_dtype": "float32"}, "compute_dtype=bfloat16, got float32"),
        ("splash", "gpu", 9.0, {}, "a TPU, got a gpu"),
        ("splash", "tpu", 0.0, LOCAL, "a model without windows, got sliding_window=4"),
        ("splash", "tpu", 0.0, {"attention_softcap": 50.0}, "attention_softcap=0, got 50.0"),
    ],
)
def test_a_kernel_that_cannot_be_used_is_refused_in_one_line(
    attention, platform, capability, changes, need
):
    model = dataclasses.replace(BF16, attention=attention, **changes)
    with pytest.raises(ValueError) as raised:
        decide(model, platform, capability)
    (line,) = str(raised.value).splitlines()
    assert line.startswith(f"model.attention={attention} needs {need}")
    assert line.endswith("use auto or xla")


def test_xla_is_never_refused_and_this_device_is_asked():
    for platform in ("cpu", "gpu", "tpu"):
        model = dataclasses.replace(BF16, attention="xla", **LOCAL)
        assert decide(model, platform, 0.0) == model
    assert choose_attention(BF16, jax.devices()[0]).attention == "xla"


def read(policy, params, prompts, tokens):
    """What predicts the tokens of completions, and the gradients of a sum of it."""
    weights = np.random.default_rng(1).standard_normal((*tokens.shape, TINY.embed_dim))

    def total(params, prompts, tokens):
        last, prefix = policy.apply(
            {"params": params}, prompts.tokens, prompts.mask, method="prefill"
        )
        hidden, _ = policy.apply({"params": params}, tokens, prefix, method="extend")
        return (hidden * weights).sum() + last.sum(), (last, hidden)

    return jax.jit(jax.grad(total, has_aux=True))(params, prompts, tokens)


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(4, 50, (4, 3, 5)).astype(np.int32)


@pytest.fixture(scope="module")
def plainly_read(params, prompts, tokens):
    return read(Policy(dataclasses.replace(TINY, attention="xla")), params, prompts, tokens)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_policy_is_the_same_under_every_attention(
    kernel, params, prompts, tokens, plainly_read, monkeypatch
):
    """The recomputation of blocks included."""
    monkeypatch.setitem(KERNELS, kernel, HERE[kernel])
    policy = Policy(dataclasses.replace(TINY, attention=kernel, remat=True))
    assert_close(read(policy, params, prompts, tokens), plainly_read)


@pytest.mark.parametrize(("kernel", "batch"), [("splash", 2), ("cudnn", 3)])
def test_every_device_attends_to_its_heads_and_to_its_prompts_if_they_divide(kernel, batch):
    """Prompts over data and fsdp, heads over tensor: on four devices as on one."""
    (queries, own, prefix), gradient = inputs(2, 3, 4, batch=batch)
    exist = left_padded(4, 4, 1, 3)[:batch]

    def spread(queries, own, prefix):
        run = functools.partial(HERE[kernel], scale=SCALE)
        return on_each_device(run, HEADS, queries, own, None, prefix, exist)

    expected = with_gradients(spread, (queries, own, prefix), gradient)
    with use_mesh(first_devices(2, 1, 2)):
        found = with_gradients(spread, (queries, own, prefix), gradient)
    assert_close(found, expected)
    shares = {shard.data.shape for shard in found[0].addressable_shards}
    assert shares == {(1 if batch == 2 else 3, 2, 3, 2, 16)}


def assert_close(found, expected):
    """To 1e-5 of the largest value of each array."""

    def check(a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(np.abs(b).max(), 1))

    jax.tree.map(check, jax.device_get(found), jax.device_get(expected))


def test_a_gpu_gets_fused_attention_of_prompts_and_completions_and_not_in_decoding(params, prompts):
    policy = Policy(dataclasses.replace(TINY, compute_dtype="bfloat16", attention="cudnn"))
    scorer = make_scorer(policy, temperature=1.0)
    sampler = make_sampler(policy, group_size=2, completion_length=5, stop_ids=(), pad_id=0)
    tokens = jnp.ones((4, 2, 5), jnp.int32)

    def calls(function, *arguments):
        lowered = function.trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
        return lowered.count("@__cudnn$fmhaSoftmax")

    # The layers are a loop: one call of prefill, and two of extend for the one length there is.
    assert calls(scorer, params, prompts, tokens, tokens > 0) == 3
    assert calls(sampler, params, prompts, jax.random.key(0)) == 1
