"""TRL's worker: GRPOTrainer on transformers' `generate`, its methods timed from outside.

What takes the place of its generation in the gate, and what ends completions at planned lengths,
goes in at methods of the trainer and of the model. Everything else is TRL's own.
"""

import functools
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from tools.benchmark.work import Steps, read_task, reward, write_gate

EOS = 1


class Ends(LogitsProcessor):
    """Makes end of sequence the only choice of a row's last planned token."""

    def __init__(self, prompt_length: int, lengths: list[list[int]]):
        self.last = torch.tensor(lengths).flatten() - 1
        self.prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        ends = self.last == input_ids.shape[1] - self.prompt_length
        if ends.any():
            scores[ends] = -torch.inf
            scores[ends, EOS] = 0.0
        return scores


class Ending(TrainerCallback):
    """Begins the clock with the first step and tells it of the end of each."""

    def __init__(self, steps: Steps):
        self.steps = steps

    def on_train_begin(self, *_, **__):
        self.steps.start_now()

    def on_step_end(self, *_, **__):
        self.steps.end()


def rewards(completion_ids: list[list[int]], **_) -> list[float]:
    return [reward(ids) for ids in completion_ids]


def make_config(**of_the_work: Any) -> GRPOConfig:
    """The trainer's config: what is the same in every work, and what is said of this one."""
    config = {
        "use_cpu": True,
        # The work.
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "shuffle_dataset": False,
        # The objective.
        "num_iterations": 1,
        "loss_type": "grpo",
        "scale_rewards": "group",
        "use_bias_correction_kl": False,  # True, its default, is k3 weighted by the ratio
        # The optimizer: AdamW in one kernel, its default.
        "optim": "adamw_torch_fused",
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "weight_decay": 0.0,
        "gradient_checkpointing": False,
        # Nothing else in a step.
        "report_to": "none",
        "logging_strategy": "no",
        "save_strategy": "no",
        "eval_strategy": "no",
        "disable_tqdm": True,
    }
    return GRPOConfig(**config | of_the_work)


def make_trainer(task: dict[str, Any], steps: Steps) -> GRPOTrainer:
    """A trainer whose every step is one batch of the same prompts."""
    count = len(task["prompts"]) * task["group_size"]
    config = make_config(
        output_dir=task["output"],
        bf16=task["dtype"] == "bfloat16",
        model_init_kwargs={"dtype": task["dtype"]},
        num_generations=task["group_size"],
        per_device_train_batch_size=count,
        gradient_accumulation_steps=1,
        max_completion_length=task["completion_length"],
        max_steps=task["steps"],
        beta=task["beta"],
        epsilon=task["clip"],
        learning_rate=task["learning_rate"],
        lr_scheduler_type="constant",
        max_grad_norm=task["max_grad_norm"],
    )
    return GRPOTrainer(
        model=task["folder"],
        reward_funcs=rewards,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": task["texts"] * task["steps"]}),
        callbacks=[Ending(steps)],
    )


def gate(task: dict[str, Any]) -> None:
    trainer = make_trainer(task, Steps(Path(task["output"])))
    ids = torch.tensor(task["prompts"])
    config = GenerationConfig(
        max_new_tokens=task["completion_length"], do_sample=False, pad_token_id=0
    )
    with torch.no_grad():
        greedy = trainer.model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=config
        )
    recorded = [row for group in task["completions"] for row in group]
    losses, norms, scored = [], [], []

    def generated(prompt_ids, *_, **__):
        expected = [row for row in task["prompts"] for _ in range(task["group_size"])]
        assert prompt_ids == expected, "the tokenizer read the prompts as other ids"
        return recorded, None

    def keep(kept: list, function, pick):
        @functools.wraps(function)
        def wrapped(*args, **kwargs):
            result = function(*args, **kwargs)
            kept.append(pick(result))
            return result

        return wrapped

    trainer._generate_single_turn = generated
    # The first call scores with the reference, in the order of the completions.
    name = "_get_per_token_logps_and_entropies"
    setattr(trainer, name, keep(scored, getattr(trainer, name), lambda found: found[0].detach()))
    trainer.training_step = keep(losses, trainer.training_step, float)
    clip = trainer.accelerator.clip_grad_norm_
    trainer.accelerator.clip_grad_norm_ = keep(norms, clip, float)
    trainer.train()
    logps = [row[: len(ids)].numpy() for row, ids in zip(scored[0], recorded)]
    write_gate(Path(task["output"]), greedy[:, ids.shape[1] :], logps, losses, norms)


def measure(task: dict[str, Any]) -> None:
    steps = Steps(Path(task["output"]))
    trainer = make_trainer(task, steps)

    def count(result: tuple) -> None:
        steps.tokens = sum(len(ids) for ids in result[0])

    def reference(function):
        timed = steps.timed("reference", function, lambda _: None)
        # Only what is scored without gradients is the reference's.
        return lambda *args, **kwargs: (function if torch.is_grad_enabled() else timed)(
            *args, **kwargs
        )

    if task["scripted"]:
        ends = LogitsProcessorList([Ends(len(task["prompts"][0]), task["lengths"])])
        trainer.model.generate = functools.partial(trainer.model.generate, logits_processor=ends)
    trainer._generate_single_turn = steps.timed("generation", trainer._generate_single_turn, count)
    name = "_get_per_token_logps_and_entropies"
    setattr(trainer, name, reference(getattr(trainer, name)))
    trainer._prepare_inputs = steps.timed("prepared", trainer._prepare_inputs, lambda _: None)
    trainer.train()
    for line in steps.lines:  # what is not preparation: loss, gradients, AdamW, the loop itself
        line["update"] = line["whole"] - line.pop("prepared")
    steps.write()


if __name__ == "__main__":
    task = read_task()
    torch.set_num_threads(task["threads"])
    (gate if task["kind"] == "gate" else measure)(task)
