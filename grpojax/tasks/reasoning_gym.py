"""Reasoning gym: any of the hundred generators of reasoning-gym (arXiv 2505.24760; Apache-2.0), an
extra: `pip install 'grpojax[reasoning]'`.

`data.subset` names the generators, whose problems take turns. They are made and scored in worker
processes: what a generator or a scorer does with time, memory or the text of an answer is theirs.
"""

import importlib.metadata
import importlib.util

from grpojax.config import DataConfig
from grpojax.names import nearest
from grpojax.rewards.accuracy import tagged_answer
from grpojax.rewards.failure import Failed
from grpojax.rewards.format import layout_followed
from grpojax.rewards.reasoning import (
    PROBLEMS,
    question_and_answer,
    reasoning_score,
    reasoning_solved,
)
from grpojax.rewards.workers import Workers
from grpojax.task import Example, Task

TEST, VALIDATION = 256, 128
WORKERS, MEMORY, SECONDS = 2, 2048, 60.0  # processes, MiB of each, and seconds for one problem
PROMPT = (
    "{question}\n"
    "Reason step by step between <think> and </think>, "
    "then give the answer alone between <answer> and </answer>.\n"
)


def make(data: DataConfig) -> Task:
    """The task, of `data.generated` training problems; a problem's category is its generator.

    Its "accuracy" asks for the whole score of reasoning-gym; "score" gives the part.

    Raises:
      ValueError: reasoning-gym is not installed, a generator is unknown or cannot make a problem,
        or `data.generated` is more than there are.
    """
    if importlib.util.find_spec("reasoning_gym") is None:
        raise ValueError("task reasoning_gym needs a package: pip install 'grpojax[reasoning]'")
    count = TEST + VALIDATION + data.generated
    if count > PROBLEMS:
        most = PROBLEMS - TEST - VALIDATION
        raise ValueError(f"data.generated must be at most {most}, got {data.generated}")
    known = generators()
    for name in data.subset or ("",):
        if name not in known:
            raise ValueError(
                f"data.subset must name generators of reasoning-gym, got {name!r}"
                f"{nearest(name, known)}; there are {', '.join(known)}"
            )
    examples = make_examples([data.subset[i % len(data.subset)] for i in range(count)])
    end = TEST + VALIDATION
    return Task(
        splits={
            "train": examples[end:],
            "validation": examples[TEST:end],
            "test": examples[:TEST],
        },
        rewards={
            "accuracy": reasoning_solved,
            "score": reasoning_score,
            "format": layout_followed,
        },
        extract=tagged_answer,
        notes=(f"made by reasoning_gym {importlib.metadata.version('reasoning_gym')}",),
    )


def generators() -> list[str]:
    """The names of reasoning-gym's generators of one kind of problem."""
    import reasoning_gym.factory

    return sorted(set(reasoning_gym.factory.DATASETS) - {"composite"})


def make_examples(names: list[str]) -> list[Example]:
    """A problem of each generator named, numbered by its place.

    Raises:
      ValueError: one could not be made.
    """
    asked = [Example(id=i, prompt="", answer="", category=name) for i, name in enumerate(names)]
    workers = Workers(question_and_answer.imported, count=WORKERS, memory=MEMORY)
    try:
        made = workers.call_all([(example, "") for example in asked], SECONDS)
    finally:
        workers.close()
    examples = []
    for example, problem in zip(asked, made):
        if isinstance(problem, Failed):
            raise ValueError(
                f"problem {example.id} of {example.category} could not be made: it {problem.why}"
            )
        question, answer = problem
        examples.append(
            Example(
                id=example.id,
                prompt=PROMPT.format(question=question.strip()),
                answer=answer,
                question=question,
                category=example.category,
            )
        )
    return examples
