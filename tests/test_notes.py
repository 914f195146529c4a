"""What a task left out or cut is said by every command that opens it, and kept with the run."""

import json

import pytest
from test_train import changed

from grpojax.arithmetic import dry_run
from grpojax.evaluate import evaluate_run
from grpojax.rewards.accuracy import exact_answer
from grpojax.task import Example, Task
from grpojax.train import train

NOTES = [
    "32 rows read",
    "1 training examples left out: their questions are held out too",
    "train: 1 of 31 prompts dropped",
    "test: 1 of 2 prompts truncated to their last 8 tokens",
]


def squares(data) -> Task:
    """Of the training prompts one is held out too and one is longer than 8 bytes; so is a test
    prompt."""
    train = [Example(id=i, prompt=f"{i}²", answer=f"{i * i}") for i in range(30)]
    train += [Example(id=30, prompt="what is 30²", answer="900")]
    train += [Example(id=31, prompt="31²", answer="961")]
    test = [Example(id=41, prompt="31²", answer="961")]
    test += [Example(id=42, prompt="what is 32²", answer="1024")]
    validation = [Example(id=43, prompt="", answer="0")]  # stops a run before it compiles
    splits = {"train": train, "validation": validation, "test": test}
    return Task(splits=splits, rewards={"accuracy": exact_answer}, notes=("32 rows read",))


def test_notes_are_said_by_training_evaluation_and_the_dry_run_and_kept(tmp_path, capsys):
    config = changed(task="test_notes:squares", data={"long_prompts": "drop"})
    rows = [row.split(maxsplit=1) for row in dry_run(config, tmp_path / "run").splitlines()]
    assert [rest for name, rest in rows if name == "data"] == NOTES
    with pytest.raises(ValueError, match="at least one token"):
        train(config, tmp_path / "run")
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if line in NOTES] == NOTES
    assert json.loads((tmp_path / "run/config.json").read_text())["notes"] == NOTES
    told: list[str] = []
    with pytest.raises(ValueError, match="checkpoint"):
        evaluate_run(
            tmp_path / "run", split="test", samples=0, k=(), examples=9, step=None, say=told.append
        )
    assert told[:4] == NOTES
