"""Checks: what config rules have in common. Each raises one line: thing, rule, value, remedy."""

import typing
from typing import Any, Literal


def require(ok: bool, message: str) -> None:
    """Raises ValueError with `message` unless `ok`."""
    if not ok:
        raise ValueError(message)


def require_positive(config: Any, *names: str) -> None:
    """Raises ValueError naming the first of the fields `names` that is not above 0."""
    for name in names:
        value = getattr(config, name)
        require(value > 0, f"{name} must be above 0, got {value}")


def require_choices(config: Any) -> None:
    """Raises ValueError naming the first `Literal` field whose value is not one of its choices."""
    for name, hint in typing.get_type_hints(type(config)).items():
        if typing.get_origin(hint) is Literal:
            options, value = typing.get_args(hint), getattr(config, name)
            require(value in options, f"{name} must be one of {', '.join(options)}, got {value!r}")


def require_multiple(name: str, value: int, of: int, what: str) -> None:
    """Raises ValueError unless `value` is a multiple of `of`; the message offers the next value
    that is."""
    require(
        value % of == 0, f"{name}={value} must divide by {what} = {of}; try {of * -(-value // of)}"
    )
