"""Rejection sampling: completions of a policy that are good enough to imitate, and their origin.

As DeepSeek-R1 (arXiv 2501.12948) takes its second supervised data from the policy of its first RL:
the correct ones, without mixed languages and without repetition. `kept.jsonl` has a row for each
that stays, `provenance.json` says where they came from and what became of the others, and
`answers.jsonl` has them all.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.r1_numbers import source_of
from experiments.r1_world import KEPT
from grpojax.checks import require
from grpojax.evaluate import Evaluation, evaluate_runs, write_answers
from grpojax.rewards.accuracy import exact_answer
from grpojax.rewards.format import TAG, layout_followed
from grpojax.rewards.language import language_consistency
from grpojax.rewards.repetition import repetition_penalty
from grpojax.run import git_commit
from grpojax.storage import replace
from grpojax.task import Example

# What a completion must pass, in this order: a reward that gives the value.
RULES = {
    "wrong": (exact_answer, 1.0),
    "not laid out": (layout_followed, 1.0),
    "mixed languages": (language_consistency("latin"), 1.0),
    "repetition": (repetition_penalty(words=2), 0.0),
    "unreadable": (lambda _, completion: readable(completion), True),
}


def reject(workdir: Path, folder: Path, *, prompts: int, samples: int, most: int) -> None:
    """Samples the newest checkpoint of the run in `workdir`, `samples` completions of each of its
    first `prompts` training problems, and writes what is kept into `folder` as `write_kept` does.
    """
    (found,) = evaluate_runs(
        [workdir], steps=(), split="train", samples=samples, k=(), examples=prompts
    )
    counts = write_kept(found, folder, most)
    print(f"{folder}: {', '.join(f'{count} {what}' for what, count in counts.items())}")


def write_kept(found: Evaluation, folder: Path, most: int) -> dict[str, int]:
    """Writes the three files, and returns how many completions were kept and dropped, by reason.

    Each file is written whole or not at all, and the provenance last: with it the work is done. Of
    one problem at most `most` completions are kept.

    Raises:
      ValueError: none is kept.
    """
    drawn = [(one.example, [answer.text for answer in one.sampled]) for one in found.answered]
    rows, counts = keep(drawn, most)
    require(bool(rows), f"some completion of {found.workdir} must be worth keeping, got {counts}")
    folder.mkdir(parents=True, exist_ok=True)
    write_answers(folder / "answers.jsonl", "train", [found])
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    replace(folder / KEPT, content)
    about = {
        "source": source_of(found.workdir) | {"step": found.step},
        "drawn": {"split": "train", "problems": len(drawn), "completions": sum(counts.values())},
        "most_kept": most,
        "counts": counts,
        "sha256": hashlib.sha256(content).hexdigest(),
        "commit": git_commit(),
    }
    replace(folder / "provenance.json", (json.dumps(about, indent=2) + "\n").encode())
    return counts


def keep(
    drawn: Iterable[tuple[Example, Sequence[str]]], most: int
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The rows of the completions that stay, at most `most` of an example and none twice, and how
    many were kept and dropped, by reason."""
    rows, counts = [], Counter(dict.fromkeys(["kept", *RULES, "said twice", "one too many"], 0))
    for example, completions in drawn:
        chosen: list[str] = []
        for completion in completions:
            why = fault(example, completion)
            if not why and completion in chosen:
                why = "said twice"
            if not why and len(chosen) == most:
                why = "one too many"
            counts[why or "kept"] += 1
            if not why:
                chosen.append(completion)
        rows += [
            {
                "prompt": example.prompt,
                "answer": example.answer,
                "completion": completion,
                "category": example.category,
                "example": example.id,
            }
            for completion in chosen
        ]
    return rows, dict(counts)


def fault(example: Example, completion: str) -> str:
    """The first of `RULES` that a completion breaks; empty if it breaks none."""
    broken = (name for name, (rule, wanted) in RULES.items() if rule(example, completion) != wanted)
    return next(broken, "")


def readable(completion: str) -> bool:
    """Whether the text encodes to tokens again: padding and the unknown, which a policy may sample
    too, do not."""
    return not {"<", "\N{REPLACEMENT CHARACTER}"} & set(TAG.sub("", completion))
