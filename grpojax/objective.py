"""GRPOConfig: the objective, one field for each choice in which papers differ.

Its defaults are DeepSeekMath's, but for sizes, β and the clip range; `presets.py` has the choices
of each paper.
"""

from dataclasses import dataclass
from typing import Literal

from grpojax.checks import require, require_fields, require_multiple, require_positive


@dataclass(frozen=True, kw_only=True)
class GRPOConfig:
    """The objective: equations 3 and 4 of DeepSeekMath (arXiv 2402.03300) unless said otherwise."""

    prompts_per_step: int = 16  # B, prompts sampled in a step
    group_size: int = 16  # G, completions per prompt
    # what a completion is worth: group (r - mean) / deviation (eq. 3); mean r - mean (Dr. GRPO,
    # 2503.20783); rloo r - mean of the others (2402.14740); opo r - mean weighted by length
    # (2505.23585); batch r - mean, over the batch's deviation (Lite PPO, 2508.08221); gdpo each
    # reward normalised by itself (2601.05242); reinforce_pp, reinforce_pp_baseline (2501.03262)
    advantage: Literal[
        "group", "mean", "rloo", "opo", "batch", "gdpo", "reinforce_pp", "reinforce_pp_baseline"
    ] = "group"
    deviation_ddof: int = 1  # a deviation divides by G - ddof: 1 (TRL, verl), or 0
    std_epsilon: float = 1e-6  # added to the deviation; TRL uses 1e-4
    # rewards for completions, or for their steps (DeepSeekMath, 4.1.3): then name a step_reward
    supervision: Literal["outcome", "process"] = "outcome"
    # π_θ/π_old of a token; sequence, sequence_token: of a completion, gradient of it or of the
    # token (GSPO, 2507.18071); geometric: mean of clipped logs (GMPO, 2507.20673)
    ratio: Literal["token", "sequence", "sequence_token", "geometric"] = "token"
    # clip (eq. 3); cispo (MiniMax-M1, 2506.13585); sapo (2511.20347); policy_gradient: A log π
    surrogate: Literal["clip", "cispo", "sapo", "policy_gradient"] = "clip"
    # ε; the ratio is clipped to [1 - clip_low, 1 + clip_high]; 1 never binds
    clip_low: float = 0.2
    clip_high: float = 0.2  # ε above 1; DAPO (2503.14476) raises it to 0.28
    # c, where A < 0 the ratio counts for at most c (1912.09729: 3; INTELLECT-2, 2505.07291: 4);
    # 0 is off
    dual_clip: float = 0.0
    tau_positive: float = 1.0  # τ of sapo where A > 0
    tau_negative: float = 1.05  # τ of sapo elsewhere
    # of token losses: eq. 3; DAPO; Dr. GRPO; ScaleRL (2510.13786); RLOO
    reduction: Literal["sequence_mean", "token_mean", "constant", "prompt_mean", "sequence_sum"] = (
        "sequence_mean"
    )
    beta: float = 0.01  # β, weight of the KL to the reference; 0 keeps no reference
    # estimate of the KL in the loss: k3 (eq. 4); k3_weighted by the ratio, whose gradient is exact
    # (DeepSeek-V3.2, 2512.02556); k2; or k1_reward: in the reward (PPO, RLOO); k1 in the loss is
    # refused, as it has no gradient in expectation
    kl: Literal["k3", "k3_weighted", "k2", "k1_reward", "k1"] = "k3"
    # weight π_old/π_sampler of the surrogate: truncated (TIS) or masked outside a range (IcePop)
    mismatch: Literal["none", "truncated", "masked"] = "none"
    mismatch_level: Literal["token", "sequence"] = "token"  # of tokens, or their product
    mismatch_low: float = 0.5  # least weight that is not masked
    mismatch_high: float = 2.0  # largest weight, or largest that is not masked
    entropy_weight: float = 0.0  # of the entropy bonus
    top_entropy: float = 1.0  # share of tokens, by entropy, with an advantage (2506.01939: 0.2)
    # completions cut off at T: keep; mask (out of loss and divisors); soft punishment as they near
    # T (both DAPO); penalty for each
    overlong: Literal["keep", "mask", "soft", "penalty"] = "keep"
    overlong_buffer: int = 16  # tokens before T in which the soft punishment grows to its whole
    overlong_penalty: float = 1.0  # subtracted from the reward of a completion that reached T
    # draws a step at most: groups of equal rewards are drawn again (dynamic sampling, DAPO)
    max_draws: int = 1
    # groups of equal rewards: keep them in the divisors, or drop them from loss and divisors
    zero_variance: Literal["keep", "drop"] = "keep"
    epochs_per_batch: int = 1  # μ, passes over the completions of a step
    minibatches: int = 1  # optimizer updates in a pass
    microbatches: int = 1  # parts a minibatch is computed in: changes memory, never the result
    # who gives π_old, when a step has several updates
    old_logps: Literal["sampler", "rescored"] = "sampler"
    # steps by which sampling runs ahead of training: 0; or 1, on devices of its own (mesh.sampling)
    lag: int = 0
    # π_ref: the first policy, of an outer iteration where there are (reward_model.every); the one
    # of the last multiple of N updates; the one an update ago
    reference: Literal["initial", "refreshed", "previous"] = "initial"
    reference_every: int = 400  # N, updates between refreshes of a refreshed reference
    router_weight: float = 0.001  # of the load-balance loss, where the model has experts

    def __post_init__(self):
        require_fields(self)
        require(
            self.kl != "k1",
            "kl=k1 in the loss has a gradient of 0 in expectation and regularises nothing; use "
            "k3_weighted or k2 in the loss, or k1_reward",
        )
        require(
            self.group_size >= 2,
            "group_size must be at least 2 (one completion has no relative advantage), "
            f"got {self.group_size}",
        )
        for name in ("beta", "router_weight", "entropy_weight", "overlong_penalty"):
            value = getattr(self, name)
            require(value >= 0, f"{name} must be 0 or more (it is a weight), got {value}")
        require(
            0 < self.clip_low <= 1,
            f"clip_low must be above 0 and at most 1 (it never binds), got {self.clip_low}",
        )
        require_positive(self, "prompts_per_step", "clip_high", "std_epsilon", "epochs_per_batch")
        require_positive(self, "minibatches", "microbatches", "reference_every", "max_draws")
        require_positive(self, "tau_positive", "tau_negative", "overlong_buffer")
        require_multiple(
            "prompts_per_step",
            self.prompts_per_step,
            self.minibatches * self.microbatches,
            "minibatches * microbatches",
        )
        require(
            self.deviation_ddof in (0, 1),
            f"deviation_ddof must be 0 or 1, got {self.deviation_ddof}",
        )
        require(
            0 < self.top_entropy <= 1,
            f"top_entropy must be above 0 and at most 1 (all), got {self.top_entropy}",
        )
        require(
            0 <= self.mismatch_low < self.mismatch_high,
            f"mismatch_low must be 0 or more and below mismatch_high={self.mismatch_high}, "
            f"got {self.mismatch_low}",
        )
        self.refuse_contradictions()

    def refuse_contradictions(self):
        """Raises ValueError for fields that cannot go together."""
        clips = self.surrogate == "clip"
        require(
            clips or self.ratio in ("token", "sequence", "sequence_token"),
            f"ratio=geometric clips by itself and needs surrogate=clip, got {self.surrogate}",
        )
        least = 1 + self.clip_high
        require(
            not self.dual_clip or (clips and self.ratio != "geometric" and self.dual_clip > least),
            f"dual_clip needs surrogate=clip, another ratio than geometric, and more than 1 + "
            f"clip_high = {least}, got {self.dual_clip} with {self.surrogate} and {self.ratio}",
        )
        require(
            self.mismatch == "none" or self.on_policy or self.old_logps == "rescored",
            f"mismatch={self.mismatch} weighs π_old against the sampler, which here is π_old "
            "itself; set old_logps=rescored",
        )
        require(self.lag in (0, 1), f"lag must be 0 or 1 (steps), got {self.lag}")
        require(
            not self.lag or self.mismatch != "none",
            "lag=1 trains on completions of the policy a step ago, which only a mismatch weighs; "
            "set mismatch=truncated or masked, got none",
        )
        rewarded = self.kl == "k1_reward"
        require(
            not (rewarded and self.advantage == "gdpo"),
            "kl=k1_reward needs one reward to subtract from, but advantage=gdpo normalises each; "
            "use k3_weighted or k2",
        )
        process = self.supervision == "process"
        require(
            not process or (self.advantage == "group" and not rewarded),
            f"supervision=process has advantages of its own: it needs advantage=group and the KL "
            f"in the loss, got {self.advantage} and {self.kl}",
        )
        require(
            not process or (self.max_draws == 1 and self.zero_variance == "keep"),
            "supervision=process knows no groups of equal rewards; set max_draws=1 and "
            "zero_variance=keep",
        )

    @property
    def on_policy(self) -> bool:
        """One update a step: π_old is π_θ and the ratio needs no stored log-probabilities.

        With a lag too: how far π_θ is from the policy that sampled is the mismatch's to weigh.
        """
        return self.minibatches == self.epochs_per_batch == 1

    @property
    def cautions(self) -> list[str]:
        """Choices that are allowed and known to mislead, each with the reason."""
        several = not self.on_policy
        found = [
            (
                self.ratio != "token" and self.reduction != "sequence_mean",
                f"ratio={self.ratio} with reduction={self.reduction}: a ratio of whole completions "
                "is meant for sequence_mean; other reductions weigh it by length",
            ),
            (
                self.kl == "k2" and self.beta > 0 and several,
                "kl=k2 with several updates a step: its gradient is exact on-policy alone; that of "
                "k3_weighted is exact off-policy too",
            ),
            (
                self.surrogate == "policy_gradient" and several,
                "surrogate=policy_gradient with several updates a step: nothing corrects for how "
                "far the policy has moved",
            ),
            (
                self.reduction == "constant" and self.advantage == "group",
                "reduction=constant with advantage=group: Dr. GRPO leaves out the deviation as "
                "well as the length; advantage=mean is its other half",
            ),
        ]
        return [reason for holds, reason in found if holds]
