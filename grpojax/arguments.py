"""What the commands read: one dataclass for each, filled by tyro from flags and a config file."""

import re
import runpy
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from grpojax.checks import require, require_fields, require_positive
from grpojax.config import Config, EvaluationConfig, SamplingConfig
from grpojax.parsing import HELP, parse
from grpojax.presets import describe_objective
from grpojax.sources import DataConfig
from grpojax.storage import Place, in_bucket

OnOff = tyro.conf.FlagCreatePairsOff[bool]


@dataclass(frozen=True, kw_only=True)
class HostsArguments:
    """The other processes of this run; on Cloud TPU and under Slurm they are found."""

    coordinator: str = ""  # host:port where process 0 waits for the others; empty: found, or alone
    count: int = 1  # processes of the run
    index: int = 0  # which of them this is, from 0
    heartbeat: int = 60  # seconds without a sign of life after which a host counts as lost
    patience: int = 300  # seconds that the others have to appear

    def __post_init__(self):
        require_fields(self)
        require_positive(self, "count", "heartbeat", "patience")
        host, _, port = self.coordinator.rpartition(":")
        require(
            not self.coordinator or (bool(host) and port.isdecimal() and 0 < int(port) < 65536),
            f"hosts.coordinator must be host:port of process 0, got {self.coordinator!r}",
        )
        require(
            bool(self.coordinator) == (self.count > 1),
            "hosts.coordinator and hosts.count above 1 need each other, got "
            f"{self.coordinator!r} and {self.count}",
        )
        require(
            0 <= self.index < self.count,
            f"hosts.index must be from 0 to hosts.count - 1 = {self.count - 1}, got {self.index}",
        )


