"""Architecture: the shape of the policy as fields, in which model families differ.

One network serves them all; `pretrained.read_model_config` fills the fields from a `config.json`.
"""

from dataclasses import dataclass
from typing import Literal

from grpojax.checks import require, require_fields, require_positive

LINEAR = ("query", "key", "value", "out", "gate", "up", "down")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of the policy: a decoder with RMSNorm, rotary positions, GQA and a gated feed-forward.

    Layers are counted from 0. What is 0 by default is absent.
    """

    # whose tensor names and config.json an export takes
    family: Literal[
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma2",
        "gemma3",
        "olmo2",
        "phi3",
        "smollm3",
        "qwen3_moe",
    ] = "llama"
    vocab_size: int = 64  # V, rows of the embedding; at least the tokenizer's
    embed_dim: int = 128  # D, width
    ffw_dim: int = 384  # F, width of the feed-forward, or of one expert
    num_layers: int = 4  # blocks
    num_heads: int = 4  # N, query heads
    num_kv_heads: int = 2  # K, key and value heads, each shared by N / K query heads
    head_dim: int = 32  # H, size of a head
    max_length: int = 2048  # longest prompt plus completion, in tokens
    tied_embeddings: bool = True  # the output head is the embedding, transposed
    scaled_embeddings: bool = False  # embeddings are multiplied by sqrt(D) (Gemma)
    qkv_bias: bool = False  # biases on the query, key and value projections (Qwen2)
    activation: Literal["silu", "gelu"] = "silu"  # of the gate; gelu in its tanh form (Gemma)
    # RMSNorm before attention and feed-forward, after them (OLMo 2), or both (Gemma)
    norm_placement: Literal["before", "after", "both"] = "before"
    norm_offset: bool = False  # RMSNorm multiplies by 1 + scale (Gemma)
    norm_epsilon: float = 1e-6  # added to the mean square inside RMSNorm
    # RMSNorm of queries and keys: of each head (Qwen3, Gemma 3), or of all together (OLMo 2)
    qk_norm: Literal["none", "head", "all"] = "none"
    query_scale: float = 0.0  # attention logits are divided by its root; 0: H
    attention_softcap: float = 0.0  # c: attention logits become c tanh(logits / c) (Gemma 2)
    logit_softcap: float = 0.0  # the same, of the output's logits
    rope_base: float = 10_000.0  # base of the rotary frequencies
    # of the rotary frequencies: all divided by `rope_factor`, or the low ones only (Llama 3)
    rope_scaling: Literal["none", "linear", "llama3"] = "none"
    rope_factor: float = 1.0  # what frequencies are divided by
    rope_low_factor: float = 1.0  # llama3: wavelengths above rope_original_length / this are low
    rope_high_factor: float = 4.0  # llama3: wavelengths below rope_original_length / this are high
    rope_original_length: int = 8192  # llama3: length before scaling, in tokens
    unrotated_layers: tuple[int, ...] = ()  # layers without rotary positions (SmolLM3)
    sliding_window: int = 0  # W: a token of a local layer sees itself and the W - 1 before it
    local_layers: tuple[int, ...] = ()  # layers with the window
    local_rope_base: float = 0.0  # base of local layers, unscaled (Gemma 3); 0: as the others
    num_experts: int = 0  # E: the feed-forward is a mixture of so many (Qwen3-MoE)
    experts_per_token: int = 0  # experts that a token is routed to
    normalize_router: bool = True  # weights of a token's experts sum to 1
    lora_rank: int = 0  # r: train adapters of this rank instead of the parameters (LoRA)
    lora_alpha: float = 32.0  # adapters are multiplied by alpha / r
    lora_targets: tuple[str, ...] = LINEAR  # maps that get an adapter
    # of the parameters that are trained, the master weights
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    # of the parameters that adapters leave frozen; int8 has a scale for every output
    base_dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    # of matrix products; their sums in softmax and head, log-probabilities and losses are float32
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    # of what the output head multiplies: as the other products, or float32
    head_dtype: Literal["compute", "float32"] = "compute"
    # of whole prompts and completions: a fused kernel where the device has one that fits (auto),
    # products and a softmax (xla), cuDNN's kernel (NVIDIA), or splash attention (TPU)
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    # recompute each block in the backward pass, its products too: less memory, one more forward
    remat: bool = False

    def __post_init__(self):
        require_fields(self)
        require_positive(self, "vocab_size", "embed_dim", "ffw_dim", "num_layers", "num_heads")
        require_positive(
            self, "num_kv_heads", "head_dim", "max_length", "rope_base", "norm_epsilon"
        )
        require_positive(self, "rope_factor", "rope_low_factor", "rope_original_length")
        zero_is_absent = ("query_scale", "attention_softcap", "logit_softcap", "sliding_window")
        for name in (
            *zero_is_absent,
            "local_rope_base",
            "num_experts",
            "experts_per_token",
            "lora_rank",
        ):
            value = getattr(self, name)
            require(value >= 0, f"{name} must be 0 (absent) or more, got {value}")
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}",
        )
        require(
            self.head_dim % 2 == 0, f"head_dim must be even (rotary pairs), got {self.head_dim}"
        )
        require(
            self.rope_high_factor > self.rope_low_factor,
            f"rope_high_factor must be above rope_low_factor={self.rope_low_factor}, "
            f"got {self.rope_high_factor}",
        )
        for name in ("unrotated_layers", "local_layers"):
            layers = getattr(self, name)
            require(
                set(layers) <= set(range(self.num_layers)),
                f"{name} must be layers from 0 to {self.num_layers - 1}, got {layers}",
            )
        require(
            bool(self.local_layers) == bool(self.sliding_window),
            "local_layers and sliding_window need each other, got "
            f"{self.local_layers} and {self.sliding_window}",
        )
        require(
            self.experts_per_token <= self.num_experts
            and bool(self.experts_per_token) == bool(self.num_experts),
            f"experts_per_token must be from 1 to num_experts={self.num_experts} (both 0: no "
            f"mixture), got {self.experts_per_token}",
        )
        require(
            set(self.lora_targets) <= set(LINEAR) and bool(self.lora_targets),
            f"lora_targets must be some of {', '.join(LINEAR)}, got {self.lora_targets}",
        )
        require(
            not (self.lora_rank and self.num_experts)
            or {*LINEAR[4:]}.isdisjoint(self.lora_targets),
            "lora_targets of a mixture of experts must be some of query, key, value, out, "
            f"got {self.lora_targets}",
        )
        require(
            bool(self.lora_rank) or self.base_dtype == "float32",
            f"base_dtype={self.base_dtype} needs adapters (lora_rank above 0): what is trained is "
            "float32",
        )
        require(
            not self.lora_rank or self.param_dtype == "float32",
            f"param_dtype={self.param_dtype} is of what is trained, which adapters keep in "
            "float32; set base_dtype",
        )
        require(self.lora_alpha > 0, f"lora_alpha must be above 0, got {self.lora_alpha}")

    @property
    def lora_scale(self) -> float:
        """What the product of an adapter is multiplied by."""
        return self.lora_alpha / self.lora_rank
