"""Run: what a config names, opened and checked before anything is compiled.

A run directory holds config.json (the resolved config, versions, commit), the tokenizer's file,
metrics.jsonl, completions/, checkpoints/, tb/, curves.png and report.html.
"""

import dataclasses
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from grpojax.checkpoint import restore_params
from grpojax.checks import require
from grpojax.config import Config, from_dict
from grpojax.model import Policy
from grpojax.pretrained import check_model, load_params
from grpojax.rewards import choose_rewards
from grpojax.sharding import check_mesh, make_mesh
from grpojax.task import Reward, Task
from grpojax.tasks import load_task
from grpojax.tokenizer import Tokenizer, load_tokenizer, stop_ids, train_sentencepiece
from grpojax.types import Params

PACKAGES = ("grpojax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A config with everything it names, found and fitting together."""

    config: Config
    workdir: Path
    task: Task
    rewards: dict[str, Reward]
    tokenizer: Tokenizer
    stops: tuple[int, ...]  # ids that end a completion
    policy: Policy
    mesh: Mesh


def open_run(config: Config, workdir: Path) -> Run:
    """Opens what `config` names. Writes nothing and compiles nothing.

    Raises:
      ValueError: something is missing or does not fit; one line that names it.
    """
    task = load_task(config.task, config.data)
    rewards = choose_rewards(config.rewards, task)
    check_init(config)
    tokenizer = open_tokenizer(config, workdir, task)
    require(
        tokenizer.vocab_size <= config.model.vocab_size,
        f"the model's vocab_size={config.model.vocab_size} must hold the tokenizer's "
        f"{tokenizer.vocab_size} tokens; raise it to that",
    )
    mesh = make_mesh(config.mesh)
    check_mesh(mesh, config)
    return Run(
        config=config,
        workdir=workdir,
        task=task,
        rewards=rewards,
        tokenizer=tokenizer,
        stops=stop_ids(tokenizer, config.sampling.stop),
        policy=Policy(config.model),
        mesh=mesh,
    )


def reopen_run(workdir: Path) -> Run:
    """The run that `workdir` holds, with the tokenizer that it was trained with."""
    config = read_config(workdir)
    return open_run(dataclasses.replace(config, init="", tokenizer=str(workdir)), workdir)


def read_config(workdir: Path) -> Config:
    """The config that a run directory was made with.

    Raises:
      ValueError: the folder is no run directory, or one of another version of this package.
    """
    path = Path(workdir) / "config.json"
    try:
        return from_dict(Config, json.loads(path.read_text())["config"])
    except FileNotFoundError:
        raise ValueError(f"{workdir} is no run directory: it has no config.json") from None
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no config of this version of grpojax ({error})") from None


def start_run(run: Run, *, allow_config_change: bool) -> None:
    """Makes the run directory, or checks that the one there was made with the same config.

    Raises:
      ValueError: it was made with another config; the message shows each field that differs.
    """
    path = run.workdir / "config.json"
    if path.exists() and not allow_config_change:
        old, new = (flat(dataclasses.asdict(c)) for c in (read_config(run.workdir), run.config))
        changed = [
            f"{name} {old[name]} -> {new[name]}" for name in new if old.get(name) != new[name]
        ]
        require(
            not changed,
            f"{run.workdir} was made with another config: {'; '.join(changed)}; use another "
            "--workdir, or --allow-config-change to go on with the new one",
        )
    run.workdir.mkdir(parents=True, exist_ok=True)
    run.tokenizer.save(run.workdir)
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    about = {
        "config": dataclasses.asdict(run.config),
        "versions": {"python": platform.python_version(), **versions},
        "commit": git_commit(),
    }
    path.write_text(json.dumps(about, indent=2) + "\n")


def initial_params(run: Run, like: Params, say: Callable[[str], None]) -> Params | None:
    """The parameters that `init` names, placed or as host arrays; None: start from random ones."""
    if not run.config.init:
        return None
    folder = Path(run.config.init)
    if is_run(folder):
        return restore_params(folder / "checkpoints", like, say)[0]
    return load_params(folder, run.config.model, like)


def check_init(config: Config) -> None:
    """Raises ValueError unless `init` is empty, or holds parameters that fit the model."""
    if not config.init:
        return
    folder = Path(config.init)
    require(
        folder.is_dir(),
        f"init={config.init} does not exist; give a Hugging Face folder (`grpojax import` makes "
        "one) or a run directory",
    )
    if is_run(folder):
        theirs, ours = read_config(folder).model, config.model
        require(theirs == ours, f"init={config.init} holds another model: {theirs}, not {ours}")
    else:
        check_model(folder, config.model)


def is_run(folder: Path) -> bool:
    """Whether `folder` is a run directory that has saved something."""
    return (folder / "checkpoints").is_dir()


def open_tokenizer(config: Config, workdir: Path, task: Task) -> Tokenizer:
    """The tokenizer that `config` names, or that of `init`, or one trained on the task's text."""
    if source := config.tokenizer or config.init:
        return load_tokenizer(source)
    if (workdir / "config.json").exists():  # its parameters know no other tokens
        return load_tokenizer(str(workdir))
    texts = [example.prompt + example.completion for example in task.splits["train"]]
    return train_sentencepiece(texts, config.model.vocab_size)


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict as one of dotted names, as the flags are called."""
    rows = {}
    for name, value in tree.items():
        inner = (
            flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
        rows |= inner
    return {name: list(v) if isinstance(v, tuple) else v for name, v in rows.items()}


def git_commit() -> str:
    """The commit of the current folder, "+" appended if files differ from it; empty without git."""
    try:
        command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return ""
    return found.stdout.strip()
