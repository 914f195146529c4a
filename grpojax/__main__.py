"""The command line: `grpojax COMMAND ...`, where a command reads its flags and calls one function.

Whatever the user got wrong ends in one line on stderr and exit code 2. What needs jax is imported
inside the commands, so that --help and a wrong flag are answered at once.
"""

import functools
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from grpojax.arguments import (
    DataArguments,
    DoctorArguments,
    EvaluateArguments,
    ExportArguments,
    ImportArguments,
    PlanArguments,
    ReportArguments,
    SampleArguments,
    SFTArguments,
    TrainArguments,
    make_importable,
    parse_with_config,
)
from grpojax.names import nearest
from grpojax.parsing import HELP, parse
from grpojax.storage import require_folder


def main(argv: list[str] | None = None) -> int:
    """Runs the command in `argv` (default: the process's own arguments).

    Returns:
      The exit code: 0 done, 2 wrong input, 75 stopped by a signal with a checkpoint saved, 130
      interrupted elsewhere. Whatever else goes wrong is raised: a crash with its traceback.
    """
    try:
        return run(sys.argv[1:] if argv is None else argv)
    except SystemExit as shown:  # tyro leaves this way once it has printed a help page
        return int(shown.code or 0)
    except KeyboardInterrupt:
        return ended(130)
    except Exception as error:
        if isinstance(error, ValueError) and is_wrong_input(error):
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            return ended(2)
        if not with_others():
            raise
        traceback.print_exc()
        return ended(crashed(error))


def with_others() -> bool:
    """Whether this process is one host of several."""
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def crashed(error: Exception) -> int:
    """The exit code of a host that ends on `error`, said in one line if another host is gone."""
    from grpojax.hosts import LOST

    why = str(error).partition("\n")[0][:160]
    if not re.match(r"(UNKNOWN|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|INTERNAL): ", why):
        return 1  # XLA's errors begin with their kind; these are of broken connections
    print(
        f"error: lost touch with another host ({why}); this one ends too: start all again, and the "
        "run goes on from its newest checkpoint",
        file=sys.stderr,
    )
    return LOST


