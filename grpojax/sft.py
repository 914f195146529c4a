"""The supervised stage: next-token loss on worked completions, until greedy accuracy is enough or
for a number of steps.

Supervised learning is the policy gradient with the coefficient 1 for every token of a demonstration
(DeepSeekMath, 2402.03300, appendix A.1), so the learner is GRPO's, with groups of one.
"""

import contextlib

import jax
import jax.numpy as jnp

from grpojax.checkpoint import close, open_checkpoints, restore, save
from grpojax.checks import require_multiple
from grpojax.config import Config, GRPOConfig
from grpojax.console import Console
from grpojax.data import make_demonstrations
from grpojax.evaluate import make_evaluator
from grpojax.hosts import log_folder
from grpojax.learner import abstract_state, init_state, make_update
from grpojax.lora import combine, split
from grpojax.metrics import MetricsWriter, read_metrics
from grpojax.optimizer import make_optimizer
from grpojax.run import initial_params, open_run, start_run
from grpojax.sharding import row_parts, shard_batch, use_mesh
from grpojax.storage import Place
from grpojax.types import Completions, Evidence, GroupBatch, Params
from grpojax.weigher import make_weigher

NEGATIVE_LOGPS = "sampling/sampling_logp_difference/mean"  # |log π - 0|: the mean loss of a token


def sft(config: Config, workdir: Place) -> int:
    """Trains on the task's demonstrations into `workdir`; an interrupted stage goes on.

    Returns:
      The exit code: 0 if greedy accuracy on the validation split reached `sft.until_accuracy`, or
      that is 0 and `sft.max_steps` were made; 1 if it was not reached within them.

    Raises:
      ValueError: the config, or a file it names, is wrong; nothing was compiled.
    """
    run, stage = open_run(config, workdir), config.sft
    what = "the mesh's data * fsdp * expert"
    require_multiple("sft.examples_per_step", stage.examples_per_step, row_parts(run.mesh), what)
    demonstrations = make_demonstrations(
        run.task.splits["train"],
        run.tokenizer,
        examples_per_step=stage.examples_per_step,
        prompt_length=config.sampling.prompt_length,
        completion_length=config.sampling.completion_length,
        seed=config.seed,
        long_prompts=config.data.long_prompts,
    )
    optimizer = make_optimizer(stage.optimizer, stage.max_steps)
    objective = GRPOConfig(
        prompts_per_step=stage.examples_per_step, beta=0.0, reduction="token_mean"
    )
    with use_mesh(run.mesh), contextlib.ExitStack() as stack:
        like = abstract_state(run.policy, optimizer, run.mesh, reference=False)
        update = make_update(run.policy, optimizer, like, objective, temperature=1.0)
        weigher = make_weigher(objective, completion_length=config.sampling.completion_length)
        evaluate = make_evaluator(run, examples=config.evaluation.examples, samples=0, k=())
        start_run(run, allow_config_change=False)
        logs = stack.enter_context(log_folder(workdir))
        checkpoints = open_checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep)
        stack.callback(close, checkpoints)
        state, done = restore(checkpoints, like, print) or (None, 0)
        frozen: Params = {}
        if state is None or config.model.lora_rank:
            trained, frozen = split(initial_params(run, print))
        if state is None:
            state = init_state(optimizer, like, trained)

        first = done + 1 if done else 0
        writer = stack.enter_context(MetricsWriter(logs, first, config.logging.tensorboard))
        console = stack.enter_context(Console(stage.max_steps, first, stage.check_every))

        def reached(step: int) -> bool:
            measured = evaluate(combine(frozen, state.params), step, "validation")
            accuracy, error = measured["accuracy"], measured["accuracy_se"]
            writer.write(step, {"eval/accuracy": accuracy, "eval/accuracy_se": error})
            console.say(f"step {step}: validation accuracy {accuracy:.3f} ± {error:.3f} greedy")
            save(checkpoints, step, state, accuracy)
            return enough(accuracy)

        def enough(accuracy: float) -> bool:
            return 0 < stage.until_accuracy <= accuracy

        checks = [
            line["eval/accuracy"] for line in read_metrics(workdir) if "eval/accuracy" in line
        ]
        if checks and enough(checks[-1]):
            console.say(f"{workdir} is done: validation accuracy {checks[-1]:.3f}")
            return 0
        for note in run.task.notes:
            console.say(note)
        for step in range(done, stage.max_steps):
            prompts, tokens, mask = shard_batch(demonstrations(step), run.mesh)
            ones = jnp.ones(tokens.shape[:2])
            _, weights = weigher(Evidence(ones, ones > 0), mask)
            given = Completions(tokens, mask, jnp.zeros(tokens.shape))
            batch = GroupBatch(prompts, given, ones[..., None], weights, None, None)
            state, metrics = update(state, frozen, batch)
            metrics = jax.device_get(metrics)
            step += 1  # from here on: batches done
            shown = {"loss": metrics[NEGATIVE_LOGPS], "grad_norm": metrics["grad_norm"]}
            writer.write(step, shown)
            console.step(step, shown)
            due = step % stage.check_every == 0 or step == stage.max_steps
            if due and reached(step):
                return 0
    return 1 if stage.until_accuracy else 0
