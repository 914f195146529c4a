"""What the commands read: one dataclass for each, filled by tyro from flags and a config file.

tyro explains a wrong flag in a box of several lines; here it becomes one ValueError of one line.
"""

import contextlib
import functools
import io
import os
import re
import runpy
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from grpojax.checks import require, require_positive
from grpojax.config import Config, DataConfig, EvaluationConfig, SamplingConfig
from grpojax.names import nearest
from grpojax.presets import describe_objective

OnOff = tyro.conf.FlagCreatePairsOff[bool]


@dataclass(frozen=True, kw_only=True)
class SFTArguments:
    """The supervised stage: imitates the task's worked completions, before GRPO."""

    workdir: Path  # run directory, made if it is not there
    dry_run: OnOff = False  # check everything and print the run's arithmetic; compile nothing
    config: Annotated[Config, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class TrainArguments(SFTArguments):
    """Trains with GRPO, or goes on from the checkpoint in the run directory."""

    allow_config_change: OnOff = False  # go on although the run began with another config


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments:
    """Checkpoints of one or more runs on held-out problems, side by side, with intervals."""

    runs: tyro.conf.Positional[tuple[Path, ...]]  # run directories
    split: Literal["train", "validation", "test"] = "test"  # of the runs' task
    examples: int = EvaluationConfig.examples  # problems of the split
    samples: int = 16  # completions sampled for each, beside the greedy one
    # of pass@k and maj@k; by default those of 1, 4 and 16 that `samples` allows
    k: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()  # of the checkpoints of each run; by default its newest
    out: Path | None = None  # file for every completion, judged, as JSON lines

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

    source: tyro.conf.Positional[Path]  # run directory, or folder of a pretrained model
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

    run: tyro.conf.Positional[Path]  # run directory
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

    run: tyro.conf.Positional[Path]  # run directory


@dataclass(frozen=True, kw_only=True)
class DoctorArguments:
    """Prints devices, versions and what is missing."""


def parse_with_config(kind: type[SFTArguments], command: str, args: list[str]) -> Any:
    """Reads the config file named first in `args`, then the flags that change its fields.

    Raises:
      ValueError: no config file, or one without a usable get_config(); or what `parse` raises.
    """
    if args and args[0] in HELP:
        path, default = Path("CONFIG.py"), kind(workdir=Path("runs/CONFIG"), config=Config())
    else:
        require(
            bool(args) and not args[0].startswith("-"),
            f"{command} needs a config file before its flags, got {args[0] if args else 'none'}; "
            f"write grpojax {command} CONFIG.py --workdir DIR",
        )
        path, args = Path(args[0]), args[1:]
        default = kind(workdir=Path("runs") / path.stem, config=load_config(path))
    about = "\n".join([str(kind.__doc__), "", describe_objective(default.config)])
    arguments = parse(kind, f"{command} {path}", args, default, about)
    workdir = arguments.workdir
    require(not workdir.is_file(), f"workdir must be a folder, got the file {workdir}")
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


def parse(
    kind: type, command: str, args: list[str], default: Any = None, about: str | None = None
) -> Any:
    """Fills the dataclass `kind` from the flags in `args`; what they leave out is `default`'s.

    `about` heads the help page; without it the docstring of `kind` does.

    Raises:
      ValueError: an unknown flag, a value that its field refuses, or a missing one.
      SystemExit: `args` asked for help, which has been printed.
    """
    named = (tyro.conf.PositionalMetavarFromFieldName,)
    cli = functools.partial(
        tyro.cli,
        kind,
        prog=f"grpojax {command}",
        description=about,
        registry=REGISTRY,
        config=named,
    )
    if default is not None:
        cli = functools.partial(cli, default=default)
    if HELP & set(args):
        try:
            cli(args=["--help"])
        except BrokenPipeError:  # `| head` has read enough; the exit's own flush must not complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(0) from None
    try:
        with captured() as text:
            filled, unknown = cli(args=args, return_unknown_args=True)
    except SystemExit:
        raise ValueError(one_line(text.getvalue())) from None
    if unknown:
        with captured() as text, contextlib.suppress(SystemExit):
            cli(args=["--help"])
        flags = re.findall(r"--[a-z][\w.-]+", text.getvalue())
        given = unknown[0].split("=")[0]
        what = "unknown flag" if given.startswith("-") else "unexpected argument"
        hint = nearest(given, flags) if given.startswith("-") else ""
        raise ValueError(f"{what} {given}{hint}; grpojax {command} --help lists them all")
    return filled


@contextlib.contextmanager
def captured() -> Iterator[io.StringIO]:
    """Collects what tyro prints, with no line broken."""
    text, columns = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100000"
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            yield text
    finally:
        del os.environ["COLUMNS"]
        if columns is not None:
            os.environ["COLUMNS"] = columns


def one_line(box: str) -> str:
    """The explanation in a box of tyro's, without its title, its footer and Python's jargon."""
    rows = [row.strip() for row in box.splitlines() if row.strip()]
    parts = [list(part) for rule, part in groupby(rows, lambda row: set(row) == {"-"}) if not rule]
    said = " ".join(parts[1] if len(parts) > 1 else rows)
    for jargon, plain in PLAIN.items():
        said = re.sub(jargon, plain, said)
    return said


HELP = {"-h", "--help"}

PLAIN = {
    r"^Error parsing (\w+Arguments: |config\.)?": "",
    r"invalid literal for int\(\) with base 10: ": "must be a whole number, got ",
    r"could not convert string to float: ": "must be a number, got ",
    r": Could not find valid parse for arguments: \[(.*)\]$": r" must be whole numbers, got \1",
    r"no type matching \{None\}\|INT .* from \[(.*?)\].*": r"must be a whole number, got \1",
    r"^(--\S+): must": r"\1 must",
    r"^invalid choice (.*) for argument '(.*)'. Expected (one of) \((.*?),?\)\.$": (
        r"\2 must be \3 \4, got \1"
    ),
    r"^Missing value for argument '(.*)'. .*": r"\1 must be followed by a value, got none",
    r"^Missing from (grpojax \w+): (.*) \(required\)$": r"\1 needs \2; \1 --help shows how",
    r" \(required\)": " and",
}

REGISTRY = ConstructorRegistry()
MAPPINGS = {dict[str, float]: ("weight", float), dict[str, str]: ("digest", str)}


@REGISTRY.primitive_rule
def mapping_flag(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """`--rewards NAME WEIGHT ...` replaces the whole mapping, so that it can have other names."""
    if info.type not in MAPPINGS:
        return None
    what, kind = MAPPINGS[info.type]
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar=f"NAME {what.upper()} ...",
        instance_from_str=functools.partial(mapping_from_words, what, kind),
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [str(word) for pair in value.items() for word in pair],
    )


def mapping_from_words(what: str, kind: type, words: list[str]) -> dict[str, Any]:
    require(len(words) % 2 == 0, f"must be pairs of a name and a {what}, got {' '.join(words)}")
    return {name: kind(value) for name, value in zip(words[::2], words[1::2])}
