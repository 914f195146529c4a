"""Kernels: fused attention of whole completions, and which of them a model on a device can use.

Scoring and training read whole completions, and prefill whole prompts; there a fused kernel holds
no matrix of scores. Decoding has one query a completion and stays with `attention.attend`.
"""

import dataclasses

import jax

from grpojax.architecture import ModelConfig
from grpojax.checks import require
from grpojax.cudnn import attend_cudnn
from grpojax.splash import attend_splash

KERNELS = {"cudnn": attend_cudnn, "splash": attend_splash}
LARGEST_HEAD = 128  # of cuDNN's on every GPU that it supports


def choose_attention(model: ModelConfig, device: jax.Device) -> ModelConfig:
    """`model` with its attention decided for `device`: auto becomes the kernel that it can use, or
    xla.

    Raises:
      ValueError: the kernel that is asked for cannot be used.
    """
    return decide(model, device.platform, compute_capability(device))


def decide(model: ModelConfig, platform: str, capability: float) -> ModelConfig:
    """See `choose_attention`; `capability` is an NVIDIA GPU's, 0 of other devices."""
    if model.attention == "auto":
        usable = [name for name in KERNELS if not obstacle(name, model, platform, capability)]
        return dataclasses.replace(model, attention=(usable or ["xla"])[0])
    if model.attention in KERNELS:
        need = obstacle(model.attention, model, platform, capability)
        require(not need, f"model.attention={model.attention} needs {need}; use auto or xla")
    return model


def obstacle(kernel: str, model: ModelConfig, platform: str, capability: float) -> str:
    """What `kernel` needs and is not there, in words; empty: nothing."""
    if kernel == "splash" and platform != "tpu":
        return f"a TPU, got a {platform}"
    if kernel == "cudnn" and capability < 8:
        found = f"one of {capability}" if capability else f"a {platform}"
        return f"an NVIDIA GPU of compute capability 8.0 or above, got {found}"
    if kernel == "cudnn" and (model.head_dim % 8 or model.head_dim > LARGEST_HEAD):
        return f"head_dim to be a multiple of 8 up to {LARGEST_HEAD}, got {model.head_dim}"
    if model.compute_dtype != "bfloat16":
        return f"compute_dtype=bfloat16, got {model.compute_dtype}"
    if model.sliding_window:
        return f"a model without windows, got sliding_window={model.sliding_window}"
    if model.attention_softcap:
        return f"attention_softcap=0, got {model.attention_softcap}"
    return ""


def compute_capability(device: jax.Device) -> float:
    """Of an NVIDIA GPU; 0 of other devices."""
    try:
        return float(getattr(device, "compute_capability", 0.0))
    except ValueError:  # other makers' GPUs name an architecture
        return 0.0
