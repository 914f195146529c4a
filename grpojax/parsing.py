"""Parsing: a dataclass filled from flags by tyro, and what was wrong with them said in one line.

tyro explains a wrong flag in a box of several lines; here it becomes one ValueError of one line.
"""

import contextlib
import functools
import io
import os
import re
import sys
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from grpojax.checks import require
from grpojax.names import nearest
from grpojax.storage import Place, place


def parse(
    kind: type,
    command: str,
    args: list[str],
    default: Any = None,
    about: str | None = None,
    program: str = "grpojax",
) -> Any:
    """Fills the dataclass `kind` from the flags in `args`; what they leave out is `default`'s.

    `about` heads the help page; without it the docstring of `kind` does. `command` is one of
    `program`.

    Raises:
      ValueError: an unknown flag, a value that its field refuses, or a missing one.
      SystemExit: `args` asked for help, which has been printed.
    """
    named = (tyro.conf.PositionalMetavarFromFieldName,)
    cli = functools.partial(
        tyro.cli,
        kind,
        prog=f"{program} {command}",
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
        raise ValueError(f"{what} {given}{hint}; {program} {command} --help lists them all")
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
    r"^Missing from (.*?): (.*) \(required\)$": r"\1 needs \2; \1 --help shows how",
    r" \(required\)": " and",
}

REGISTRY = ConstructorRegistry()


@REGISTRY.primitive_rule
def place_flag(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """A folder, on a file system or in a bucket."""
    if info.type != Place:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: place(words[0]),
        is_instance=lambda value: isinstance(value, Place),
        str_from_instance=lambda value: [str(value)],
    )


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
