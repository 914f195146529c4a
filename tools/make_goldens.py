"""Goldens: tiny random checkpoints of every family, with what transformers makes of them.

    python tools/make_goldens.py tests/goldens

needs torch and transformers (extra `baselines`). Each folder holds a checkpoint as Hugging Face
stores it and `golden.npz`: left-padded rows longer than the sliding window, their logits in
float32, and a greedy continuation with the gap between its two likeliest tokens at each step.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers

SIZES = dict(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
WINDOW = 8
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=100.0,
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
GEMMA = dict(sliding_window=WINDOW, head_dim=16, query_pre_attn_scalar=24)
MODELS = {  # family: name of its class in transformers, and what sets it apart
    "llama": ("Llama", dict(rope_parameters=LLAMA3, tie_word_embeddings=False)),
    "mistral": ("Mistral", dict(sliding_window=WINDOW)),
    "qwen2": (
        "Qwen2",
        dict(use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2),
    ),
    "qwen3": ("Qwen3", dict(head_dim=16, tie_word_embeddings=True)),
    "gemma2": ("Gemma2", GEMMA | dict(attn_logit_softcapping=3.0, final_logit_softcapping=2.0)),
    "gemma3": (
        "Gemma3",
        GEMMA
        | dict(
            rope_parameters={
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 1e3, "factor": 8.0},
            },
            layer_types=["sliding_attention"] * 2 + ["full_attention", "sliding_attention"],
        ),
    ),
    "olmo2": ("Olmo2", {}),
    "phi3": ("Phi3", dict(sliding_window=WINDOW)),
    "smollm3": ("SmolLM3", {}),
    "qwen3_moe": (
        "Qwen3Moe",
        dict(moe_intermediate_size=24, num_experts=6, num_experts_per_tok=2, norm_topk_prob=True),
    ),
}
LENGTHS = (24, 15, 9)  # tokens of the rows, left-padded to the longest
CONTINUED = 32


def build(kind: str, settings: dict, seed: int) -> torch.nn.Module:
    """A random model whose distributions are far from uniform and whose norms are uneven."""
    torch.manual_seed(seed)
    name = "Gemma3Text" if kind == "Gemma3" else kind
    config = getattr(transformers, f"{name}Config")(**SIZES | settings)
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval().float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.3 if parameter.ndim < 2 else 1.5 * parameter.shape[-1] ** -0.5
            noise = spread * torch.randn_like(parameter)
            parameter.copy_(parameter + noise if "norm" in name else noise)
    return model


def run(model: torch.nn.Module, seed: int) -> dict[str, np.ndarray]:
    """Logits of left-padded rows, and a greedy continuation of each."""
    random = np.random.default_rng(seed)
    width = max(LENGTHS)
    tokens = torch.tensor(random.integers(3, SIZES["vocab_size"], (len(LENGTHS), width)))
    mask = torch.tensor(np.arange(width) >= width - np.array(LENGTHS)[:, None])
    tokens = torch.where(mask, tokens, 0)
    with torch.no_grad():
        rows, seen = tokens, mask
        for step in range(CONTINUED):
            positions = (seen.cumsum(-1) - 1).clamp(min=0)
            out = model(rows, attention_mask=seen.long(), position_ids=positions, use_cache=False)
            if step == 0:
                logits = out.logits
                gaps = []
            best = out.logits[:, -1].topk(2)
            gaps.append(best.values[:, 0] - best.values[:, 1])
            rows = torch.cat([rows, best.indices[:, :1]], dim=1)
            seen = torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1)
    arrays = dict(tokens=tokens, mask=mask, logits=logits, continued=rows[:, width:])
    return {name: x.numpy() for name, x in (arrays | {"gaps": torch.stack(gaps, 1)}).items()}


def main(folder: Path) -> None:
    for seed, (family, (kind, settings)) in enumerate(MODELS.items()):
        model = build(kind, settings, seed)
        model.save_pretrained(folder / family)
        (folder / family / "generation_config.json").unlink(missing_ok=True)
        np.savez_compressed(folder / family / "golden.npz", **run(model, seed))
        print(f"{family}: {sum(p.numel() for p in model.parameters()):,} parameters")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
