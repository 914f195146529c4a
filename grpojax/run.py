"""Run: what a config names, opened and checked before anything is compiled.

A run directory holds config.json (the resolved config, versions, commit), the tokenizer's file,
metrics.jsonl, completions/, checkpoints/, pairs/ (of a reward model), tb/, profile/ (if asked for),
curves.png, report.html.
"""

import dataclasses
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.sharding import Mesh

from grpojax.architecture import ModelConfig
from grpojax.checkpoint import restore_params
from grpojax.checks import require
from grpojax.config import Config, flat, from_dict
from grpojax.data import as_chats, fit_prompts
from grpojax.families import FREE
from grpojax.hosts import is_first, wait_for_all
from grpojax.kernels import choose_attention
from grpojax.lora import combine, freeze, merge, split
from grpojax.mesh import (
    check_mesh,
    check_model_sizes,
    make_mesh,
    make_sampling_mesh,
    mesh_at_hand,
    mesh_notes,
)
from grpojax.model import Policy, abstract_params, init_params
from grpojax.names import find_function
from grpojax.peft import base_folder, is_adapters, load_adapters
from grpojax.pretrained import check_model, load_params
from grpojax.rewards import choose_rewards
from grpojax.search import with_mesh
from grpojax.sharding import sharded_init
from grpojax.storage import Place, check_reachable, in_bucket, make_folder, place, reaching, replace
from grpojax.task import Reward, StepReward, Task
from grpojax.tasks import load_task
from grpojax.tokenizer import Tokenizer, load_tokenizer, stop_ids
from grpojax.types import Params
from grpojax.vocabulary import check_vocabulary, train_sentencepiece

PACKAGES = ("grpojax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A config with everything it names, found and fitting together."""

    config: Config
    workdir: Place
    task: Task
    rewards: dict[str, Reward]
    step_reward: StepReward | None  # with process supervision
    tokenizer: Tokenizer
    stops: tuple[int, ...]  # ids that end a completion
    policy: Policy
    mesh: Mesh
    sampling_mesh: Mesh  # on which training samples; `mesh`, unless devices do nothing else


def open_run(config: Config, workdir: Place, *, training: bool = True) -> Run:
    """Opens what `config` names. Writes nothing and compiles nothing.

    Without `training` a batch need not fit the devices.

    Raises:
      ValueError: something is missing or does not fit; one line that names it.
    """
    check_reachable(workdir)
    task = load_task(config.task, config.data)
    rewards = choose_rewards(config.rewards, task)
    step_reward = None
    if config.step_reward:
        step_reward = find_function("step_reward", config.step_reward, {})
    check_init(config)
    tokenizer = open_tokenizer(config, workdir, task)
    if config.chat:
        task = as_chats(task, tokenizer, config.system)
    task = fit_prompts(task, tokenizer, config.sampling.prompt_length, config.data.long_prompts)
    check_vocabulary(tokenizer.vocab_size, config.model.vocab_size)
    config, picked = with_mesh(config, jax.devices())
    mesh = make_mesh(config.mesh)
    sampling_mesh = make_sampling_mesh(config.mesh, mesh)
    if training:
        check_mesh(mesh, sampling_mesh, config)
    else:
        check_model_sizes(mesh.shape, config.model)
    task = dataclasses.replace(task, notes=(*task.notes, *picked, *mesh_notes(config.model, mesh)))
    return Run(
        config=config,
        workdir=workdir,
        task=task,
        rewards=rewards,
        step_reward=step_reward,
        tokenizer=tokenizer,
        stops=stop_ids(tokenizer, config.sampling.stop),
        policy=Policy(choose_attention(config.model, mesh.devices.flat[0])),
        mesh=mesh,
        sampling_mesh=sampling_mesh,
    )


def reopen_run(workdir: Place) -> Run:
    """The run that `workdir` holds, with the tokenizer that it was trained with, on the devices
    here; on a CPU it is computed in float32."""
    config = read_config(workdir)
    on_cpu = jax.devices()[0].platform == "cpu"
    config = dataclasses.replace(
        config,
        init=config.init if config.model.lora_rank else "",  # else what was trained is all
        tokenizer=str(workdir),
        mesh=mesh_at_hand(config.mesh, jax.device_count()),
        model=dataclasses.replace(config.model, compute_dtype="float32")
        if on_cpu
        else config.model,
    )
    return open_run(config, workdir, training=False)


def read_config(workdir: str | Place) -> Config:
    """The config that a run directory was made with.

    Raises:
      ValueError: the folder is no run directory, or one of another version of this package.
    """
    path = place(workdir) / "config.json"
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
            f"{name} {old.get(name, 'none')} -> {new.get(name, 'none')}"
            for name in old | new
            if old.get(name) != new.get(name)
        ]
        require(
            not changed,
            f"{run.workdir} was made with another config: {'; '.join(changed)}; use another "
            "--workdir, or --allow-config-change to go on with the new one",
        )
    wait_for_all("the config is read")
    if is_first():
        write_about(run)
    wait_for_all("the config is written")


