"""GRPOConfig: the objective, one field for each choice in which papers differ.

Its defaults are DeepSeekMath's; `presets.py` has the choices of other papers.
"""

from dataclasses import dataclass
from typing import Literal

from grpojax.checks import require, require_fields, require_multiple, require_positive


@dataclass(frozen=True, kw_only=True)
class GRPOConfig:
    """The objective: equations 3 and 4 of DeepSeekMath (arXiv 2402.03300) unless said otherwise."""

    prompts_per_step: int = 16  # B, prompts sampled in a step
    group_size: int = 16  # G, completions per prompt
    beta: float = 0.01  # β, weight of the KL to the reference; 0 keeps no reference
    clip_low: float = 0.2  # ε; the ratio is clipped to [1 - clip_low, 1 + clip_high]
    clip_high: float = 0.2  # ε above 1; DAPO (2503.14476) raises it to 0.28
    # group: (r - mean) / deviation (eq. 3); mean: r - mean (Dr. GRPO, 2503.20783)
    advantage: Literal["group", "mean"] = "group"
    std_epsilon: float = 1e-6  # added to the group's deviation (ddof 1); TRL uses 1e-4
    # of token losses: eq. 3; DAPO (2503.14476); Dr. GRPO
    reduction: Literal["sequence_mean", "token_mean", "constant"] = "sequence_mean"
    epochs_per_batch: int = 1  # μ, passes over the completions of a step
    minibatches: int = 1  # optimizer updates in a pass
    microbatches: int = 1  # parts a minibatch is computed in: changes memory, never the result
    # who gives π_old, when a step has several updates
    old_logps: Literal["sampler", "rescored"] = "sampler"
    # π_ref: the first policy; the one of the last multiple of N updates; the one an update ago
    reference: Literal["initial", "refreshed", "previous"] = "initial"
    reference_every: int = 400  # N, updates between refreshes of a refreshed reference
    router_weight: float = 0.001  # of the load-balance loss, where the model has experts

    def __post_init__(self):
        require_fields(self)
        require(
            self.group_size >= 2,
            "group_size must be at least 2 (one completion has no relative advantage), "
            f"got {self.group_size}",
        )
        weight = self.router_weight
        require(weight >= 0, f"router_weight must be 0 or more, got {weight}")
        require(self.beta >= 0, f"beta must be 0 or more (it weighs a penalty), got {self.beta}")
        require(
            0 < self.clip_low <= 1, f"clip_low must be above 0 and at most 1, got {self.clip_low}"
        )
        require_positive(self, "prompts_per_step", "clip_high", "std_epsilon", "epochs_per_batch")
        require_positive(self, "minibatches", "microbatches", "reference_every")
        require_multiple(
            "prompts_per_step",
            self.prompts_per_step,
            self.minibatches * self.microbatches,
            "minibatches * microbatches",
        )

    @property
    def on_policy(self) -> bool:
        """One update a step: π_old is π_θ and the ratio needs no stored log-probabilities."""
        return self.minibatches == self.epochs_per_batch == 1
