"""Training: the straight line. Sample groups, reward them, update the policy.

Everything random is a function of (seed, step) and a checkpoint is the whole state, so a killed run
that is started again equals the run never killed.
"""

import contextlib
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor

import jax
import numpy as np

from grpojax.actor_critic import init_critic, make_critic, with_abstract_critic
from grpojax.checkpoint import close, open_checkpoints, restore, save
from grpojax.config import Config
from grpojax.console import Console
from grpojax.data import make_batches
from grpojax.evaluate import make_evaluator
from grpojax.hosts import any_host, is_first, log_folder, on_host
from grpojax.iteration import (
    Iteration,
    init_reward_model,
    make_iteration,
    with_abstract_reward_model,
)
from grpojax.learner import abstract_state, init_state, make_update
from grpojax.ledger import describe_ledger, make_ledger, shares
from grpojax.lora import combine, split
from grpojax.metrics import MetricsWriter, read_metrics
from grpojax.optimizer import make_optimizer, make_schedule
from grpojax.pipeline import make_pipeline, with_abstract_older
from grpojax.presets import describe_objective
from grpojax.profiler import step_profiler
from grpojax.rollout import evidence_of, reward_weights
from grpojax.roofline import roofline_of
from grpojax.run import Run, initial_params, open_run, start_run
from grpojax.scoring import make_entropies, make_scorer
from grpojax.sharding import shard_batch, use_mesh
from grpojax.signals import stop_requested
from grpojax.storage import Place, save_arrays
from grpojax.summary import Laps, as_groups, batch_metrics, step_metrics
from grpojax.types import Completions, GroupBatch, Params, TrainState
from grpojax.weigher import make_weigher
from grpojax.work import Lengths

STOPPED = 75  # exit code: stopped by a signal with a checkpoint saved, run me again
STOPPING = "signal received: finishing the step and saving; once more to break off\n"
MOST_REFUSED = 3  # updates in a row that may be refused because they are not finite


def make_step(
    run: Run,
    optimizer,
    like: TrainState,
    iteration: Iteration | None = None,
    thread: Executor | None = None,
) -> Callable:
    """`one_step(state, frozen, step) -> (state, metrics, batch, groups)`: one batch of prompts.

    With `grpo.lag` the next batch is drawn in `thread` meanwhile.
    """
    config, grpo, sampling = run.config, run.config.grpo, run.config.sampling
    batch_of = make_batches(
        run.task.splits["train"],
        run.tokenizer,
        prompts_per_step=grpo.prompts_per_step,
        prompt_length=sampling.prompt_length,
        seed=config.seed,
        long_prompts=config.data.long_prompts,
    )
    draw = make_pipeline(run, batch_of, thread)
    scorer = make_scorer(run.policy, temperature=sampling.temperature)
    entropies = make_entropies(run.policy, temperature=sampling.temperature)
    weigher = make_weigher(
        grpo, completion_length=sampling.completion_length, reward_weights=reward_weights(config)
    )
    critic = make_critic(run, like) if config.algorithm == "ppo" else None
    update = make_update(run.policy, optimizer, like, grpo, temperature=sampling.temperature)
    schedule = make_schedule(config.optimizer, config.updates)
    ledger = make_ledger(config)

    def one_step(state: TrainState, frozen: Params, step: int):
        laps, scored = Laps(), {}
        params = combine(frozen, state.params)
        examples, prompts = batch_of(step)
        read = prompts.mask.sum(-1)
        prompts = shard_batch(prompts, run.mesh)

        def meanwhile(completions: Completions) -> None:
            """Scores on the device while the host judges."""
            drawn = prompts, completions.tokens, completions.mask
            if state.ref_params is not None:
                reference = combine(frozen, state.ref_params)
                scored["ref_logps"] = scorer(reference, *drawn)
            if not grpo.on_policy:
                sampler_s = grpo.old_logps == "sampler"
                scored["old_logps"] = completions.logps if sampler_s else scorer(params, *drawn)
            if grpo.top_entropy < 1:
                scored["entropy"] = entropies(params, *drawn)
            if critic:
                scored["values"] = critic.values(state.critic, frozen, prompts, completions.tokens)
            if iteration:
                scored["scores"] = iteration.score(
                    state.reward_model, frozen, prompts, completions, step + 1
                )

        drawn, older = draw(state, frozen, examples, prompts, step, laps, meanwhile)
        agreed = {}
        if iteration:
            judged, agreed = iteration.judge(
                drawn.judged, prompts, drawn.completions, scored["scores"], step + 1
            )
            drawn = drawn._replace(judged=judged)
        evidence = shard_batch(evidence_of(drawn, scored, config), run.mesh)
        mask, lengths = drawn.completions.mask, drawn.mask.sum(-1)
        if critic:
            advantages, weights, returns = critic.weigher(evidence, scored["values"], mask)
        else:
            advantages, weights = weigher(evidence, mask)
        batch = GroupBatch(
            prompts,
            drawn.completions,
            advantages,
            weights,
            scored.get("old_logps"),
            scored.get("ref_logps"),
        )
        jax.block_until_ready(batch)  # wait: the reference
        laps.end("time/reference")

        learning_rate = schedule(state.update)
        state, updated = update(state.replace(older_params=None), frozen, batch)
        state = state.replace(older_params=older)
        if critic:
            state, seen = critic.update(state, frozen, batch, scored["values"], returns)
            updated |= seen
        metrics = jax.device_get({"learning_rate": learning_rate, **updated})  # wait: the update
        laps.end("time/update")

        metrics |= agreed | batch_metrics(drawn.judged, drawn.mask, drawn.cut_off)
        metrics["num_tokens"] = int(lengths.sum() + read.sum())
        if drawn.step_ends is not None:
            metrics |= step_metrics(drawn.step_rewards, drawn.step_ends)
        if grpo.max_draws > 1:
            metrics["completions/redrawn_groups"] = drawn.redrawn
        if grpo.lag:
            metrics["sampling/lag"] = min(step, grpo.lag)
        shown = on_host(advantages)
        groups = as_groups(examples, drawn.texts, drawn.judged, shown, drawn.mask)
        metrics |= ledger(Lengths(read, lengths), drawn.draws, laps.times, scored=bool(agreed))
        laps.end("time/summary")
        metrics |= {"step_time": laps.total, **laps.times}
        return state, metrics, batch, (groups, drawn.judged.failure)

    return one_step


