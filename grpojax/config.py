"""Config: everything a run depends on, as frozen dataclasses that are validated when built.

A config module defines `get_config() -> Config`; every field can be set by a flag of the same name.
Defaults live here and nowhere else. Rules that need a device, a file or a tokenizer are checked
where those are opened, always before anything is compiled.
"""

import dataclasses
import math
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from grpojax.architecture import ModelConfig
from grpojax.checks import require, require_fields, require_positive
from grpojax.objective import GRPOConfig
from grpojax.optimization import OptimizerConfig, PPOConfig, RewardModelConfig
from grpojax.sources import DataConfig

# Advantages that see of a reward no more than its differences within a group.
COMPARING = ("group", "mean", "rloo", "opo", "gdpo", "reinforce_pp_baseline")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Shapes and temperature of the completions that the policy is trained on.

    There is no top-k or top-p here: truncation would sample from another policy than the one
    trained.
    """

    prompt_length: int = 32  # P, tokens that prompts are left-padded to
    completion_length: int = 64  # T, most tokens of a completion
    # divides the logits in every log-probability, the sampler's and the trainer's alike
    temperature: float = 1.0
    stop: tuple[str, ...] = ()  # texts of one token each that end a completion, beside EOS

    def __post_init__(self):
        require_fields(self)
        require_positive(self, "prompt_length", "completion_length", "temperature")


@dataclass(frozen=True, kw_only=True)
class JudgingConfig:
    """How rewards are called: side by side, each call within a time limit."""

    # seconds for one completion; a batched call has what the threads would have for as many
    time_limit: float = 10.0
    # what becomes of a completion whose reward raised, gave no number or exceeded the limit:
    # invalid leaves it out of the update, zero makes that reward 0, stop ends the run
    on_failure: Literal["invalid", "zero", "stop"] = "invalid"
    threads: int = 8  # plain rewards called at once
    async_calls: int = 64  # asynchronous rewards awaited at once
    workers: int = 2  # processes of a killable reward
    worker_memory: int = 1024  # MiB of address space of each

    def __post_init__(self):
        require_fields(self)
        require_positive(self, "time_limit", "threads", "async_calls", "workers", "worker_memory")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Held-out accuracy, greedy and sampled, through the sampler that trains."""

    every: int = 50  # steps between evaluations; 0: only before the first step and after the last
    examples: int = 128  # problems of the held-out split
    samples: int = 4  # completions sampled for each, beside the greedy one
    temperature: float = 1.0  # of the sampled completions
    top_k: int = 0  # keep the k most likely tokens; 0 keeps all
    top_p: float = 1.0  # keep the most likely tokens that hold this mass; 1 keeps all

    def __post_init__(self):
        require_fields(self)
        require(self.every >= 0, f"every must be 0 or more, got {self.every}")
        require_positive(self, "examples", "samples", "temperature")
        require(self.top_k >= 0, f"top_k must be 0 (off) or more, got {self.top_k}")
        require(0 < self.top_p <= 1, f"top_p must be above 0 and at most 1 (off), got {self.top_p}")