def write_about(run: Run) -> None:
    """Writes config.json and the tokenizer's file."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    about = {
        "config": dataclasses.asdict(run.config),
        "versions": {"python": platform.python_version(), **versions},
        "commit": git_commit(),
        "notes": run.task.notes,
    }
    with reaching(run.workdir):
        make_folder(run.workdir)
        run.tokenizer.save(run.workdir)
        replace(run.workdir / "config.json", (json.dumps(about, indent=2) + "\n").encode())


def initial_params(run: Run, say: Callable[[str], None]) -> Params:
    """The parameters before the first step, placed on the mesh: those that `init` names, or random.

    Adapters start anew; those of a run that `init` names are merged into its base.
    """
    like = abstract_params(run.policy, run.mesh)
    adapters, base = split(like)

    def random(like: Params, part: Callable[[Params], Params]) -> Params:
        key = jax.random.key(run.config.seed)
        return sharded_init(lambda: part(init_params(run.policy, key)), like)

    if not run.config.init:
        return random(like, lambda params: params)
    found = named_params(run.config, base or like, run.mesh, say)
    if not base:
        return found
    fresh = random(adapters, lambda params: split(params)[0])
    return combine(freeze(found, run.config.model), fresh)


def named_params(config: Config, like: Params, mesh: Mesh, say: Callable[[str], None]) -> Params:
    """The parameters that `init` names, without adapters, placed as `like` says."""
    folder = place(config.init)
    if is_adapters(folder):
        adapters, adapted = load_adapters(folder, without_lora(config.model))
        base = load_params(base_folder(folder), config.model, like)
        return merge(combine(base, adapters), adapted)
    if not is_run(folder):
        return load_params(folder, config.model, like)
    params, _ = trained_params(folder, mesh, say)
    return merge(params, read_config(folder).model)


def trained_params(
    workdir: Place, mesh: Mesh, say: Callable[[str], None], which: int | str = "newest"
) -> tuple[Params, int]:
    """The parameters of a checkpoint of the run in `workdir`, its adapters' base included, and its
    step."""
    config = read_config(workdir)
    like = abstract_params(Policy(config.model), mesh)
    trained, base = split(like)
    restored, step = restore_params(workdir / "checkpoints", trained, say, which)
    if base:
        found = freeze(named_params(config, base, mesh, say), config.model)
        restored = combine(found, restored)
    return restored, step


def check_init(config: Config) -> None:
    """Raises ValueError unless `init` is empty, or holds parameters that fit the model."""
    if not config.init:
        rank = config.model.lora_rank
        require(not rank, f"lora_rank={rank} needs a base to adapt; name one by init")
        return
    folder = place(config.init)
    check_reachable(folder)
    require(
        folder.is_dir(),
        f"init={config.init} does not exist; give a Hugging Face folder (`grpojax import` makes "
        "one) or a run directory",
    )
    if is_run(folder):
        for name, theirs in dataclasses.asdict(read_config(folder).model).items():
            ours = getattr(config.model, name)
            require(
                ours == theirs or name in FREE,
                f"model.{name} must be {theirs}, as in init={config.init}, got {ours}",
            )
    elif in_bucket(folder):
        raise ValueError(
            f"init={config.init} holds no run; weights of another kind must be on a file system"
        )
    elif is_adapters(folder):
        check_model(base_folder(folder), config.model)
        load_adapters(folder, without_lora(config.model))
    else:
        check_model(folder, config.model)


def is_run(folder: Place) -> bool:
    """Whether `folder` is a run directory that has saved something."""
    return (folder / "checkpoints").is_dir()


def without_lora(model: ModelConfig) -> ModelConfig:
    """The shape of the base."""
    return dataclasses.replace(model, lora_rank=0, base_dtype="float32")


def open_tokenizer(config: Config, workdir: Place, task: Task) -> Tokenizer:
    """The tokenizer that `config` names, or that of `init`, or one trained on the task's text."""
    if not config.tokenizer and config.init and is_adapters(place(config.init)):
        return load_tokenizer(str(base_folder(Path(config.init))))
    if source := config.tokenizer or config.init:
        return load_tokenizer(source)
    if (workdir / "config.json").exists():  # its parameters know no other tokens
        return load_tokenizer(str(workdir))
    texts = [example.prompt + example.completion for example in task.splits["train"]]
    require(
        bool(texts), f"task {config.task!r} has no training text to make a tokenizer of; name one"
    )
    return train_sentencepiece(texts, config.model.vocab_size)


def git_commit() -> str:
    """The commit of the current folder, "+" appended if files differ from it; empty without git."""
    try:
        command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return ""
    return found.stdout.strip()