def train(
    config: Config,
    workdir: Place,
    *,
    allow_config_change: bool = False,
    profile_steps: tuple[int, int] | None = None,
) -> int:
    """Trains into `workdir`, from its newest good checkpoint if it has one.

    Held-out accuracy is measured on the validation split as the run goes, which also picks the best
    checkpoint, and on the test split before the first step and after the last. `profile_steps` are
    the first and the last step of a profiler's trace, written to profile/.

    Returns:
      The exit code: 0 done, 75 stopped by a signal with a checkpoint saved, 1 given up after three
      updates in a row that were not finite (the batch is in nonfinite_batch.npz).

    Raises:
      ValueError: the config, or a file it names, is wrong; nothing was compiled.
    """
    run = open_run(config, workdir)
    samples, every = config.evaluation.samples, config.evaluation.every
    iteration_steps = config.reward_model.every
    optimizer = make_optimizer(config.optimizer, config.updates)
    with use_mesh(run.mesh), contextlib.ExitStack() as stack:
        like = abstract_state(run.policy, optimizer, run.mesh, reference=config.grpo.beta > 0)
        if config.algorithm == "ppo":
            like = with_abstract_critic(like, run)
        if iteration_steps:
            like = with_abstract_reward_model(like, run)
        iteration = make_iteration(run, like) if iteration_steps else None
        thread = stack.enter_context(ThreadPoolExecutor(1, "sampling"))
        one_step = make_step(run, optimizer, like, iteration, thread)
        evaluate = make_evaluator(
            run, examples=config.evaluation.examples, samples=samples, k=(samples,)
        )
        start_run(run, allow_config_change=allow_config_change)
        roofline = roofline_of(run.mesh.devices.flat)
        sampling = roofline_of(run.sampling_mesh.devices.flat)
        logs = stack.enter_context(log_folder(workdir))
        checkpoints = open_checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep)
        stack.callback(close, checkpoints)
        state, done = restore(checkpoints, with_abstract_older(like, run), print) or (None, 0)
        frozen: Params = {}
        if state is None or config.model.lora_rank:
            trained, frozen = split(initial_params(run, print))
        if state is None:  # the first two read `trained`, and the last takes it
            critic = init_critic(like, trained, config) if like.critic else None
            reward_model = init_reward_model(like, trained, config) if iteration else None
            state = init_state(optimizer, like.replace(critic=None, reward_model=None), trained)
            state = state.replace(critic=critic, reward_model=reward_model)
        if iteration:
            iteration.check(done)

        first = done + 1 if done else 0
        log = config.logging
        writer = stack.enter_context(MetricsWriter(logs, first, log.tensorboard))
        console = stack.enter_context(Console(config.steps, first, log.completions_every))
        console.say(describe_objective(config))
        for reason in config.grpo.cautions:
            console.say(f"caution: {reason}")
        requested = stack.enter_context(stop_requested(STOPPING))
        profiled = stack.enter_context(step_profiler(workdir / "profile", profile_steps))
        before = read_metrics(workdir)
        num_tokens = max((line.get("num_tokens", 0) for line in before), default=0)
        failed = False

        def held_out(step: int, split: str, name: str) -> float:
            measured = evaluate(combine(frozen, state.params), step, split)
            writer.write(step, {f"{name}/{key}": value for key, value in measured.items()})
            console.say(f"step {step}: {split} accuracy {describe(measured)}")
            return measured["accuracy"]

        for note in run.task.notes:
            console.say(note)
        if not done:
            held_out(0, "validation", "eval")
            held_out(0, "test", "test")
        waited = {}
        for step in range(done, config.steps):
            with profiled(step + 1):
                state, metrics, batch, (groups, failure) = one_step(state, frozen, step)
            accuracy, laps = None, Laps()
            step += 1  # from here on: batches done
            num_tokens += metrics["num_tokens"]
            metrics |= {"num_tokens": num_tokens, **shares(metrics, roofline, sampling), **waited}
            writer.write(step, metrics)
            console.step(step, metrics)
            if step == 1 or step % log.completions_every == 0:
                writer.write_groups(step, groups)
                console.show_group(step, groups[0], log.completions_shown)
            if failure and not failed:
                console.say(f"step {step}: {failure}; its completion does not count")
                failed = True
            trained_too = [part for part in (state.critic, state.reward_model) if part]
            if max(int(part.skipped) for part in (state, *trained_too)) >= MOST_REFUSED:
                arrays = flat_arrays(batch)
                if is_first():
                    save_arrays(workdir / "nonfinite_batch.npz", arrays)
                console.say(
                    f"step {step}: {MOST_REFUSED} updates in a row were not finite; gave up"
                )
                return 1

            laps.end("time/record")
            last, stop = step == config.steps, any_host(requested())
            if iteration and step % iteration_steps == 0:
                state, learnt = iteration.end(state, frozen, step, console.say)
                writer.write(step, learnt)
                laps.end("time/iteration")
            if last or (every and step % every == 0):
                accuracy = held_out(step, "validation", "eval")
            if last:
                held_out(step, "test", "test")
            laps.end("time/evaluate")
            if last or stop or step % config.checkpoint.every == 0:
                save(checkpoints, step, state, accuracy)
            laps.end("time/checkpoint")
            waited = laps.times
            if stop and not last:
                return STOPPED
        lines = read_metrics(workdir)
        console.say(describe_ledger(lines, roofline))
        tests = [line for line in lines if "test/accuracy" in line]
        greedy = [f"{x['test/accuracy']:.3f} ± {x['test/accuracy_se']:.3f}" for x in tests]
        console.say(f"{workdir}: greedy test accuracy {' before, '.join(greedy)} after")
    return 0


def describe(measured: dict[str, float]) -> str:
    """An evaluation in a few words."""
    return ", ".join(
        f"{measured[name]:.3f} ± {measured[f'{name}_se']:.3f} {how}"
        for name, how in (("accuracy", "greedy"), ("sampled_accuracy", "sampled"))
    )


def flat_arrays(batch: GroupBatch) -> dict[str, np.ndarray]:
    """The arrays of a batch by name, for study."""
    leaves, _ = jax.tree.flatten_with_path(batch)
    named = {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves}
    return on_host(named)
