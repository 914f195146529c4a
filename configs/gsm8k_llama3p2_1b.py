"""Llama-3.2-1B-Instruct on GSM8K.

    grpojax import meta-llama/Llama-3.2-1B-Instruct --out models/llama-3.2-1b-instruct
    grpojax train configs/gsm8k_llama3p2_1b.py --data.dir DIR

DIR holds train.jsonl and test.jsonl as published. Not run yet: for want of the weights and of an
accelerator only `--dry-run` was.
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
from grpojax.models import llama3p2_1b


def get_config() -> Config:
    return Config(
        task="gsm8k",
        rewards={"accuracy": 1.0, "format": 0.2},
        init="models/llama-3.2-1b-instruct",
        chat=True,
        steps=400,
        model=dataclasses.replace(llama3p2_1b(), compute_dtype="bfloat16", remat=True),
        sampling=SamplingConfig(prompt_length=384, completion_length=768),
        grpo=GRPOConfig(prompts_per_step=32, group_size=16, beta=0.01),
        optimizer=OptimizerConfig(learning_rate=1e-6, warmup_updates=10),
        evaluation=EvaluationConfig(every=50, examples=256),
        checkpoint=CheckpointConfig(every=50),
    )
