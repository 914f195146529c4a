"""grpojax: Group Relative Policy Optimization for language models, in JAX.

The public names. Each is imported when it is first used, so that `import grpojax` is cheap and
touches no device.
"""

import importlib
from typing import Any

_HOME = {
    "Config": "config",
    "CheckpointConfig": "config",
    "DataConfig": "config",
    "EvaluationConfig": "config",
    "GRPOConfig": "config",
    "JudgingConfig": "config",
    "LoggingConfig": "config",
    "MeshConfig": "config",
    "ModelConfig": "config",
    "OptimizerConfig": "config",
    "SFTConfig": "config",
    "SamplingConfig": "config",
    "Example": "task",
    "Reward": "task",
    "Task": "task",
    "batched": "task",
    "killable": "task",
    "prepared": "task",
    "Completions": "types",
    "GroupBatch": "types",
    "Params": "types",
    "Prompts": "types",
    "TrainState": "types",
    "Policy": "model",
    "group_advantages": "advantages",
    "token_losses": "grpo",
    "token_weights": "grpo",
    "make_sampler": "sampling",
    "make_scorer": "scoring",
    "make_update": "learner",
    "read_model_config": "pretrained",
    "evaluate_run": "evaluate",
    "export_run": "export",
    "sample_text": "sample",
    "write_report": "report",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'grpojax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"grpojax.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
