"""TRL's worker of the parity run: GRPOTrainer with the settings of a grpojax config.

On completions that grpojax drew (`task["completions"]`), or on its own.
"""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from grpojax.task import Example
from tools.benchmark.parity.record import Updates
from tools.benchmark.parity.reward import reward_named
from tools.benchmark.work import read_task
from tools.benchmark.workers.trl import make_config

MICROBATCH = 64  # completions at most whose activations are in memory at once


class Ending(TrainerCallback):
    """Begins the clock with the first step, records the end of each, and ends the run when the
    updates that were asked for are made: its schedule may be of more."""

    def __init__(self, updates: Updates, count: int, found: dict[str, Any]):
        self.updates, self.count, self.found = updates, count, found

    def on_train_begin(self, *_, **__):
        self.updates.start_now()

    def on_step_end(self, arguments, state, control, **_):
        self.updates.end(**self.found)
        control.should_training_stop = state.global_step == self.count


def config_of(task: dict[str, Any]) -> GRPOConfig:
    """The trainer's config that says what grpojax's does."""
    config = task["config"]
    grpo, sampling, optimizer = (config[name] for name in ("grpo", "sampling", "optimizer"))
    count = grpo["prompts_per_step"] * grpo["group_size"]
    at_once = next(n for n in range(min(MICROBATCH, count), 0, -1) if count % n == 0)
    return make_config(
        output_dir=task["output"],
        bf16=False,
        seed=config["seed"],
        num_generations=grpo["group_size"],
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=count // at_once,
        max_completion_length=sampling["completion_length"],
        temperature=sampling["temperature"],
        max_steps=config["steps"],
        beta=grpo["beta"],
        epsilon=grpo["clip_low"],
        epsilon_high=grpo["clip_high"],
        learning_rate=optimizer["learning_rate"],
        lr_scheduler_type=optimizer["schedule"],
        warmup_steps=optimizer["warmup_updates"],
        adam_beta1=optimizer["adam_b1"],
        adam_beta2=optimizer["adam_b2"],
        adam_epsilon=optimizer["adam_epsilon"],
        weight_decay=optimizer["weight_decay"],
        max_grad_norm=optimizer["max_grad_norm"],
    )


def main(task: dict[str, Any]) -> None:
    """Trains as `task` says.

    Raises:
      ValueError: the tokenizer reads the prompts as other ids than planned.
    """
    torch.set_num_threads(task["threads"])
    config, batches, stops = task["config"], task["batches"], task["stops"]
    found: dict[str, Any] = {}
    updates, judge = Updates(Path(task["output"])), reward_named(task["reward"])
    tokenizer = AutoTokenizer.from_pretrained(config["init"])
    model = AutoModelForCausalLM.from_pretrained(config["init"], dtype=torch.float32)
    model.generation_config.eos_token_id = stops  # where TRL ends completions and their masks

    def accuracy(prompts, completion_ids, id, answer, **_) -> list[float]:
        texts = [
            tokenizer.decode(ids[:-1] if ids[-1] in stops else ids, skip_special_tokens=False)
            for ids in completion_ids
        ]
        cases = zip(id, prompts, answer, texts)
        rewards = [judge(Example(id=i, prompt=p, answer=a), text) for i, p, a, text in cases]
        found.update(completions=completion_ids, rewards=rewards)
        return rewards

    rows = [each for batch in batches for each in batch]
    columns = {name: [row[name] for row in rows] for name in ("prompt", "id", "answer")}
    trainer = GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=accuracy,
        args=config_of(task),
        train_dataset=Dataset.from_dict(columns),
        callbacks=[Ending(updates, len(batches), found)],
    )
    generate, clip = trainer._generate_single_turn, trainer.accelerator.clip_grad_norm_

    def generated(prompt_ids, *rest, **named):
        step, group = trainer.state.global_step, config["grpo"]["group_size"]
        if prompt_ids != [each["tokens"] for each in batches[step] for _ in range(group)]:
            raise ValueError(f"the prompts of step {step} are not those planned")
        if "completions" in task:
            return task["completions"][step], None
        return generate(prompt_ids, *rest, **named)

    def clipped(*arguments, **named):
        norm = clip(*arguments, **named)
        found["grad_norm"] = float(norm)
        return norm

    trainer._generate_single_turn = generated
    trainer.accelerator.clip_grad_norm_ = clipped
    trainer.train()
    updates.done()


if __name__ == "__main__":
    main(read_task())
