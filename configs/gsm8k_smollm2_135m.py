"""SmolLM2-135M-Instruct on GSM8K: the path from published files to a checkpoint, not a score.

    grpojax import smollm2-135m
    grpojax train configs/gsm8k_smollm2_135m.py --data.dir DIR

DIR holds train.jsonl and test.jsonl as published. Measured on 2 CPU cores: the second of the two
steps, resumed after a SIGTERM in the first, with its evaluations took 99 s; no answer was right.
"""

import dataclasses

from grpojax.config import (
    CheckpointConfig,
    Config,
    EvaluationConfig,
    GRPOConfig,
    OptimizerConfig,
    SamplingConfig,
)
from grpojax.models import smollm2_135m


def get_config() -> Config:
    return Config(
        task="gsm8k",
        rewards={"accuracy": 1.0, "format": 1.0},
        init="models/smollm2-135m",
        steps=2,
        model=dataclasses.replace(smollm2_135m(), remat=True),
        sampling=SamplingConfig(prompt_length=320, completion_length=128),
        grpo=GRPOConfig(prompts_per_step=2, group_size=8, beta=0.04),
        optimizer=OptimizerConfig(learning_rate=1e-6),
        evaluation=EvaluationConfig(every=0, examples=8, samples=1),
        checkpoint=CheckpointConfig(every=1, keep=1),
    )
