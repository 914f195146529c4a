"""Texts: what a user may write where a name, a path or a value is asked for.

A name becomes part of a command of gcloud's and has the form that Google Cloud asks for. A value
that only travels (a path on the workers, a flag of grpojax, the value of a variable) may be any
text that one argument of a process can hold: it is quoted once, in `remote.ask`, and never pasted.
"""

import re
from pathlib import PurePosixPath

from grpojax.checks import require

LONGEST = 100_000  # bytes; Linux takes 131,072 in one argument, and a remote command is one

NAME = r"[a-z](?:[a-z0-9-]{0,38}[a-z0-9])?"
PROJECT = r"(?:[a-z][a-z0-9.-]{0,60}[a-z0-9]:)?[a-z][a-z0-9-]{4,28}[a-z0-9]"
ZONE = r"[a-z]+(?:-[a-z]+)+[0-9]+-[a-z]{1,3}[0-9]{0,2}[a-z]?"
VERSION = r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?"
BUCKET_PATH = r"gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](?:/[A-Za-z0-9_=+.-]+)+"
VARIABLE = r"[A-Za-z_][A-Za-z0-9_]{0,127}"
SECRET = r"(?i).*(token|secret|password|passwd|credential|(^|_)key)s?$"


def require_name(name: str) -> None:
    """Raises ValueError unless `name` can name a slice and what belongs to it."""
    require(
        re.fullmatch(NAME, name) is not None,
        f"name must be 1 to 40 of a-z, 0-9 and -, from a letter to no -, got {name!r:.200}",
    )


def require_place(project: str, zone: str) -> None:
    """Raises ValueError unless both have the form that Google Cloud gives them."""
    require(
        re.fullmatch(PROJECT, project) is not None,
        f"project must be a project id, as in my-project-123 (not its name), got {project!r}",
    )
    require(
        re.fullmatch(ZONE, zone) is not None,
        f"zone must be a zone, as in us-central1-a (a region has no letter), got {zone!r}",
    )


def require_version(version: str) -> None:
    """Raises ValueError unless `version` is empty or may name an image."""
    require(
        not version or re.fullmatch(VERSION, version) is not None,
        f"runtime_version must be as in v2-alpha-tpuv6e, got {version!r}",
    )


def require_carried(what: str, text: str) -> None:
    """Raises ValueError unless `text` can be one argument of a process."""
    require("\0" not in text, f"{what} cannot hold a NUL, got {text!r:.200}")
    size = len(text.encode(errors="surrogateescape"))
    require(size <= LONGEST, f"{what} must have at most {LONGEST} bytes, got {size}")


def require_config_path(config: str) -> None:
    """Raises ValueError unless `config` is a Python file inside the repository."""
    require_carried("config", config)
    parts = PurePosixPath(config).parts
    inside = bool(parts) and not config.startswith(("/", "-")) and ".." not in parts
    require(
        inside and config.endswith(".py"),
        f"config must be the path of a .py file in the repository, as in configs/quickstart.py, "
        f"got {config!r:.200}",
    )


def require_workdir(workdir: str) -> None:
    """Raises ValueError unless `workdir` is on Cloud Storage or an absolute path on the workers."""
    require_carried("workdir", workdir)
    bucket = re.fullmatch(BUCKET_PATH, workdir) is not None
    steps_up = ".." in PurePosixPath(workdir).parts
    require(
        (bucket or workdir.startswith("/")) and not steps_up,
        f"workdir must be gs://BUCKET/PATH (of letters, digits and _=+.-) or an absolute path on "
        f"the workers, got {workdir!r:.200}",
    )


def require_variables(env: tuple[str, ...], secrets: tuple[str, ...]) -> None:
    """Raises ValueError unless `env` are NAME=VALUE without secrets, and `secrets` names."""
    for pair in env:
        require_carried("env", pair)
        name = pair.partition("=")[0]
        ok = "=" in pair and re.fullmatch(VARIABLE, name) is not None
        require(ok, f"env must be NAME=VALUE, got {pair!r:.200}")
        require(
            re.fullmatch(SECRET, name) is None,
            f"env {name} looks like a secret, which must not stand in a command; export {name} "
            f"here and give --secrets {name}",
        )
    for name in secrets:
        require(
            re.fullmatch(VARIABLE, name) is not None,
            f"secrets must be names of environment variables, as in HF_TOKEN, got {name!r:.40}",
        )
