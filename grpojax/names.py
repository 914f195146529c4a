"""Names: the function that a config calls by name, or an error that offers the nearest name."""

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable


def find_function(kind: str, name: str, ours: dict[str, Callable]) -> Callable:
    """The function that a config calls `name`: one of `ours`, or "module:function", imported.

    Raises:
      ValueError: there is no such name, module or function; the message offers the nearest name.
    """
    module_name, colon, function_name = name.partition(":")
    if not colon:
        if name in ours:
            return ours[name]
        rule = f"{kind} must be one of {', '.join(ours)}, or module:function, got {name!r}"
        raise ValueError(rule + nearest(name, ours))
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError, TypeError) as error:  # empty or relative names: the last two
        installed = (found.name for found in pkgutil.iter_modules())
        rule = f"{kind} {name!r} must name a module that can be imported, got {error}"
        raise ValueError(rule + nearest(module_name, installed)) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        functions = (known for known, value in vars(module).items() if callable(value))
        rule = (
            f"{kind} {name!r} must name a function of {module_name}, which has no {function_name!r}"
        )
        raise ValueError(rule + nearest(function_name, functions))
    return function


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean ...?)` with the one of `known` that is most like `name`, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""
