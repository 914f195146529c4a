"""SmolLM3: Llama in which every fourth layer has no rotary positions."""

from typing import Any

from grpojax.architecture import ModelConfig
from grpojax.checks import require
from grpojax.families import llama
from grpojax.families.stated import Stated, common, describe_common

ARCHITECTURE, MODEL_TYPE, BLOCK = "SmolLM3ForCausalLM", "smollm3", llama.BLOCK


def read(stated: Stated) -> dict[str, Any]:
    stated.only("use_sliding_window", False)
    for name in ("sliding_window", "max_window_layers", "layer_types"):
        stated(name, 0)  # of a window that is not used
    fields = common(stated, tied=True, rope_base=2_000_000.0)
    layers, period = fields["num_layers"], stated("no_rope_layer_interval", 4)
    rotated = stated("no_rope_layers", [(i + 1) % period for i in range(layers)])
    require(len(rotated) == layers, f"no_rope_layers must have {layers} entries, got {rotated}")
    return fields | {"unrotated_layers": tuple(i for i, on in enumerate(rotated) if not on)}


def describe(model: ModelConfig) -> dict[str, Any]:
    rotated = [int(i not in model.unrotated_layers) for i in range(model.num_layers)]
    return describe_common(model) | {"no_rope_layers": rotated}