def ended(code: int) -> int:
    """`code`; but one host of several is gone at once, since at its end it would wait for others,
    which may wait for it."""
    if with_others():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def is_wrong_input(error: ValueError) -> bool:
    """Whether this package raised `error`; one from the depth of a library is a crash."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    inside = Path(frame.f_code.co_filename).is_relative_to(Path(__file__).parent)
    # JAX cuts its own frames off a traceback, and says so in a note.
    return inside and not getattr(error, "__notes__", None)


def run(argv: list[str]) -> int:
    name, *args = argv or [""]
    if name in HELP:
        print(overview())
        return 0
    if name not in COMMANDS:
        what = f"unknown command {name}{nearest(name, COMMANDS)}" if name else "a command is needed"
        raise ValueError(f"{what}; there are {', '.join(COMMANDS)}")
    make_importable(Path.cwd())
    return COMMANDS[name][0](args)


def overview() -> str:
    rows = (f"  {name:10}{kind.__doc__}" for name, (_, kind) in COMMANDS.items())
    usage = "usage: grpojax COMMAND ...       grpojax COMMAND --help shows the flags of one"
    return "\n".join([usage, "", *rows])


def train(args: list[str]) -> int:
    arguments = parse_with_config(TrainArguments, "train", args)
    from grpojax.arithmetic import dry_run
    from grpojax.compilation import use_compilation_cache
    from grpojax.hosts import is_first, meet
    from grpojax.train import train

    meet(**vars(arguments.hosts), environment=os.environ)

    if arguments.dry_run:
        print(dry_run(arguments.config, arguments.workdir))
        return 0
    use_compilation_cache()
    code = train(
        arguments.config,
        arguments.workdir,
        allow_config_change=arguments.allow_config_change,
        profile_steps=arguments.profiled,
    )
    if code == 0 and is_first():
        from grpojax.report import write_report

        print(f"{write_report(arguments.workdir)}, and curves.png beside it")
    return code


def sft(args: list[str]) -> int:
    arguments = parse_with_config(SFTArguments, "sft", args)
    from grpojax.arithmetic import dry_run
    from grpojax.compilation import use_compilation_cache
    from grpojax.hosts import meet
    from grpojax.sft import sft

    meet(**vars(arguments.hosts), environment=os.environ)

    if arguments.dry_run:
        print(dry_run(arguments.config, arguments.workdir))
        return 0
    use_compilation_cache()
    return sft(arguments.config, arguments.workdir)


def plan(args: list[str]) -> int:
    arguments = parse_with_config(PlanArguments, "plan", args)
    from grpojax.blueprint import describe_plan, describe_search
    from grpojax.plan import make_plan, make_plans
    from grpojax.topology import parse_topology

    topology = parse_topology(arguments.topology)
    say = functools.partial(print, file=sys.stderr, flush=True)
    if not arguments.search:
        print(describe_plan(make_plan(arguments.config, topology, say)))
        return 0
    found, plans = make_plans(arguments.config, topology, say, most=arguments.compiled)
    print(describe_search(found, topology))
    for each in plans:
        print(f"\n{describe_plan(each)}", flush=True)
    return 0


def evaluate(args: list[str]) -> int:
    arguments = parse(EvaluateArguments, "evaluate", args)
    for run in arguments.runs:
        require_folder(run)
    from grpojax.compilation import use_compilation_cache
    from grpojax.evaluate import evaluate_runs, write_answers
    from grpojax.hosts import is_first, meet
    from grpojax.scoreboard import show_scoreboard

    meet(**vars(arguments.hosts), environment=os.environ)

    use_compilation_cache()
    evaluations = evaluate_runs(
        arguments.runs,
        steps=arguments.steps,
        split=arguments.split,
        samples=arguments.samples,
        k=arguments.k or tuple(k for k in (1, 4, 16) if k <= arguments.samples),
        examples=arguments.examples,
    )
    if not is_first():
        return 0
    show_scoreboard(evaluations, arguments.split)
    if arguments.out is not None:
        write_answers(arguments.out, arguments.split, evaluations)
        print(f"every completion is in {arguments.out}")
    return 0


def sample(args: list[str]) -> int:
    arguments = vars(parse(SampleArguments, "sample", args))
    source, prompt = arguments.pop("source"), arguments.pop("prompt")
    require_folder(source)
    from grpojax.compilation import use_compilation_cache
    from grpojax.sample import sample_text

    use_compilation_cache()
    for i, (text, logp) in enumerate(sample_text(source, prompt, **arguments)):
        # An untrained policy also writes the bytes that steer a terminal.
        shown = "".join(
            c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
        )
        print(f"--- completion {i + 1}, log-probability {logp:.3f}\n{shown}")
    return 0


def import_pretrained(args: list[str]) -> int:
    arguments = parse(ImportArguments, "import", args)
    from grpojax.hub import import_model

    out = arguments.out or Path("models") / Path(arguments.name).name.removesuffix(".gguf").lower()
    print(import_model(arguments.name, out))
    return 0


def export(args: list[str]) -> int:
    arguments = parse(ExportArguments, "export", args)
    require_folder(arguments.run)
    from grpojax.export import export_run

    said = export_run(
        arguments.run,
        arguments.out,
        step=arguments.step,
        dtype=arguments.dtype,
        adapters=arguments.adapters,
    )
    print(said)
    return 0


def data(args: list[str]) -> int:
    arguments = parse(DataArguments, "data", args)
    from grpojax.contamination import check_sets

    count, said = check_sets(
        arguments.train,
        arguments.test,
        arguments.data,
        field=arguments.field,
        ngram=arguments.ngram,
        shown=arguments.shown,
    )
    print(said)
    return int(count > 0)


def report(args: list[str]) -> int:
    arguments = parse(ReportArguments, "report", args)
    require_folder(arguments.run)
    from grpojax.report import write_report

    print(write_report(arguments.run))
    return 0


def doctor(args: list[str]) -> int:
    parse(DoctorArguments, "doctor", args)
    from grpojax.doctor import examine

    print(examine())
    return 0


COMMANDS: dict[str, tuple[Callable[[list[str]], int], type]] = {
    "train": (train, TrainArguments),
    "sft": (sft, SFTArguments),
    "plan": (plan, PlanArguments),
    "evaluate": (evaluate, EvaluateArguments),
    "sample": (sample, SampleArguments),
    "import": (import_pretrained, ImportArguments),
    "export": (export, ExportArguments),
    "data": (data, DataArguments),
    "report": (report, ReportArguments),
    "doctor": (doctor, DoctorArguments),
}


if __name__ == "__main__":
    sys.exit(main())
