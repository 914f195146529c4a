"""Stated: a `config.json` of which every key must be read, or be known to change nothing.

What no family reads could mean another network, so it is refused by name and never ignored.
"""

from collections.abc import Callable
from typing import Any

from grpojax.architecture import ModelConfig
from grpojax.checks import require

HARMLESS = {  # bookkeeping, generation, training and code that is never run
    "_name_or_path", "architectures", "model_type", "torch_dtype", "dtype", "transformers_version",
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "use_cache", "auto_map",
    "cache_implementation", "output_attentions", "output_hidden_states", "output_router_logits",
    "return_dict", "initializer_range", "attention_dropout", "resid_pdrop", "embd_pdrop",
    "router_aux_loss_coef", "chunk_size_feed_forward", "pretraining_tp", "is_encoder_decoder",
    "id2label", "label2id", "problem_type", "is_llama_config", "transformers.js_config",
    "task_specific_params",
}  # fmt: skip
NEVER = {  # what no family here does
    "attention_bias", "mlp_bias", "use_bidirectional_attention", "rope_interleaved", "use_mrope",
}  # fmt: skip
SAME = {"hidden_activation": "hidden_act", "_sliding_window_pattern": "sliding_window_pattern"}
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu"}
ROPE = {"default": "none", "linear": "linear", "llama3": "llama3"}

ROPE_KEYS = {
    "rope_type", "type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor",
    "original_max_position_embeddings", "partial_rotary_factor",
}  # fmt: skip


class Stated:
    """The values of a `config.json`, and which of its keys nobody has read yet."""

    def __init__(self, values: dict[str, Any]):
        self.values = {SAME.get(name, name): value for name, value in values.items()}
        self.unread = {name for name in self.values if name not in HARMLESS}

    def __call__(self, name: str, default: Any = None) -> Any:
        """The value of `name`; what is absent or null is `default`, which None makes an error."""
        self.unread.discard(name)
        value = self.values.get(name)
        value = default if value is None else value
        require(value is not None, f"lacks the field {name!r}; take the model's own file")
        return value

    def only(self, name: str, value: Any) -> None:
        """Raises ValueError unless `name` is `value`, or absent: another value is not supported."""
        found = self(name, value)
        require(found == value, f"{name} must be {value}, got {found}; no other is supported")

    def done(self) -> None:
        """Raises ValueError if a key is left that nobody has read."""
        require(not self.unread, f"the field {min(self.unread, default='')!r} is not supported")


def common(
    stated: Stated,
    *,
    activation: str = "silu",
    tied: bool = False,
    rope_base: float = 10_000.0,
    norm_epsilon: float = 1e-6,
) -> dict[str, Any]:
    """The fields of ModelConfig that all families share, with what the family takes as default."""
    width, heads = stated("hidden_size"), stated("num_attention_heads")
    activation = stated("hidden_act", activation)
    require(
        activation in ACTIVATIONS,
        f"hidden_act must be one of {', '.join(ACTIVATIONS)}, got {activation}",
    )
    for name in NEVER:
        stated.only(name, False)
    return {
        "vocab_size": stated("vocab_size"),
        "embed_dim": width,
        "ffw_dim": stated("intermediate_size"),
        "num_layers": stated("num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": stated("num_key_value_heads", heads),
        "head_dim": stated("head_dim", width // heads),
        "max_length": stated("max_position_embeddings"),
        "norm_epsilon": stated("rms_norm_eps", norm_epsilon),
        "tied_embeddings": stated("tie_word_embeddings", tied),
        "activation": ACTIVATIONS[activation],
        **rope(stated, rope_base),
    }


def rope(stated: Stated, base: float) -> dict[str, Any]:
    """Rotary fields: `rope_theta` with `rope_scaling`, or both in `rope_parameters` (newer)."""
    newer = dict(stated("rope_parameters", {}))
    scaling = dict(stated("rope_scaling", {})) or newer
    for name in (scaling | newer).keys() - ROPE_KEYS:
        raise ValueError(f"the rotary field {name!r} is not supported")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    require(kind in ROPE, f"rope_type must be one of {', '.join(ROPE)}, got {kind}")
    require(scaling.get("partial_rotary_factor", 1.0) == 1.0, "partial_rotary_factor must be 1")
    fields = {
        "rope_base": float(newer.get("rope_theta", stated("rope_theta", base))),
        "rope_scaling": ROPE[kind],
    }
    if kind != "default":
        fields["rope_factor"] = float(scaling["factor"])
    if kind == "llama3":
        fields["rope_low_factor"] = scaling["low_freq_factor"]
        fields["rope_high_factor"] = scaling["high_freq_factor"]
        fields["rope_original_length"] = scaling["original_max_position_embeddings"]
    return fields


def describe_common(model: ModelConfig) -> dict[str, Any]:
    """What `common` reads, as keys of a `config.json`."""
    activation = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}[model.activation]
    keys = {
        "vocab_size": model.vocab_size,
        "hidden_size": model.embed_dim,
        "intermediate_size": model.ffw_dim,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "max_position_embeddings": model.max_length,
        "rms_norm_eps": model.norm_epsilon,
        "tie_word_embeddings": model.tied_embeddings,
        "hidden_act": activation,
        "rope_theta": model.rope_base,
        "rope_scaling": None,
    }
    if model.rope_scaling != "none":
        keys["rope_scaling"] = {"rope_type": model.rope_scaling, "factor": model.rope_factor}
    if model.rope_scaling == "llama3":
        keys["rope_scaling"] |= {
            "low_freq_factor": model.rope_low_factor,
            "high_freq_factor": model.rope_high_factor,
            "original_max_position_embeddings": model.rope_original_length,
        }
    return keys


def windowed(stated: Stated, layers: int, local: Callable[[int], bool]) -> dict[str, Any]:
    """The sliding window and its layers: those of `layer_types` if stated, else where `local`."""
    window = stated("sliding_window", 0)
    names = ("full_attention", "sliding_attention")
    types = stated("layer_types", [names[window > 0 and local(i)] for i in range(layers)])
    require(
        len(types) == layers and set(types) <= set(names),
        f"layer_types must name {layers} layers as {' or '.join(names)}, got {types}",
    )
    chosen = tuple(i for i, name in enumerate(types) if name == names[1])
    return {"sliding_window": window if chosen else 0, "local_layers": chosen}


def describe_windows(model: ModelConfig) -> dict[str, Any]:
    """What `windowed` reads, as keys of a `config.json`."""
    names = ("full_attention", "sliding_attention")
    types = [names[i in model.local_layers] for i in range(model.num_layers)]
    return {"sliding_window": model.sliding_window or None, "layer_types": types}
