"""Evaluation: what checkpoints answer to held-out problems, in numbers with their uncertainty."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from grpojax.answers import Answered, make_answerer
from grpojax.checkpoint import saved_steps
from grpojax.checks import require
from grpojax.estimates import Measure
from grpojax.measures import as_metrics, measure
from grpojax.metrics import to_json
from grpojax.run import Run, reopen_run, trained_params
from grpojax.sampling import stream_key
from grpojax.sharding import use_mesh
from grpojax.storage import Place, replace
from grpojax.types import Params

Evaluator = Callable[[Params, int, str], dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A checkpoint's answers to problems of a split, and what they come to."""

    workdir: Place
    step: int
    answered: list[Answered]
    measures: dict[str, Measure]  # see `measure`


def make_evaluator(run: Run, *, examples: int, samples: int, k: tuple[int, ...]) -> Evaluator:
    """`evaluate(params, step, split)`: the numbers of `measure` on the first `examples` problems of
    a split, each with its standard error over problems in `.._se`; and `invalid`, how many
    completions could not be judged right or wrong and count nowhere, if any. `step` seeds the
    draws.

    Raises:
      ValueError: a `k` exceeds `samples`.
    """
    require_samples(k, samples)
    answer = make_answerer(run, samples=samples)

    def evaluate(params: Params, step: int, split: str) -> dict[str, float]:
        chosen = list(run.task.splits[split][:examples])
        answered = answer(params, chosen, stream_key(run.config.seed, "evaluate", step))
        return as_metrics(answered, measure(answered, k, votes=run.task.extract is not None))

    return evaluate


def evaluate_run(
    workdir: Place,
    *,
    split: str,
    samples: int,
    k: tuple[int, ...],
    examples: int,
    step: int | None,
    say: Callable[[str], None] = print,
) -> dict[str, int | float]:
    """Evaluates a checkpoint of a run (the newest, or `step`): its "step", and the metrics that
    `make_evaluator` gives. See `evaluate_runs`.
    """
    steps = () if step is None else (step,)
    (one,) = evaluate_runs(
        [workdir], steps=steps, split=split, samples=samples, k=k, examples=examples, say=say
    )
    return {"step": one.step, **as_metrics(one.answered, one.measures)}


def evaluate_runs(
    workdirs: Sequence[Place],
    *,
    steps: Sequence[int],
    split: str,
    samples: int,
    k: tuple[int, ...],
    examples: int,
    say: Callable[[str], None] = print,
) -> list[Evaluation]:
    """Evaluates checkpoints of runs, those at `steps` or the newest of each, on the same problems.

    Draws are those that training makes after the first checkpoint's step, in the first run, and are
    the same for all: what differs between two checkpoints is not the luck of the draws.

    Returns:
      An evaluation for each checkpoint, in the order of `workdirs`, then `steps`.

    Raises:
      ValueError: there is no such run, checkpoint or split, the runs differ in their problems, or
        a `k` exceeds `samples`; before anything is compiled.
    """
    require_samples(k, samples)
    runs = [reopen_run(workdir) for workdir in workdirs]
    for run in runs:
        for note in run.task.notes:
            say(note)
        splits = ", ".join(run.task.splits)
        require(split in run.task.splits, f"split must be one of {splits}, got {split!r}")
        saved = saved_steps(run.workdir / "checkpoints")
        missing = [step for step in steps if step not in saved]
        named = f"checkpoint {missing[0]}" if missing else "checkpoint"
        require(bool(saved) and not missing, f"{run.workdir} has no {named}; its steps: {saved}")
    problems = [list(run.task.splits[split][:examples]) for run in runs]
    for run, chosen in zip(runs, problems):
        require(
            [(e.id, e.answer) for e in chosen] == [(e.id, e.answer) for e in problems[0]],
            f"runs must have the same problems to stand side by side, got others in {run.workdir} "
            f"than in {runs[0].workdir}; evaluate them one at a time",
        )
    key, found = None, []
    for run, chosen in zip(runs, problems):
        with use_mesh(run.mesh):
            answer = make_answerer(run, samples=samples)
            for which in steps or ("newest",):
                params, step = trained_params(run.workdir, run.mesh, say, which)
                if key is None:
                    key = stream_key(run.config.seed, "evaluate", step)
                answered = answer(params, chosen, key)
                measures = measure(answered, k, votes=run.task.extract is not None)
                found.append(
                    Evaluation(workdir=run.workdir, step=step, answered=answered, measures=measures)
                )
    return found


def require_samples(k: Sequence[int], samples: int) -> None:
    most = max(k, default=0)
    require(most <= samples, f"pass@k needs k of at most samples={samples}, got k={most}")


def write_answers(path: Place, split: str, evaluations: Sequence[Evaluation]) -> None:
    """Writes JSON lines, one for each checkpoint and problem: which it is, its completions with
    their rewards (null: could not be judged), lengths and extracted answers."""
    lines = []
    for evaluation in evaluations:
        which = {"run": str(evaluation.workdir), "step": evaluation.step, "split": split}
        for answered in evaluation.answered:
            example, answers = answered.example, asdict(answered)
            lines.append(
                to_json(
                    which
                    | {
                        "example": example.id,
                        "category": example.category,
                        "origin": example.origin,
                        "prompt": example.prompt,
                        "answer": example.answer,
                        "greedy": answers["greedy"],
                        "sampled": answers["sampled"],
                    }
                )
            )
    replace(path, b"".join(lines))