@dataclass(frozen=True, kw_only=True)
class SFTConfig:
    """The supervised stage (`grpojax sft`): next-token loss on the task's worked completions."""

    max_steps: int = 400  # the stage fails if the accuracy was not reached by then
    examples_per_step: int = 64  # demonstrations in a step
    # greedy accuracy on the validation split that ends the stage; 0: max_steps end it, and well
    until_accuracy: float = 0.3
    check_every: int = 25  # steps between those checks
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-3, warmup_updates=10)

    def __post_init__(self):
        require_fields(self)
        require_positive(self, "max_steps", "examples_per_step", "check_every")
        require(
            0 <= self.until_accuracy <= 1,
            f"until_accuracy must be in [0, 1], got {self.until_accuracy}",
        )


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along the axes of the mesh; -1 on at most one axis takes the rest."""

    data: int = -1  # prompts; parameters are replicated along it
    fsdp: int = 1  # prompts, and parameters sharded along it
    expert: int = 1  # prompts, experts, and the other parameters as along fsdp
    tensor: int = 1  # heads, feed-forward, vocabulary, and experts
    # devices, the last ones, that do nothing but sample, split over expert and tensor as the others
    # are; the axes are those of the rest. 0: all devices do everything
    sampling: int = 0
    # the four axes are picked for the devices at hand, whatever they say: the quickest step of
    # those that are forecast to fit (search.py); config.json says which
    auto: bool = False

    def __post_init__(self):
        require_fields(self)
        require(self.sampling >= 0, f"mesh.sampling must be 0 or more, got {self.sampling}")
        sizes = (self.data, self.fsdp, self.expert, self.tensor)
        require(
            all(s > 0 or s == -1 for s in sizes),
            f"mesh axes must be above 0, or -1 for the rest, got {sizes}",
        )
        require(sizes.count(-1) <= 1, f"at most one mesh axis may be -1, got {sizes}")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When a run is saved; the last step always is."""

    every: int = 50  # steps between checkpoints
    keep: int = 2  # newest checkpoints kept, beside the best by held-out greedy accuracy

    def __post_init__(self):
        require_fields(self)
        require_positive(self, "every", "keep")


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """What a run shows and records beside its metrics."""

    completions_every: int = 10  # steps between groups recorded in completions/
    completions_shown: int = 4  # completions of one group shown on the console each time
    tensorboard: bool = True  # write tb/ beside metrics.jsonl

    def __post_init__(self):
        require_fields(self)
        require_positive(self, "completions_every")
        require(
            self.completions_shown >= 0,
            f"completions_shown must be 0 or more, got {self.completions_shown}",
        )


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run: a task, the policy it starts from, and how it is trained."""

    task: str = "addition"  # a shipped task's name, or module:function
    # the task's own rewards by name, or module:function, each with its weight
    rewards: dict[str, float] = field(default_factory=lambda: {"accuracy": 1.0, "format": 1.0})
    step_reward: str = ""  # module:function that rewards steps, for grpo.supervision process
    step_boundary: str = "newline"  # what ends a step: newline, or a text such as </step>
    init: str = ""  # first parameters: empty for random, a Hugging Face folder or a run directory
    # empty: that of `init`, or SentencePiece trained on the task's text; or bytes, a folder, a file
    tokenizer: str = ""
    chat: bool = False  # prompts are what a user says, put in the tokenizer's chat template
    system: str = ""  # what the system says before, in a chat; empty: nothing
    steps: int = 100  # batches of prompts sampled
    seed: int = 0  # of the parameters, the order of the data and every draw
    # grpo; or ppo, which it is measured against: a critic gives the advantages
    algorithm: Literal["grpo", "ppo"] = "grpo"
    model: ModelConfig = ModelConfig()
    sampling: SamplingConfig = SamplingConfig()
    grpo: GRPOConfig = GRPOConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    ppo: PPOConfig = PPOConfig()
    reward_model: RewardModelConfig = RewardModelConfig()
    data: DataConfig = DataConfig()
    judging: JudgingConfig = JudgingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    sft: SFTConfig = SFTConfig()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()

    def __post_init__(self):
        require_fields(self)
        require_positive(self, "steps")
        require(self.seed >= 0, f"seed must be 0 or more, got {self.seed}")
        require(self.chat or not self.system, "system needs chat, got chat=False")
        require(bool(self.rewards), "rewards must name at least one reward, got none")
        for name, weight in self.rewards.items():
            number = isinstance(weight, int | float) and math.isfinite(weight)
            require(number, f"the weight of reward {name!r} must be a number, got {weight!r}")
        require(
            any(self.rewards.values()),
            f"at least one reward needs a weight other than 0, got {self.rewards}",
        )
        process = self.grpo.supervision == "process"
        require(
            process == bool(self.step_reward),
            "step_reward and grpo.supervision=process need each other, got "
            f"{self.step_reward!r} and {self.grpo.supervision}",
        )
        require(bool(self.step_boundary), "step_boundary must be a text, got an empty one")
        prompt, completion = self.sampling.prompt_length, self.sampling.completion_length
        most = self.model.max_length
        require(
            prompt + completion <= most,
            f"prompt_length + completion_length = {prompt} + {completion} must be at most the "
            f"model's max_length={most}",
        )

        require(
            self.algorithm == "grpo" or not process,
            "algorithm=ppo has advantages of its own; needs grpo.supervision=outcome, got process",
        )
        require(
            not self.grpo.lag or self.mesh.sampling > 0,
            "grpo.lag=1 samples while other devices train; set mesh.sampling to how many do, got 0",
        )
        buffer = self.grpo.overlong_buffer
        require(
            self.grpo.overlong != "soft" or buffer < completion,
            f"grpo.overlong_buffer={buffer} must be below completion_length={completion}",
        )
        if self.reward_model.every:
            self.refuse_reward_model()

    def refuse_reward_model(self):
        """Raises ValueError for what cannot go together with a reward model."""
        grpo = self.grpo
        require(
            self.algorithm == "grpo" and grpo.supervision == "outcome",
            "reward_model.every needs algorithm=grpo and grpo.supervision=outcome, got "
            f"{self.algorithm} and {grpo.supervision}",
        )
        require(
            grpo.advantage in COMPARING,
            "a reward model's score has no zero, so reward_model.every needs an advantage that "
            f"compares within a group ({', '.join(COMPARING)}), got {grpo.advantage}",
        )
        require(
            grpo.beta == 0 or grpo.reference == "initial",
            "reward_model.every makes the policy the reference after each iteration; leave "
            f"grpo.reference at initial, got {grpo.reference}",
        )
        require(
            all(name.rpartition(":")[2] != "reward_model" for name in self.rewards),
            "with reward_model.every its score is the reward named reward_model; rename yours",
        )

    @property
    def updates(self) -> int:
        """Optimizer updates of the whole run."""
        return self.steps * self.grpo.epochs_per_batch * self.grpo.minibatches


def from_dict(kind: type, values: dict[str, Any]) -> Any:
    """Builds the config dataclass `kind` from what `dataclasses.asdict` made of one, through JSON
    or not.

    Raises:
      TypeError: a name is not a field of `kind`.
    """
    hints, fields = typing.get_type_hints(kind), {}
    for name, value in values.items():
        hint = hints.get(name)
        if dataclasses.is_dataclass(hint):
            value = from_dict(hint, value)
        fields[name] = tuple(value) if isinstance(value, list) else value
    return kind(**fields)


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict as one of dotted names, as the flags are called."""
    rows = {}
    for name, value in tree.items():
        inner = (
            flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
        rows |= inner
    return {name: list(v) if isinstance(v, tuple) else v for name, v in rows.items()}
