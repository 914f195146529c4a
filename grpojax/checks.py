"""Checks: what config rules have in common. Each raises one line: thing, rule, value, remedy."""

import math
import typing
from typing import Any, Literal


def require(ok: bool, message: str) -> None:
    """Raises ValueError with `message` unless `ok`."""
    if not ok:
        raise ValueError(message)


def require_fields(config: Any) -> None:
    """Raises ValueError naming the first field whose value is not of the field's type.

    Numbers must be finite, an integer is also a float, and a `Literal` must be one of its choices.
    """
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if typing.get_origin(hint) is Literal:
            options = typing.get_args(hint)
            require(value in options, f"{name} must be one of {', '.join(options)}, got {value!r}")
        elif hint is float:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            require(
                number and math.isfinite(value), f"{name} must be a finite number, got {value!r}"
            )
        else:
            kind = typing.get_origin(hint) or hint
            same = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
            require(same, f"{name} must be of type {kind.__name__}, got {value!r}")


def require_positive(config: Any, *names: str) -> None:
    """Raises ValueError naming the first of the fields `names` that is not above 0."""
    for name in names:
        value = getattr(config, name)
        require(value > 0, f"{name} must be above 0, got {value}")


def require_multiple(name: str, value: int, of: int, what: str) -> None:
    """Raises ValueError unless `value` is a multiple of `of`; the message offers the nearest."""
    near = of * max(1, (value + of // 2) // of)
    require(value % of == 0, f"{name}={value} must divide by {what} = {of}; try {near}")


def require_divisor(name: str, value: int, of: int, what: str) -> None:
    """Raises ValueError unless `value`, which stands fast, is a multiple of `of`; the message
    offers the nearest size that divides it."""
    sizes = (size for size in range(1, value + 1) if value % size == 0)
    near = min(sizes, key=lambda size: (abs(size - of), size))
    require(value % of == 0, f"{name}={value} must divide by {what} = {of}; try a mesh of {near}")
