"""The structs of arrays that cross files.

B prompts, G completions each, P prompt tokens (left-padded), T completion tokens.
"""

from typing import Any

from flax import struct
from jax import Array
from jaxtyping import Bool, Float, Int

Params = dict[str, Any]
"""A plain nested dict of arrays: what Flax calls the "params" collection, unboxed."""

KEPT = "kept"
"""The name of what is kept for the backward pass though it is no plain product."""


@struct.dataclass
class Prompts:
    """Left-padded prompts. What stands in `tokens` where `mask` is False never matters."""

    tokens: Int[Array, "B P"]
    mask: Bool[Array, "B P"]
    ids: Int[
        Array, "B"
    ]  # example ids: the keys of the draws, so that neighbours cannot change a row


@struct.dataclass
class KV:
    """Keys and values of a stretch of tokens, with any axes in front ([layers,] B[, G])."""

    keys: Float[Array, "*batch K H length"]
    values: Float[Array, "*batch K length H"]


@struct.dataclass
class Prefix:
    """Prompts after `prefill`: what their completions need of them."""

    kv: KV | tuple[KV, ...]  # [layers, B, K, ...], or one a layer
    mask: Bool[Array, "B P"]
    length: Int[Array, "B"]  # tokens that are not padding: the position of completion token 0


@struct.dataclass
class Completions:
    """Sampled completions. `mask` is True up to and including the stop token, False after it."""

    tokens: Int[Array, "B G T"]
    mask: Bool[Array, "B G T"]
    logps: Float[Array, "B G T"]  # float32, of the policy and temperature they were drawn from


@struct.dataclass
class Evidence:
    """What a batch's advantages are made of, beside its mask; None where the objective reads it
    not."""

    rewards: Float[Array, "B G"]  # weighted sums
    valid: Bool[Array, "B G"]
    by_name: Float[Array, "B G R"] | None = None  # gdpo
    cut_off: Bool[Array, "B G"] | None = None  # reached T without a stop token; overlong=mask
    sampled_logps: Float[Array, "B G T"] | None = None  # kl=k1_reward, and
    ref_logps: Float[Array, "B G T"] | None = None
    entropy: Float[Array, "B G T"] | None = None  # top_entropy
    step_rewards: Float[Array, "B G T"] | None = None  # supervision=process: at a step's last token
    step_ends: Bool[Array, "B G T"] | None = None


@struct.dataclass
class GroupBatch:
    """All that one step's updates read."""

    prompts: Prompts | None  # None in a slice of members: prompts are read once for all
    completions: Completions
    advantages: Float[Array, "B G #T"]  # of completions, or of their tokens
    weights: Float[Array, "B G T"]  # token weights: the loss is sum(weights * token loss)
    old_logps: Float[Array, "B G T"] | None  # None on-policy: the ratio is exactly 1
    ref_logps: Float[Array, "B G T"] | None  # None when beta is 0


@struct.dataclass
class ValueBatch:
    """All that the critic's updates of one step read."""

    prompts: Prompts
    tokens: Int[Array, "B G T"]
    old_values: Float[Array, "B G T"]  # of the critic before the step's updates
    returns: Float[Array, "B G T"]  # what the values should be
    weights: Float[Array, "B G T"]  # token weights, as in `GroupBatch`


@struct.dataclass
class Pairs:
    """Completions of which one is better, as groups of two: the better one first."""

    prompts: Prompts
    tokens: Int[Array, "B 2 T"]
    mask: Bool[Array, "B 2 T"]


@struct.dataclass
class ScalarState:
    """What a checkpoint holds of a critic or reward model."""

    update: Int[Array, ""]
    skipped: Int[Array, ""]  # updates in a row refused because loss or gradient was not finite
    params: Params
    opt_state: Any


@struct.dataclass
class TrainState:
    """What a checkpoint holds. `step` counts batches of prompts, `update` optimizer updates."""

    step: Int[Array, ""]
    update: Int[Array, ""]
    skipped: Int[Array, ""]  # updates in a row refused because loss or gradient was not finite
    params: Params
    opt_state: Any
    ref_params: Params | None  # None when beta is 0
    critic: ScalarState | None = None  # of PPO
    reward_model: ScalarState | None = None  # of iterative GRPO
    # with a lag, on the devices that sample: those before the last step, for the next completions
    older_params: Params | None = None


State = TrainState | ScalarState
"""What is saved and restored whole."""
