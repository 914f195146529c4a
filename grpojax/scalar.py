"""The policy's network with one number for each state instead of logits: the critic and the reward
model.

A state is a prompt and the first tokens of a completion. The trunk is the very `Policy`, so the
prompt is read once for its group here too, and no output head over the vocabulary is made. The
scalar head starts at 0; the trunk starts as random, or as a copy of a policy.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from grpojax import lora
from grpojax.architecture import ModelConfig
from grpojax.gradients import Optimizer
from grpojax.model import Policy
from grpojax.sharding import shardings_of, with_shardings
from grpojax.types import Params, Prompts, ScalarState


class ScalarHead(nn.Module):
    """A product with one vector, plus a bias, in float32 whatever the parameters are."""

    @nn.compact
    def __call__(self, hidden: Float[Array, "*s D"]) -> Float[Array, "*s"]:
        def leaf(name: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> Array:
            init = nn.with_logical_partitioning(nn.initializers.zeros, axes)
            return self.param(name, init, shape).astype(jnp.float32)

        kernel = leaf("kernel", hidden.shape[-1:], ("embed",))
        return hidden.astype(jnp.float32) @ kernel + leaf("bias", (), ())


class ScalarModel(nn.Module):
    """A policy's trunk under a scalar head."""

    config: ModelConfig

    def setup(self):
        self.trunk = Policy(self.config)
        self.head = ScalarHead()

    def __call__(self, prompts: Prompts, tokens: Int[Array, "B G T"]) -> Float[Array, "B G T+1"]:
        """One number for every state of each completion, from before its first token to after its
        last; see `state_values`."""
        last, prefix = self.trunk.prefill(prompts.tokens, prompts.mask)
        hidden, _ = self.trunk.extend(tokens, prefix)
        first = jnp.broadcast_to(self.head(last)[:, None, None], (*tokens.shape[:2], 1))
        return jnp.concatenate([first, self.head(hidden)], axis=-1)


def state_values(
    model: ScalarModel, params: Params, prompts: Prompts, tokens: Int[Array, "B G T"]
) -> Float[Array, "B G T+1"]:
    """Float32, at t the number of the state in which `tokens[..., t]` is still to be chosen.

    At 0 it is of the prompt alone, at T of the whole completion. Past the end of a completion it is
    finite and without meaning.
    """
    return model.apply({"params": params}, prompts, tokens)


def init_scalar(model: ScalarModel, key: Key[Array, ""]) -> Params:
    """Random parameters with a head of 0, boxed with the logical names of their axes."""
    one = jnp.zeros((1, 1), jnp.int32)
    params = model.init(key, Prompts(one, one == 0, one[0]), one[None])["params"]
    return jax.tree.map(lambda x: x.astype(model.config.param_dtype), params)


def split(params: Params) -> tuple[Params, Params]:
    """Parameters as (trained, frozen). With adapters the trunk's base is frozen, and the head is
    trained beside the adapters."""
    trained, frozen = lora.split(params["trunk"])
    return params | {"trunk": trained}, frozen_trunk(frozen)


def frozen_trunk(frozen: Params) -> Params:
    """What a policy leaves frozen, as the frozen part of a scalar model, which shares it."""
    return {"trunk": without_head(frozen)} if frozen else {}


def without_head(params: Params) -> Params:
    """A policy's parameters less its output head."""
    return {name: leaf for name, leaf in params.items() if name != "head"}


def abstract_scalar_state(model: ScalarModel, optimizer: Optimizer, mesh: Mesh) -> ScalarState:
    """Shapes, dtypes and shardings of the state, without an array."""

    def build():
        trained, _ = split(init_scalar(model, jax.random.key(0)))
        return fresh_scalar_state(trained, optimizer)

    return with_shardings(jax.eval_shape(build), mesh)


def init_scalar_state(optimizer: Optimizer, like: ScalarState, trained: Params) -> ScalarState:
    """The state before the first update, placed as `like` says.

    `trained` is what a policy trains, all of it or its adapters; the trunk is a copy of that, in
    buffers of its own.
    """

    def build(trained):
        head = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like.params["head"])
        return fresh_scalar_state({"trunk": without_head(trained), "head": head}, optimizer)

    return jax.jit(build, out_shardings=shardings_of(like))(trained)


def fresh_scalar_state(trained: Params, optimizer: Optimizer) -> ScalarState:
    """The state before the first update, of the parameters that are trained."""
    zero = jnp.zeros((), jnp.int32)
    return ScalarState(zero, jnp.zeros_like(zero), trained, optimizer.init(trained))