@dataclass(frozen=True, kw_only=True)
class SFTArguments:
    """The supervised stage: imitates the task's worked completions, before GRPO."""

    workdir: Place  # run directory, made if it is not there; in a bucket: gs://BUCKET/FOLDER
    dry_run: OnOff = False  # check everything and print the run's arithmetic; compile nothing
    hosts: HostsArguments = HostsArguments()
    config: Annotated[Config, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class TrainArguments(SFTArguments):
    """Trains with GRPO, or goes on from the checkpoint in the run directory."""

    allow_config_change: OnOff = False  # go on although the run began with another config
    # a:b, steps counted from 1: a jax.profiler trace of steps a to b, in profile/ of the workdir
    profile_steps: str | None = None

    def __post_init__(self):
        _ = self.profiled  # refuses what is no range

    @property
    def profiled(self) -> tuple[int, int] | None:
        """The first and the last step of the trace."""
        if self.profile_steps is None:
            return None
        found, steps = re.fullmatch(r"(\d+):(\d+)", self.profile_steps), self.config.steps
        first, last = map(int, found.groups()) if found else (0, 0)
        require(
            1 <= first <= last <= steps,
            f"profile_steps must be a:b with 1 <= a <= b <= steps={steps}, as in 3:5, "
            f"got {self.profile_steps}",
        )
        return first, last


@dataclass(frozen=True, kw_only=True)
class PlanArguments:
    """Compiles a run's programs for TPUs that are not there: memory, communication, time."""

    # a slice of TPUs by its shape in chips, v5p:4x4x4, or as it is asked for, v5e-8
    topology: str = ""
    search: OnOff = False  # try all meshes and microbatches, and compile the best few
    compiled: int = 2  # of a search: most that are compiled; 0: the forecast alone, by arithmetic
    config: Annotated[Config, tyro.conf.arg(name="")]

    def __post_init__(self):
        require(self.compiled >= 0, f"compiled must be 0 or more, got {self.compiled}")


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments:
    """Checkpoints of one or more runs on held-out problems, side by side, with intervals."""

    runs: tyro.conf.Positional[tuple[Place, ...]]  # run directories
    split: Literal["train", "validation", "test"] = "test"  # of the runs' task
    examples: int = EvaluationConfig.examples  # problems of the split
    samples: int = 16  # completions sampled for each, beside the greedy one
    # of pass@k and maj@k; by default those of 1, 4 and 16 that `samples` allows
    k: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()  # of the checkpoints of each run; by default its newest
    out: Path | None = None  # file for every completion, judged, as JSON lines
    hosts: HostsArguments = HostsArguments()

    def __post_init__(self):
        require(bool(self.runs), "evaluate needs at least one run directory, got none")
        require_positive(self, "examples", "samples")
        for k in self.k:
            require(0 < k <= self.samples, f"k must be from 1 to samples={self.samples}, got {k}")
        for step in self.steps:
            require(step >= 0, f"steps must be 0 or more, got {step}")
        out = self.out
        require(
            out is None or (out.parent.is_dir() and not out.is_dir()),
            f"out must be a file in a folder that exists, got {out}",
        )


@dataclass(frozen=True, kw_only=True)
class SampleArguments:
    """Completes a prompt, and prints each completion with its log-probability."""

    source: tyro.conf.Positional[Place]  # run directory, or folder of a pretrained model
    prompt: str  # text to complete
    samples: int = 4  # completions
    greedy: OnOff = False  # always the most likely token
    temperature: float = EvaluationConfig.temperature  # divides the logits
    top_k: int = EvaluationConfig.top_k  # keep the k most likely tokens; 0 keeps all
    top_p: float = EvaluationConfig.top_p  # keep the likeliest tokens that hold this mass; 1: all
    completion_length: int = SamplingConfig.completion_length  # T, most tokens of a completion
    seed: int = 0  # of the draws

    def __post_init__(self):
        require_positive(self, "samples", "temperature", "completion_length")
        require(self.top_k >= 0, f"top_k must be 0 (off) or more, got {self.top_k}")
        require(0 < self.top_p <= 1, f"top_p must be above 0 and at most 1 (off), got {self.top_p}")


@dataclass(frozen=True, kw_only=True)
class ImportArguments:
    """Downloads, verifies and converts a pretrained model, once."""

    # of the model: smollm2-135m, a GGUF file, or an id of the Hub, such as Qwen/Qwen3-0.6B
    name: tyro.conf.Positional[str]
    out: Path | None = None  # folder to write; by default models/ and the end of the name


@dataclass(frozen=True, kw_only=True)
class ExportArguments:
    """Writes a run's weights as a Hugging Face folder, or its adapters as a PEFT folder."""

    run: tyro.conf.Positional[Place]  # run directory
    out: Path  # folder to write, new or empty
    step: int | None = None  # of the checkpoint; by default the newest
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the weights: others are cast
    adapters: OnOff = False  # the adapters alone, for peft; without it they are merged


@dataclass(frozen=True, kw_only=True)
class DataArguments:
    """Looks for questions of a test set in a training set; exit code 1 if there are some."""

    action: tyro.conf.Positional[Literal["check"]]
    # training set: TASK:SPLIT, TASK:SPLIT@FOLDER, or a file of JSON lines
    train: tyro.conf.Positional[str]
    test: tyro.conf.Positional[str]  # test set, named likewise
    ngram: int = 10  # words in a row that may not be shared; a shorter test question, whole
    field: str = "question"  # of a row of a file: the question
    shown: int = 5  # shared questions printed
    data: DataConfig = DataConfig()

    def __post_init__(self):
        require_positive(self, "ngram")
        require(self.shown >= 0, f"shown must be 0 or more, got {self.shown}")


@dataclass(frozen=True, kw_only=True)
class ReportArguments:
    """Writes curves.png and report.html into a run directory."""

    run: tyro.conf.Positional[Place]  # run directory


@dataclass(frozen=True, kw_only=True)
class DoctorArguments:
    """Prints devices, versions and what is missing."""


def parse_with_config(
    kind: type[SFTArguments | PlanArguments], command: str, args: list[str]
) -> Any:
    """Reads the config file named first in `args`, then the flags that change its fields.

    Raises:
      ValueError: no config file, or one without a usable get_config(); or what `parse` raises.
    """
    path, config, runs = Path("CONFIG.py"), Config(), issubclass(kind, SFTArguments)
    needed = "--workdir DIR" if runs else "--topology SLICE"
    if not args or args[0] not in HELP:
        require(
            bool(args) and not args[0].startswith("-"),
            f"{command} needs a config file before its flags, got {args[0] if args else 'none'}; "
            f"write grpojax {command} CONFIG.py {needed}",
        )
        path, args = Path(args[0]), args[1:]
        config = load_config(path)
    default = kind(config=config, **({"workdir": Path("runs") / path.stem} if runs else {}))
    about = "\n".join([str(kind.__doc__), "", describe_objective(default.config)])
    arguments = parse(kind, f"{command} {path}", args, default, about)
    workdir = arguments.workdir if runs else Path()
    require(
        in_bucket(workdir) or not workdir.is_file(),
        f"workdir must be a folder, got the file {workdir}",
    )
    return arguments


def load_config(path: Path) -> Config:
    """Runs the Python module at `path` and returns what its get_config() returns."""
    require(
        path.is_file(),
        f"config file {path} does not exist; name a Python module with get_config()",
    )
    make_importable(path.resolve().parent)
    try:
        names = runpy.run_path(str(path))
        config = names["get_config"]() if "get_config" in names else None
    except Exception as error:
        lines = [
            at.lineno
            for at in traceback.extract_tb(error.__traceback__)
            if at.filename == str(path)
        ]
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        where = f"{path}, line {lines[-1]}" if lines else f"{path}"
        raise ValueError(f"{where}: {kind}{error}") from error
    require("get_config" in names, f"{path} must define get_config() -> Config, found none")
    require(
        isinstance(config, Config),
        f"get_config() of {path} must return a grpojax Config, got {type(config).__name__}",
    )
    return config


def make_importable(folder: Path) -> None:
    """Lets `module:function` name a module in `folder`, as `python FILE` does for its own."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
