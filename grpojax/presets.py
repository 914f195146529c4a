"""Presets: objectives by paper, models by name.

An objective is a `Config` to take from with `dataclasses.replace`: it sets what its paper states
and leaves the task, the model and the lengths to the user.
"""

from grpojax.config import Config, GRPOConfig, ModelConfig, OptimizerConfig


def article() -> Config:
    """The introductory article: G = 16, β = 0.01, accuracy + format + language consistency."""
    return Config(
        rewards={"accuracy": 1.0, "format": 1.0, "language": 1.0},
        grpo=GRPOConfig(group_size=16, beta=0.01),
    )


def deepseekmath() -> Config:
    """DeepSeekMath (2402.03300), section 4.2: G = 64, β = 0.04, lr 1e-6, one update a step.

    The paper's batch of 1024 is taken as completions: 16 prompts. It states no clip range: 0.2.
    """
    return Config(
        rewards={"accuracy": 1.0},
        grpo=GRPOConfig(prompts_per_step=16, group_size=64, beta=0.04),
        optimizer=OptimizerConfig(learning_rate=1e-6),
    )


def r1_zero() -> Config:
    """DeepSeek-R1-Zero (2501.12948): 512 prompts x 16 a step, 16 updates, lr 3e-6, β = 0.001.

    The reference is renewed every 400 updates, rewards are accuracy and format of equal weight, and
    the ratio is to the sampler's stored log-probabilities. The paper states no clip range: 0.2.
    """
    return Config(
        rewards={"accuracy": 1.0, "format": 1.0},
        grpo=GRPOConfig(
            prompts_per_step=512,
            group_size=16,
            beta=0.001,
            minibatches=16,
            reference="refreshed",
            reference_every=400,
        ),
        optimizer=OptimizerConfig(learning_rate=3e-6),
    )


def smollm2_135m() -> ModelConfig:
    """SmolLM2-135M (2502.02737), base and Instruct: `grpojax import smollm2-135m`."""
    return ModelConfig(
        vocab_size=49_152,
        embed_dim=576,
        ffw_dim=1536,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        max_length=8192,
        rope_base=100_000.0,
        norm_epsilon=1e-5,
    )
