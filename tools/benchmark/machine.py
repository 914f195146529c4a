"""Machine: what results were measured on and with."""

import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from grpojax.run import git_commit
from tools.benchmark.environments import versions


def about(libraries: Iterable[str], threads: int, workdir: Path) -> dict[str, Any]:
    """Date, commit, machine, and the versions in the environment of each library."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = {line.partition(": ")[2] for line in lines if line.startswith("model name")}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "commit": git_commit(),
        "machine": f"{', '.join(models)}, {os.cpu_count()} cores, {memory / 1e9:.0f} GB",
        "python": platform.python_version(),
        "threads": threads,
        "versions": {name: versions(name, workdir) for name in sorted(set(libraries))},
    }
