"""Adapters (LoRA) of Qwen2.5-7B-Instruct on MATH.

    grpojax import Qwen/Qwen2.5-7B-Instruct --out models/qwen2.5-7b-instruct
    grpojax train configs/math_qwen2p5_7b_lora.py --data.dir DIR

DIR holds train.jsonl and test.jsonl with the fields `problem` and `solution`, as MATH (2103.03874)
has them. Not run yet: for want of the weights and of accelerators only `--dry-run` was.
"""

import dataclasses

from grpojax.config import (
    CheckpointConfig,
    Config,
    EvaluationConfig,
    GRPOConfig,
    MeshConfig,
    OptimizerConfig,
    SamplingConfig,
)
from grpojax.models import qwen2p5_7b


def get_config() -> Config:
    return Config(
        task="math",
        rewards={"accuracy": 1.0},
        init="models/qwen2.5-7b-instruct",
        chat=True,
        system="Reason step by step, and put the final answer within \\boxed{}.",
        steps=200,
        model=dataclasses.replace(
            qwen2p5_7b(), compute_dtype="bfloat16", remat=True, lora_rank=32, lora_alpha=64.0
        ),
        sampling=SamplingConfig(prompt_length=512, completion_length=2048),
        grpo=GRPOConfig(prompts_per_step=64, group_size=16, beta=0.0, microbatches=4),
        optimizer=OptimizerConfig(learning_rate=1e-5, warmup_updates=10),
        evaluation=EvaluationConfig(every=25, examples=256),
        mesh=MeshConfig(data=1, fsdp=-1),
        checkpoint=CheckpointConfig(every=25),
    )
