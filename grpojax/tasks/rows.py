"""Rows: what a data set's files say, as examples; rows that say something else are counted and
named.

A data set is a few files and a parser for each: text of a row in, fields of an `Example` out.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grpojax.config import DataConfig
from grpojax.rewards.accuracy import NUMBER, canonical
from grpojax.task import Example
from grpojax.tasks.records import read_records

# Fields of the example but its id. Raises ValueError that says what is wrong with the row.
Parser = Callable[[str], dict[str, str]]

NAMED = 3  # malformed rows that are named, of however many
VALIDATION = 256  # examples cut from the front of a training file, and at most an eighth of it


def read_examples(
    data: DataConfig, name: str, parsers: dict[str, Parser]
) -> tuple[dict[str, list[Example]], tuple[str, ...]]:
    """The examples of each file in `data.dir`, and notes that say what was read and left out.

    `parsers` are by file. Ids count the rows of all files in their order, so that a row that is
    left out changes no other's.

    Raises:
      ValueError: more than `data.max_malformed` rows cannot be read; or a file is missing, empty or
        not the one of `data.sha256`; or the cache cannot be written.
    """
    rows, digests = read_records(data, name, list(parsers))
    examples: dict[str, list[Example]] = {}
    faults, first_id = [], 0
    for file, parse in parsers.items():
        examples[file] = []
        for number, (text, fault) in enumerate(rows[file], start=1):
            fields, fault = ({}, fault) if fault else parsed(parse, text)
            if fault:
                faults.append(f"{Path(data.dir) / file}, row {number} {fault}")
            else:
                examples[file].append(Example(id=first_id + number - 1, **fields))
        first_id += len(rows[file])
    notes = [
        f"{file}: {len(examples[file])} of {len(rows[file])} rows, SHA-256 {digests[file]}"
        for file in parsers
    ]
    return examples, (*notes, *malformed(faults, data.max_malformed))


def parsed(parse: Parser, text: str) -> tuple[dict[str, str], str]:
    """The fields that `parse` makes of a row and "", or none and what is wrong with the row."""
    try:
        fields = parse(text)
    except RecursionError:
        return {}, "is nested too deeply"
    except ValueError as error:
        return {}, str(error)
    for value in fields.values():
        if "\0" in value:
            return {}, "holds a NUL"
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON can escape half of a surrogate pair
            return {}, "holds what is not Unicode text"
    return fields, ""


def malformed(faults: list[str], most: int) -> tuple[str, ...]:
    """A note that counts and names the malformed rows, if there are any.

    Raises:
      ValueError: there are more than `most`.
    """
    if not faults:
        return ()
    more = f"; and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
    named = "; ".join(faults[:NAMED]) + more
    if len(faults) > most:
        raise ValueError(
            f"at most data.max_malformed={most} rows may be malformed, got {len(faults)}: {named}"
        )
    return (f"{len(faults)} malformed rows left out: {named}",)


def cut_validation(train: list[Example]) -> dict[str, list[Example]]:
    """The splits train and validation of a data set that has no validation file."""
    count = min(VALIDATION, len(train) // 8)
    return {"train": train[count:], "validation": train[:count]}


def json_row(text: str) -> dict[str, Any]:
    """The JSON object that a row holds.

    Raises:
      ValueError: the row holds something else.
    """
    try:
        row = json.loads(text)
    except ValueError as error:
        raise ValueError(f"is not JSON ({error})") from error
    if not isinstance(row, dict):
        raise ValueError(f"must be a JSON object, got {type(row).__name__}")
    return row


def text_of(row: dict[str, Any], key: str) -> str:
    """The text under `key`, without space around it.

    Raises:
      ValueError: there is none, or it is empty.
    """
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(said(row, key, "text"))
    return value.strip()


def number_of(row: dict[str, Any], key: str) -> str:
    """The number under `key`, given as one or as text, in canonical form.

    Raises:
      ValueError: there is none.
    """
    value = row.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not NUMBER.fullmatch(value.strip()):
        raise ValueError(said(row, key, "a number"))
    return canonical(value.strip())


def said(row: dict[str, Any], key: str, kind: str) -> str:
    """Why what stands under `key` is not what it must be."""
    return (
        f"must have {kind} as {key!r}, got {str(row[key])[:40]!r}"
        if key in row
        else (f"has no {key!r}")
    )


def chosen_files(data: DataConfig, files: dict[str, str]) -> dict[str, str]:
    """The files of the parts of a data set that `data.subset` names, or of all in `data.dir`.

    Raises:
      ValueError: `data.subset` names none of the parts, which are the keys of `files`.
    """
    for part in data.subset:
        if part not in files:
            raise ValueError(f"data.subset must be of {', '.join(files)}, got {part!r}")
    # Where there is none at all, reading the first says what to put where.
    chosen = data.subset or [part for part in files if has_file(data, files[part])] or [*files][:1]
    return {part: files[part] for part in chosen}


def has_file(data: DataConfig, file: str) -> bool:
    """Whether `data.dir` holds the file."""
    return bool(data.dir) and (Path(data.dir).expanduser() / file).is_file()
