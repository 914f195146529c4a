"""Reward: grpojax's own, by name, in an environment without what grpojax imports."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import grpojax
from grpojax.task import Example


def reward_named(name: str) -> Callable[[Example, str], float]:
    """The reward "grpojax.rewards.MODULE:FUNCTION". Its package is entered without the package's
    own imports, so this process can use the package for nothing else."""
    module, _, function = name.partition(":")
    package = sys.modules["grpojax.rewards"] = ModuleType("grpojax.rewards")
    package.__path__ = [str(Path(grpojax.__file__).parent / "rewards")]
    return getattr(importlib.import_module(module), function)
